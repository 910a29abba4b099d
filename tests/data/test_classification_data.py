"""Classification data sets, each on a tiny tree in the published layout."""
import pickle

import numpy as np
import pytest
from PIL import Image

from jea.data import CIFAR10, CIFAR100, DATASETS, DataError, ImageFolder, ShapeClasses, TinyImageNet, map_ordered
from jea.data.check import check_splits
from jea.data.classification import shapes as shape_classes
from jea.data.classification.shapes import SHAPE_CLASSES
from jea.data.views.augment import EvalView


def put(path, value=100, size=(8, 6), mode="RGB", format="JPEG"):
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = value if mode in ("L", "I;16") or isinstance(value, tuple) else (value,) * len(mode)
    Image.new(mode, size, colour).save(path, format)
    return path


# -- class folders

@pytest.fixture
def imagenet(tmp_path):
    """ImageNet's layout; the class folders are made in another order than the sorted one."""
    for k, wnid in enumerate(("n03000000", "n01440764", "n02000000")):
        for n in (2, 10):
            put(tmp_path / "train" / wnid / f"{wnid}_{n}.JPEG", 40 * k)
        put(tmp_path / "val" / wnid / f"ILSVRC2012_val_0000000{k}.JPEG", 40 * k)
    return tmp_path


def test_imagenet_folders(imagenet):
    data = ImageFolder(root=str(imagenet), split="train")
    assert data.class_names == ("n01440764", "n02000000", "n03000000") and data.num_classes == 3 and len(data) == 6
    assert [data.load(i)[1] for i in range(6)] == [0, 0, 1, 1, 2, 2]
    picture, label = data.load(0)
    assert picture.shape == (6, 8, 3) and picture.dtype == np.uint8 and (picture == 40).all() and type(label) is int
    assert data.path(0).endswith("n01440764_10.JPEG")  # as text, 10 sorts before 2
    held_out = ImageFolder(root=imagenet, split="val")
    assert len(held_out) == 3 and [held_out.load(i)[0][0, 0, 0] for i in range(3)] == [40, 80, 0]


@pytest.mark.parametrize("folder", ["validation", "valid"])
def test_other_names_of_val(imagenet, folder):
    (imagenet / "val").rename(imagenet / folder)
    assert len(ImageFolder(root=imagenet, split="val")) == 3
    assert len(ImageFolder(root=imagenet, split=folder)) == 3


def test_a_class_without_held_out_pictures_shifts_no_label(imagenet):
    import shutil
    shutil.rmtree(imagenet / "val" / "n01440764")
    data = ImageFolder(root=imagenet, split="val")
    assert data.num_classes == 3 and [data.load(i)[1] for i in range(2)] == [1, 2]


def test_any_tree_and_nested_pictures(tmp_path):
    put(tmp_path / "cat" / "a" / "b" / "x.png", format="PNG")
    put(tmp_path / "dog" / "y.jpg")
    put(tmp_path / ".hidden" / "z.jpg")
    (tmp_path / "dog" / "notes.txt").write_text("not a picture")
    data = ImageFolder(root=tmp_path, split=None)
    assert data.class_names == ("cat", "dog") and len(data) == 2
    assert ImageFolder(root=tmp_path, split=None, class_names=["Katze", "Hund"]).class_names == ("Katze", "Hund")


def test_kinds_of_files(tmp_path):
    kinds = [("CMYK", 0, "JPEG"), ("L", 77, "JPEG"), ("RGB", 77, "PNG"), ("I;16", 77 * 257, "PNG"), ("RGBA", 77, "PNG")]
    for k, (mode, value, format) in enumerate(kinds):  # PNG inside .JPEG, as in ImageNet
        put(tmp_path / "train" / "c" / f"{k}.JPEG", value, mode=mode, format=format)
    palette = Image.new("P", (8, 6), 3)
    palette.putpalette([77] * 768)
    palette.save(tmp_path / "train" / "c" / "5.JPEG", "PNG")
    data = ImageFolder(root=tmp_path)
    assert len(data) == 6
    for k in range(6):
        picture, _ = data.load(k)
        assert picture.shape == (6, 8, 3) and picture.dtype == np.uint8
        assert (picture == (255 if k == 0 else 77)).all(), (k, picture[0, 0])  # CMYK 0 is no ink: white


def test_broken_pictures_name_the_file(imagenet):
    data = ImageFolder(root=imagenet)
    file = imagenet / "train" / "n01440764" / "n01440764_10.JPEG"
    whole = file.read_bytes()
    half = whole[:len(whole) // 2]
    for content, said in ((b"", "empty"), (half, "broken|not a picture"), (b"hello", "not a picture")):
        file.write_bytes(content)
        with pytest.raises(DataError, match=f"n01440764_10.JPEG: .*({said})"):
            data.load(0)
    file.unlink()
    with pytest.raises(DataError, match="n01440764_10.JPEG: picture does not exist"):
        data.load(0)


def test_trees_that_do_not_fit(imagenet, tmp_path):
    with pytest.raises(DataError, match="nowhere: no such folder"):
        ImageFolder(root=tmp_path / "nowhere")
    with pytest.raises(DataError, match="no folder test for split test; there are: train, val"):
        ImageFolder(root=imagenet, split="test")
    with pytest.raises(DataError, match="3 class folders; expected 1000"):
        ImageFolder(root=imagenet, num_classes=1000)
    with pytest.raises(DataError, match="class_names has 1 names"):
        ImageFolder(root=imagenet, class_names=["a"])
    (imagenet / "val" / "n09999999").mkdir()
    with pytest.raises(DataError, match="val/n09999999: the training pictures have no class n09999999"):
        ImageFolder(root=imagenet, split="val")
    (imagenet / "train" / "n09999999").mkdir()
    with pytest.raises(DataError, match="train/n09999999: no pictures"):
        ImageFolder(root=imagenet)


def test_validation_pictures_that_are_not_sorted_into_classes(tmp_path):
    put(tmp_path / "val" / "ILSVRC2012_val_00000001.JPEG")
    with pytest.raises(DataError, match="val: no class folders; the 1 pictures in it must be sorted into class"):
        ImageFolder(root=tmp_path, split="val")


# -- CIFAR

def old_text(value):
    raw = value if isinstance(value, bytes) else value.encode()
    return b"U" + bytes([len(raw)]) + raw if len(raw) < 256 else b"T" + len(raw).to_bytes(4, "little") + raw


def old_pickle(value):
    """Protocol 2 as Python 2 wrote it, where texts, keys and an array's bytes are byte strings."""
    if isinstance(value, dict):
        return b"}(" + b"".join(old_text(k) + old_pickle(v) for k, v in value.items()) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(map(old_pickle, value)) + b"e"
    if isinstance(value, int):
        return b"K" + bytes([value])
    if isinstance(value, np.ndarray):
        shape = b"".join(b"J" + n.to_bytes(4, "little") for n in value.shape)
        dtype = b"cnumpy\ndtype\n" + old_text("u1") + b"K\0K\1\x87R(K\3" + old_text("|") \
            + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
        return b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85" + old_text("b") + b"\x87R" \
            b"(K\1(" + shape + b"t" + dtype + b"\x89" + old_text(value.tobytes()) + b"tb"
    return old_text(value)


def write_old(path, value):
    path.write_bytes(b"\x80\x02" + old_pickle(value) + b".")


PLANES = np.random.default_rng(0).integers(0, 256, (6, 3, 32, 32), np.uint8)
LABELS = [3, 0, 9, 1, 8, 5]


@pytest.fixture
def cifar10(tmp_path):
    """cifar-10-batches-py with one picture per training batch and one test picture."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for k in range(6):
        name = "test_batch" if k == 5 else f"data_batch_{k + 1}"
        write_old(folder / name, {"batch_label": f"batch {k}", "labels": [LABELS[k]], "data": PLANES[k].reshape(1, -1),
                                  "filenames": [f"{k}.png"]})
    write_old(folder / "batches.meta", {"num_cases_per_batch": 1, "label_names": [f"name {c}" for c in range(10)],
                                        "num_vis": 0})
    return folder


def test_the_forged_pickles_are_what_python_2_wrote(cifar10):
    found = pickle.loads((cifar10 / "data_batch_2").read_bytes(), encoding="bytes")
    assert np.array_equal(found[b"data"], PLANES[1].reshape(1, 3072)) and found[b"labels"] == [0]


@pytest.mark.parametrize("up", [0, 1])
def test_cifar10(cifar10, up):
    data = CIFAR10(root=str([cifar10, cifar10.parent][up]), split="train")
    assert len(data) == 5 and data.num_classes == 10 and data.class_names[3] == "name 3" and data.root == cifar10
    for k in range(5):
        picture, label = data.load(k)
        assert label == LABELS[k] and type(label) is int
        assert picture.dtype == np.uint8 and np.array_equal(picture, PLANES[k].transpose(1, 2, 0))
    for split in ("test", "val"):
        held_out = CIFAR10(root=cifar10, split=split)
        assert len(held_out) == 1 and held_out.load(0)[1] == 5


def test_a_dark_batch_whose_bytes_are_text(cifar10):
    dark = PLANES[:1] // 2  # below 128: the byte string of Python 2 is valid UTF-8
    write_old(cifar10 / "test_batch", {"labels": [1], "data": dark.reshape(1, -1)})
    assert np.array_equal(CIFAR10(root=cifar10, split="test").load(0)[0], dark[0].transpose(1, 2, 0))


def test_workers_read_cifar_themselves(cifar10):
    data = CIFAR10(root=cifar10)
    assert len(pickle.dumps(data)) < 3000
    copy = pickle.loads(pickle.dumps(data))
    assert len(copy) == 5 and np.array_equal(copy.load(4)[0], data.load(4)[0])


def test_saved_again_by_python_3(cifar10):
    value = {b"labels": [2], b"data": PLANES[:1].reshape(1, -1)}
    (cifar10 / "test_batch").write_bytes(pickle.dumps(value, protocol=4))
    assert CIFAR10(root=cifar10, split="test").load(0)[1] == 2


def test_cifar100_takes_the_fine_labels(tmp_path):
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for name in ("train", "test"):
        write_old(folder / name, {"fine_labels": [99, 7], "coarse_labels": [1, 2], "data": PLANES[:2].reshape(2, -1)})
    write_old(folder / "meta", {"fine_label_names": [f"f{c}" for c in range(100)], "coarse_label_names": ["c"] * 20})
    data = CIFAR100(root=tmp_path)
    assert len(data) == 2 and data.num_classes == 100 and data.class_names[99] == "f99"
    assert [data.load(i)[1] for i in range(2)] == [99, 7]


class Evil:
    def __reduce__(self):
        return eval, ("open('/tmp/evil', 'w')",)


@pytest.mark.parametrize("content, said", [
    (pickle.dumps(Evil()), "eval, which is not on the list"),
    (pickle.dumps([1]), "holds list, not a dict"),
    (b"\x80\x02}", "cut off"),
    (b"", "cut off"),
    (pickle.dumps({"data": np.zeros((1, 3072), np.float32), "labels": [1]}), "not a uint8 array"),
    (pickle.dumps({"data": np.zeros((1, 1024), np.uint8), "labels": [1]}), "not a uint8 array"),
    (pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [10]}), "label 10; expected 0 to 9"),
    (pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [True]}), "label True"),
    (pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [1]}), "not a list of 2 labels"),
    (pickle.dumps({"labels": [1]}), "not a uint8 array"),
])
def test_cifar_files_that_are_not(cifar10, content, said):
    (cifar10 / "test_batch").write_bytes(content)
    with pytest.raises(DataError, match=f"test_batch: .*{said}"):
        CIFAR10(root=cifar10, split="test")


def test_cifar_that_is_not_there(cifar10, tmp_path):
    (cifar10 / "data_batch_3").unlink()
    with pytest.raises(DataError, match="data_batch_3: cannot be read: No such file"):
        CIFAR10(root=cifar10)
    with pytest.raises(DataError, match="nowhere: no cifar-10-batches-py there \\(it is not a folder\\)"):
        CIFAR10(root=tmp_path / "nowhere")
    with pytest.raises(DataError, match="no cifar-100-python there; looked for the file meta"):
        CIFAR100(root=tmp_path)
    with pytest.raises(DataError, match="unknown split 'valid'"):
        CIFAR10(root=cifar10, split="valid")


# -- Tiny-ImageNet

WNIDS = ("n02124075", "n01443537", "n04067472")


@pytest.fixture
def tiny(tmp_path):
    root = tmp_path / "tiny-imagenet-200"
    for k, wnid in enumerate(WNIDS):
        for n in range(2):
            put(root / "train" / wnid / "images" / f"{wnid}_{n}.JPEG", 50 * k, (64, 64), mode="L" if n else "RGB")
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t10\t63\t58\n")
    for k, wnid in ((0, WNIDS[2]), (1, WNIDS[0])):
        put(root / "val" / "images" / f"val_{k}.JPEG", 90 + k, (64, 64))
    (root / "val" / "val_annotations.txt").write_text(
        f"val_0.JPEG\t{WNIDS[2]}\t0\t32\t44\t62\nval_1.JPEG\t{WNIDS[0]}\t52\t55\t57\t59\n")
    put(root / "test" / "images" / "test_0.JPEG", 1, (64, 64))
    (root / "wnids.txt").write_text("".join(f"{wnid}\n" for wnid in WNIDS))
    (root / "words.txt").write_text("n01443537\tgoldfish, Carassius auratus\nn02124075\tEgyptian cat\nn9\tentity\n")
    return root


@pytest.mark.parametrize("up", [0, 1])
def test_tiny_imagenet_as_published(tiny, up):
    data = TinyImageNet(root=str([tiny, tiny.parent][up]))
    assert data.wnids == ("n01443537", "n02124075", "n04067472") and data.num_classes == 3
    assert data.class_names == ("goldfish", "Egyptian cat", "n04067472")
    assert [data.load(i)[1] for i in range(6)] == [0, 0, 1, 1, 2, 2]
    assert [data.load(i)[0][0, 0].tolist() for i in (1, 2)] == [[50] * 3, [0] * 3]
    assert data.load(1)[0].shape == (64, 64, 3)  # a grey file
    held_out = TinyImageNet(root=tiny, split="val")
    assert [(held_out.load(i)[1], int(held_out.load(i)[0][0, 0, 0])) for i in range(2)] == [(2, 90), (1, 91)]


def test_tiny_imagenet_as_class_folders(tmp_path):
    for part in ("train", "valid"):
        for wnid in WNIDS:
            put(tmp_path / part / wnid / "x.JPEG", size=(64, 64))
    assert len(TinyImageNet(root=tmp_path)) == 3
    held_out = TinyImageNet(root=tmp_path, split="val")
    assert [held_out.load(i)[1] for i in range(3)] == [0, 1, 2] and held_out.class_names == tuple(sorted(WNIDS))


def test_faults_of_tiny_imagenet(tiny, tmp_path):
    annotations = tiny / "val" / "val_annotations.txt"
    whole = annotations.read_text()
    annotations.write_text(whole + "val_2.JPEG\tn00000000\t0\t0\t1\t1\n")
    with pytest.raises(DataError, match="val_annotations.txt, line 3: 'val_2.JPEG"):
        TinyImageNet(root=tiny, split="val")
    annotations.write_text(whole + f"val_2.JPEG\t{WNIDS[0]}\t0\t0\t1\t1\n")
    with pytest.raises(DataError, match="val_2.JPEG: picture does not exist, but .*val_annotations.txt lists it"):
        TinyImageNet(root=tiny, split="val")
    annotations.write_text("\n")
    with pytest.raises(DataError, match="the list is empty"):
        TinyImageNet(root=tiny, split="val")
    annotations.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="val_annotations.txt: cannot be read"):
        TinyImageNet(root=tiny, split="val")
    with pytest.raises(DataError, match="test has no labels"):
        TinyImageNet(root=tiny, split="test")
    with pytest.raises(DataError, match="elsewhere: no Tiny-ImageNet there"):
        TinyImageNet(root=tmp_path / "elsewhere")


# -- the synthetic one

def test_shape_classes_are_a_function_of_seed_split_and_index():
    a, b = ShapeClasses(), ShapeClasses(num_train=20)
    assert len(a) == 5000 and len(b) == 20 and len(ShapeClasses(split="val")) == 1000
    order = [7, 3, 7]
    assert all(np.array_equal(a.load(i)[0], b.load(i)[0]) for i in order)
    assert a.load(3)[0].shape == (48, 48, 3) and a.load(3)[0].dtype == np.uint8
    others = (ShapeClasses(split="val"), ShapeClasses(seed=1))
    assert not any(np.array_equal(a.load(3)[0], other.load(3)[0]) for other in others)
    assert ShapeClasses(size=32).load(0)[0].shape == (32, 32, 3)


def test_shape_classes_take_turns_and_have_names():
    data = ShapeClasses(num_train=30)
    assert [data.load(i)[1] for i in range(12)] == [*range(10), 0, 1]
    assert data.num_classes == len(set(SHAPE_CLASSES)) == 10 and SHAPE_CLASSES[:3] == ("plain disk", "plain cross",
                                                                                       "barred disk")
    with pytest.raises(IndexError):
        data.load(30)


def test_what_is_drawn(monkeypatch):
    drawn = []
    for name, argument in (("_pattern", 1), ("outline_distance", 0)):
        real = getattr(shape_classes, name)
        monkeypatch.setattr(shape_classes, name, lambda *a, real=real, k=argument: drawn.append(a[k]) or real(*a))
    data = ShapeClasses()
    for label in range(10):
        data.load(label)
    found = [f"{texture} {outline}" for outline, texture in zip(drawn[::2], drawn[1::2])]
    assert found == list(SHAPE_CLASSES)
    for label in range(10):  # the object's colours are far from the ground's; noise alone spans 14 levels
        picture = data.load(label)[0].astype(int)
        assert np.abs(picture - np.median(picture, axis=(0, 1))).max() > 40


def test_textures():
    """Bars vary from row to row, stripes from column to column, the others in both; turned by at most 0.15."""
    for seed in range(5):
        along = {}
        for texture in shape_classes.TEXTURES:
            pattern = shape_classes._pattern(np.random.default_rng(seed), texture, 200)
            assert pattern.shape == (200, 200) and pattern.min() >= -1 and pattern.max() <= 1
            along[texture] = np.abs(np.diff(pattern, axis=0)).mean(), np.abs(np.diff(pattern, axis=1)).mean()
        assert along["plain"] == (0, 0)
        assert along["barred"][0] > 6 * along["barred"][1] and along["striped"][1] > 6 * along["striped"][0]
        assert all(0.8 < along[texture][0] / along[texture][1] < 1.25 for texture in ("checked", "dotted"))
        # A period of 5 to 7 pixels: sin goes up and down by 4 in one.
        assert 4 / 7.2 < along["barred"][0] < 4 / 4.9


@pytest.mark.parametrize("options, said", [({"split": "test"}, "unknown split 'test'"), ({"size": 8}, "size is 8"),
                                           ({"num_val": 0}, "num_val 0")])
def test_wrong_arguments(options, said):
    with pytest.raises(DataError, match=said):
        ShapeClasses(**options)


# -- all

def test_every_classification_data_set_is_in_the_table():
    assert {DATASETS[name] for name in ("image_folder", "cifar10", "cifar100", "tiny_imagenet", "shape_classes")} == \
        {ImageFolder, CIFAR10, CIFAR100, TinyImageNet, ShapeClasses}


def test_evaluation_batches_in_workers():
    view = EvalView(ShapeClasses(split="val", num_val=7), 32, 1.0)
    chunks = [range(0, 4), range(4, 7)]
    here = list(map_ordered(view.test_batch, chunks, 0))
    there = list(map_ordered(view.test_batch, chunks, 2))
    assert [len(labels) for _, labels in here] == [4, 3] and here[0][0].shape == (4, 3, 32, 32)
    for (a, x), (b, y) in zip(here, there):
        assert np.array_equal(a, b) and np.array_equal(x, y)


def test_jea_data_check_of_many_classes(tmp_path):
    """More classes than a label picture can have; a doubled and a broken picture are found."""
    for k in range(300):
        put(tmp_path / "train" / f"c{k:03d}" / "a.png", (k % 256, k // 256, 7), format="PNG")
    put(tmp_path / "train" / "c007" / "b.png", (7, 0, 7), format="PNG")
    (tmp_path / "train" / "c299" / "z.png").write_bytes(b"")
    report = check_splits(ImageFolder, {"root": str(tmp_path)}, ["train"], num_workers=0, progress=False)
    assert report.pictures == {"train": 302} and report.pictures_with[[0, 7, 299]].tolist() == [1, 2, 1]
    assert len(report.problems) == 2 and "same picture" in report.problems[0] and "z.png" in report.problems[1]
