"""CIFAR, in forged files as Python 2 wrote them."""
import pickle

import numpy as np
import pytest
from PIL import Image

from jea.data import CIFAR10, CIFAR100, DataError


def put(path, value=100, size=(8, 6), mode="RGB", format="JPEG"):
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = value if mode in ("L", "I;16") or isinstance(value, tuple) else (value,) * len(mode)
    Image.new(mode, size, colour).save(path, format)
    return path


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
    with pytest.raises(DataError, match="data_batch_3: batch does not exist"):
        CIFAR10(root=cifar10)
    with pytest.raises(DataError, match="nowhere: no cifar-10-batches-py there \\(it is not a folder\\)"):
        CIFAR10(root=tmp_path / "nowhere")
    with pytest.raises(DataError, match="no cifar-100-python there; looked for the file meta"):
        CIFAR100(root=tmp_path)
    with pytest.raises(DataError, match="unknown split 'valid'"):
        CIFAR10(root=cifar10, split="valid")


# -- Tiny-ImageNet
