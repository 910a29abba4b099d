"""The data sets' contract: what is left out says so, batches of things that differ in number, keywords."""
import pickle

import numpy as np
import pytest

from jea.data import DATASETS, Batch, DataError, Dataset, Loader, SegmentationDataset
from jea.data.views.augment import EvalView, TrainView
from jea.data.views.centred import CentredView


class Boxes(Dataset):
    """Sample k: a picture, and k boxes."""

    ragged = ("boxes",)
    num_classes, class_names = 2, ("a", "b")

    def __len__(self):
        return 6

    def train_sample(self, index, rng):
        return {"image": np.full((3, 2, 2), index, np.float32), "boxes": np.full((index, 4), index, np.float32)}


def test_a_batch_knows_its_size_and_its_parts():
    batch = Batch(image=np.arange(12).reshape(6, 2), boxes=[np.zeros((k, 4)) for k in range(6)])
    assert batch.size == 6 and Batch().size == 0
    assert batch.parts(1) == [batch]
    parts = batch.parts(3)
    assert [part.size for part in parts] == [2, 2, 2] and all(isinstance(part, Batch) for part in parts)
    assert parts[1]["image"].tolist() == [[4, 5], [6, 7]]
    assert [len(boxes) for boxes in parts[2]["boxes"]] == [4, 5]
    with pytest.raises(ValueError, match="6 samples does not divide into 4 parts"):
        batch.parts(4)
    again = pickle.loads(pickle.dumps(batch))
    assert type(again) is Batch and again.size == 6 and (again["image"] == batch["image"]).all()


def test_lists_come_through_worker_processes():
    whole = list(Loader(Boxes(), batch_size=3, seed=1).epoch(0))
    with Loader(Boxes(), batch_size=3, seed=1, num_workers=2) as loader:
        batches = list(loader.epoch(0))
    assert len(batches) == len(whole) == 2
    for batch, wanted in zip(batches, whole):
        assert type(batch) is Batch and batch.size == 3 and batch["image"].shape == (3, 3, 2, 2)
        assert isinstance(batch["boxes"], list) and batch["index"].tolist() == wanted["index"].tolist()
        for boxes, index in zip(batch["boxes"], batch["index"]):
            assert boxes.shape == (index, 4) and (boxes == index).all() and boxes.dtype == np.float32
    with Loader(Boxes(), batch_size=6, share=(1, 3)) as loader:
        assert next(loader.epoch(0)).size == 2


def test_different_shapes_are_named():
    class Forgotten(Boxes):
        ragged = ()
    with pytest.raises(DataError, match=r'"boxes" has the shapes \(0, 4\), \(1, 4\), .*Forgotten.ragged'):
        next(Loader(Forgotten(), batch_size=6).epoch(0))


@pytest.mark.parametrize("method, arguments", [("__len__", ()), ("load", (0,)), ("train_sample", (0, None)),
                                               ("test_sample", (0,))])
def test_what_a_data_set_leaves_out_says_so(method, arguments):
    class Mine(Dataset):
        pass
    with pytest.raises(DataError, match=rf"data.name: Mine has no .* does not define {method}\("):
        getattr(Mine(), method)(*arguments)
    assert Mine().notes() == []


def test_what_data_check_asks_of_a_data_set_of_classes():
    class Mine(Boxes):
        def load(self, index):
            if index == 4:
                raise DataError("pictures/4.png: broken")
            return np.full((3, 5, 3), index % 2, np.uint8), index % 2
    found = [Mine().examine(k) for k in range(6)]
    assert found[1].size == (3, 5) and found[1].counts.tolist() == [0, 1] and found[1].problems == []
    assert found[1].digest == found[3].digest != found[0].digest
    assert found[4].problems == ["pictures/4.png: broken"] and found[4].size is None and found[4].counts is None
    assert Mine().describe() == "6 pictures of Mine, split None, in memory"


def test_views_are_data_sets_of_the_same_samples():
    class Mine(Boxes):
        root, split, unit = "somewhere", "val", "drawing"

        def load(self, index):
            return np.full((4, 5, 3), 9, np.uint8), index % 2
    for view in (TrainView(Mine(), None), EvalView(Mine(), 8, 0.9), CentredView(Mine(), size=4)):
        assert isinstance(view, Dataset) and len(view) == 6 and view.load(1)[1] == 1
        assert (view.root, view.split, view.unit, view.num_classes) == ("somewhere", "val", "drawing", 2)
        assert view.class_names == ("a", "b") and view.ragged == ("boxes",)


@pytest.mark.parametrize("name", DATASETS)
def test_every_data_set_follows_the_contract(name):
    cls = DATASETS[name]
    assert issubclass(cls, Dataset) and {"split"} <= set(cls.arguments())
    assert "self" not in cls.arguments() and all(p.kind is p.KEYWORD_ONLY for p in cls.arguments().values())
    assert cls.unit + "s" == cls.what and (cls.label_unit == "pixels") == issubclass(cls, SegmentationDataset)


def test_keywords_of_the_bases_count_where_they_are_passed_on():
    class Base(Dataset):
        def __init__(self, *, root: str, size: int = 3):
            pass

    class Own(Base):
        def __init__(self, *, labels: str = "a", size: int = 5, **others):
            pass

    class Closed(Base):
        def __init__(self, *, labels: str = "a"):
            pass
    found = Own.arguments()
    assert set(found) == {"labels", "size", "root"} and found["size"].default == 5 and found["root"].annotation is str
    assert set(Closed.arguments()) == {"labels"}
