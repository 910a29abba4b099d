"""ModelNet40 on small trees in the two published layouts."""
import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest

from jea.data import DATASETS, DataError, Loader, ModelNet40
from jea.data.points.modelnet import MODELNET40_CLASSES

CLASSES = ("airplane", "night_stand", "xbox")
FORMS = ("hdf5", "text")


def points(number, count):
    return np.random.default_rng(number).uniform(-3, 5, (count, 3)).astype(np.float32)


def make_text(root):
    folder = root / "modelnet40_normal_resampled"
    lists = {"train": ["airplane_0001", "night_stand_0001", "xbox_0002"], "test": ["night_stand_0201"]}
    number = 0
    for split, ids in lists.items():
        for id in ids:
            (folder / id.rpartition("_")[0]).mkdir(parents=True, exist_ok=True)
            table = np.hstack([points(number, 40), np.ones((40, 3))])
            np.savetxt(folder / id.rpartition("_")[0] / f"{id}.txt", table, fmt="%.6f", delimiter=",")
            number += 1
        (folder / f"modelnet40_{split}.txt").write_text("\n".join(ids) + "\n")
    (folder / "modelnet40_shape_names.txt").write_text("\n".join(CLASSES) + "\n")
    return folder


def make_hdf5(root):
    h5py = pytest.importorskip("h5py")
    folder = root / "modelnet40_ply_hdf5_2048"
    folder.mkdir()
    number = 0
    for name, labels in (("train0", [0, 1]), ("train1", [2]), ("test0", [1])):
        with h5py.File(folder / f"ply_data_{name}.h5", "w") as file:
            data = [points(number + k, 40) for k in range(len(labels))]
            file.create_dataset("data", data=np.stack(data), compression="gzip")
            file.create_dataset("label", data=np.array(labels, np.uint8)[:, None])
            file.create_dataset("normal", data=np.zeros((len(labels), 40, 3), np.float32))
            number += len(labels)
    (folder / "shape_names.txt").write_text("\n".join(CLASSES) + "\n")
    return folder


def make(form, root):
    return {"text": make_text, "hdf5": make_hdf5}[form](root)


def unit(cloud):
    cloud = cloud.astype(np.float64) - cloud.mean(0)
    return cloud / np.sqrt((cloud ** 2).sum(1)).max()


@pytest.mark.parametrize("form", FORMS)
def test_contents(tmp_path, form):
    folder = make(form, tmp_path)
    train, test = (ModelNet40(root=tmp_path, split=split, num_points=30) for split in ("train", "test"))
    assert train.root == folder and ModelNet40(root=folder, num_points=30).root == folder
    assert (len(train), len(test), train.num_classes, train.class_names) == (3, 1, 3, CLASSES)
    for data, numbers, labels in ((train, (0, 1, 2), (0, 1, 2)), (test, (3,), (1,))):
        for k, (number, label) in enumerate(zip(numbers, labels)):
            sample = data.test_sample(k)
            first = points(number, 40)[:30]  # the first rows, moved after they were taken
            wanted = unit(first) if form == "text" else first
            assert sample["points"].shape == (3, 30) and sample["points"].dtype == np.float32
            assert np.abs(sample["points"].T - wanted).max() < 2e-6
            assert (sample["category"], sample["parts"]) == (label, None)
    assert train.test_sample(2)["id"] == "train_0002"
    trained = train.train_sample(1, np.random.default_rng(0))
    assert sorted(trained) == ["category", "points"] and trained["points"].shape == (3, 30)


@pytest.mark.parametrize("form", FORMS)
def test_the_second_time_it_comes_from_the_cache(tmp_path, monkeypatch, form):
    folder = make(form, tmp_path)
    first = ModelNet40(root=tmp_path, num_points=30).test_sample(1)["points"]
    cache = folder / ".jea" / "train-30"
    assert sorted(p.name for p in cache.iterdir()) == ["checksums.json", "ends.npy", "labels.npy", "parts.npy",
                                                       "points.npy"]
    monkeypatch.setattr("jea.data.points.modelnet.read_table", None)
    monkeypatch.setattr("jea.data.points.modelnet.read_hdf5", None)
    again = ModelNet40(root=tmp_path, num_points=30)
    assert np.array_equal(again.test_sample(1)["points"], first)
    with pytest.raises(TypeError):  # other points: another cache
        ModelNet40(root=tmp_path, num_points=20)
    assert len(pickle.dumps(again)) < 3000  # workers open the files themselves
    assert np.array_equal(pickle.loads(pickle.dumps(again)).test_sample(1)["points"], first)


@pytest.mark.parametrize("damage", ["source", "points", "labels", "checksums", "version", "gone"])
def test_a_cache_that_does_not_fit_is_made_anew(tmp_path, damage):
    folder = make("text", tmp_path)
    wanted = ModelNet40(root=tmp_path, num_points=30).test_sample(0)["points"]
    cache = folder / ".jea" / "train-30"
    if damage == "source":
        path = folder / "airplane" / "airplane_0001.txt"
        path.write_text("".join(f"{x},{y},{-z},0,0,1\n" for x, y, z in points(0, 40)))
        wanted = wanted * np.float32([[1], [1], [-1]])
    elif damage == "gone":
        (cache / "ends.npy").unlink()
    elif damage == "version":
        stored = json.loads((cache / "checksums.json").read_text())
        (cache / "checksums.json").write_text(json.dumps(dict(stored, version=0)))
    elif damage == "checksums":
        (cache / "checksums.json").write_text("[]")
    else:
        data = bytearray((cache / f"{damage}.npy").read_bytes())
        data[-1] ^= 1
        (cache / f"{damage}.npy").write_bytes(bytes(data))
    for _ in range(2):
        data = ModelNet40(root=tmp_path, num_points=30)
        assert np.abs(data.test_sample(0)["points"] - wanted).max() < 1e-5 and data.test_sample(2)["category"] == 2


def test_a_folder_that_cannot_be_written(tmp_path):
    folder = make("text", tmp_path)
    (folder / ".jea").write_text("in the way")
    data = ModelNet40(root=tmp_path, num_points=30)
    assert np.array_equal(pickle.loads(pickle.dumps(data)).test_sample(2)["points"], data.test_sample(2)["points"])


def test_batches_are_the_same_with_workers(tmp_path):
    make("text", tmp_path)
    data = DATASETS["modelnet40"](root=tmp_path, num_points=30)
    batches = []
    for workers in (0, 2):
        with Loader(data, batch_size=3, num_workers=workers) as loader:
            batches.append(next(loader.epoch(4)))
    assert batches[0]["points"].shape == (3, 3, 30) and batches[0]["category"].shape == (3,)
    assert all(np.array_equal(batches[0][key], batches[1][key]) for key in batches[0])


def test_published_classes():
    assert len(MODELNET40_CLASSES) == 40 and list(MODELNET40_CLASSES) == sorted(MODELNET40_CLASSES)
    assert MODELNET40_CLASSES.index("night_stand") == 23


# -- faults ----------------------------------------------------------------------------------------------------------

def test_faults_of_the_text_form(tmp_path):
    def said(message, **options):
        with pytest.raises(DataError, match=message):
            ModelNet40(root=tmp_path, **{"num_points": 30, **options})

    said("no ModelNet40 there; looked for shape_names.txt")
    folder = make("text", tmp_path)
    said("unknown split 'tset'.*did you mean test.*there are train, test", split="tset")
    said("airplane_0001.txt: cloud has 40 points; expected at least 41.*set data.num_points", num_points=41)
    path = folder / "xbox" / "xbox_0002.txt"
    good = path.read_text()
    for text, message in (("", "is empty"), (good[good.index(",") + 1:], "line 2: 6 numbers; expected 5"),
                          ("1,2\n" * 40, "2 numbers"),
                          (good.replace("\n", "\nnan,0,0,0,0,1\n", 1), r"xbox_0002.txt, line 2: \(nan, 0, 0\)"),
                          ("<html>", "line 1: '<html>' is not a number")):
        path.write_text(text)
        said(message if text else "xbox_0002.txt: cloud is empty")
    path.unlink()
    said(r"xbox_0002.txt: cloud does not exist, but .*modelnet40_train.txt lists it \(1 of 3")
    for ids, message in (("", "the list is empty"), ("airplane_0001\nairplane_0001\n", "airplane_0001 is listed twice"),
                         ("chair_0001\n", "'chair_0001' belongs to none of the 3 classes"),
                         ("../secret\n", "expected a name, not a path")):
        (folder / "modelnet40_train.txt").write_text(ids)
        said(message)
    (folder / "modelnet40_train.txt").unlink()
    said("modelnet40_train.txt: list does not exist")


def test_without_h5py_it_says_how_to_install_it(tmp_path, monkeypatch):
    (tmp_path / "shape_names.txt").write_text("a\nb\n")
    (tmp_path / "ply_data_train0.h5").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(DataError, match=r"ply_data_train0.h5: HDF5 files need h5py: pip install 'jea\[points\]'"):
        ModelNet40(root=tmp_path)
    with pytest.raises(DataError, match=r"no files ply_data_test\*.h5"):
        ModelNet40(root=tmp_path, split="test")


def test_faults_of_the_hdf5_form(tmp_path):
    h5py = pytest.importorskip("h5py")
    folder = make("hdf5", tmp_path)
    path = folder / "ply_data_train1.h5"
    sound = path.read_bytes()
    good = {"data": np.zeros((2, 40, 3), np.float32), "label": np.array([[0], [1]])}

    def said(message, num_points=30):
        with pytest.raises(DataError, match=f"ply_data_train1.h5.*{message}"):
            ModelNet40(root=tmp_path, num_points=num_points)

    for content, message in ((b"", "HDF5 file is empty"), (b"\x89HDF\r\n\x1a\n" + bytes(99), "HDF5 file is broken"),
                             (sound[:len(sound) // 2], "HDF5 file is broken|has no array")):
        path.write_bytes(content)
        said(message)
    nan = good["data"].copy()
    nan[1, 7, 2] = np.nan
    for change, message in (({"data": None}, "has no array 'data'; it has label"),
                            ({"label": None}, "has no array 'label'"),
                            ({"data": np.zeros((2, 29, 3))}, r"shape \(2, 29, 3\); expected \(n, 30 or more, 3\)"),
                            ({"data": np.zeros((2, 40, 4))}, r"expected \(n, 30 or more, 3\)"),
                            ({"data": np.zeros((2, 120))}, "expected"),
                            ({"label": np.zeros((2, 2))}, r"expected \(n\)"),
                            ({"label": np.array([0])}, "holds 2 x data, 1 x label"),
                            ({"data": np.zeros((0, 40, 3)), "label": np.zeros(0)}, "holds 0 x data"),
                            ({"label": np.array([0, 3])}, "label 3 of cloud 1; expected 0 to 2"),
                            ({"label": np.array([-1, 0])}, "label -1 of cloud 0"),
                            ({"label": np.array([0, 0.5])}, "label 0.5 of cloud 1"),
                            ({"label": np.array([b"a", b"b"])}, "label is not an array of numbers"),
                            ({"data": nan}, r"cloud 1, point 7: \(0, 0, nan\)")):
        with h5py.File(path, "w") as file:
            for key, value in {**good, **change}.items():
                if value is not None:
                    file[key] = value
        said(message)
    with h5py.File(path, "w") as file:  # 12 TB on paper, nothing in the file
        file.create_dataset("data", (10 ** 9, 1024, 3), "f4", chunks=(1, 1024, 3))
        file["label"] = [0]
    said("is over the limit")
    with h5py.File(path, "w") as file:
        file["data"] = h5py.ExternalLink(str(folder / "ply_data_train0.h5"), "/data")
        file["label"] = [0, 1]
    said("has no array 'data'")
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(40 * 3 * 4))
    with h5py.File(path, "w") as file:  # numbers that lie in any other file
        file.create_dataset("data", (1, 40, 3), "f4", external=[(str(secret), 0, h5py.h5f.UNLIMITED)])
        file["label"] = [0]
    said("data is not an array of numbers")


def test_the_config_of_the_published_recipe_fits_the_data(tmp_path):
    from jea import config
    configs = Path(__file__).parents[3] / "configs"
    loaded = config.load(configs / "point_classification_ea_pct_cls_modelnet40.yaml")
    make("text", tmp_path)
    arguments = {**loaded["data"], "root": tmp_path, "num_points": 30}
    assert arguments.pop("name") == "modelnet40"
    data = ModelNet40(**arguments)
    assert data.scale == pytest.approx((2 / 3, 3 / 2)) and (data.dropout, data.shift, data.jitter) == (0.875, 0.2, 0)
