"""The .npz format, and saving that survives a kill and a full disk."""
import errno
import os
import subprocess
import sys

import checkpoint_forge as forge
import checkpoint_kills
import numpy as np
import pytest

from jea.checkpoint import CheckpointError, load_npz, read, save_npz

KEYS = ["w", "file", "model/a.b", "../up", "/abs", "a b", "ключ", "a.npy", "x/", "\n", "k" * 300]


@pytest.mark.parametrize("dtype", ["float64", "float32", "int64", "int32", "int16", "int8", "uint64", "uint32",
                                   "uint16", "uint8", "bool"])
@pytest.mark.parametrize("shape", [(), (0, 3), (1,), (3, 4)])
def test_round_trip_is_exact(tmp_path, dtype, shape):
    array = np.random.default_rng(0).integers(0, 256, (*shape, 8), np.uint8).view("uint64").reshape(shape)
    array = array.astype(dtype)
    save_npz(tmp_path / "x.npz", {"w": array})
    got = load_npz(tmp_path / "x.npz")[0]["w"]
    assert got.dtype == array.dtype and got.shape == array.shape and got.tobytes() == array.tobytes()
    assert np.load(tmp_path / "x.npz")["w"].tobytes() == array.tobytes()


def test_any_key_and_meta(tmp_path):
    tensors = {key: np.float32([index]) for index, key in enumerate(KEYS)}
    meta = {"model": {"name": "eanet_resnet50", "num_classes": 21}, "step": 3, "mIoU": 0.5, "text": "ß"}
    save_npz(tmp_path / "x.npz", tensors, meta)
    again, again_meta = load_npz(tmp_path / "x.npz")
    assert list(again) == KEYS and again_meta == meta
    assert all(again[key] == tensors[key] for key in KEYS)


def test_layouts_and_byte_orders(tmp_path):
    base = np.arange(12, dtype=np.float32).reshape(3, 4)
    tensors = {"f": np.asfortranarray(base), "t": base.T, "s": base[::2, 1:], "big": base.astype(">f4"),
               "e": np.broadcast_to(np.float32(2), (2, 3))}
    save_npz(tmp_path / "x.npz", tensors)
    np.savez(tmp_path / "numpy.npz", **tensors)
    np.savez_compressed(tmp_path / "packed.npz", **tensors)
    for name in ("x.npz", "numpy.npz", "packed.npz"):
        for key, array in load_npz(tmp_path / name)[0].items():
            assert array.flags.c_contiguous and array.flags.writeable and array.dtype == np.dtype("float32")
            np.testing.assert_array_equal(array, tensors[key])


def test_half_precision_is_widened_and_said(tmp_path):
    save_npz(tmp_path / "x.npz", {"h": np.float16([1.5])})
    checkpoint = read(tmp_path / "x.npz")
    assert checkpoint.tensors["h"].dtype == np.float32 and "float16 widened to float32" in checkpoint.notes[0]


def test_groups_of_a_training_checkpoint(tmp_path):
    save_npz(tmp_path / "x.npz", {"model/a": np.float32([1]), "optimizer/a": np.float32([2])}, {"step": 9})
    checkpoint = read(tmp_path / "x.npz")
    assert checkpoint.wrapper == "model" and checkpoint.meta == {"step": 9} and list(checkpoint.tensors) == ["a"]
    save_npz(tmp_path / "tf.npz", {"dense/kernel": np.float32([1]), "conv/kernel": np.float32([2])})
    assert list(read(tmp_path / "tf.npz").tensors) == ["dense/kernel", "conv/kernel"]


def test_equal_content_gives_equal_bytes(tmp_path):
    for name in "ab":
        save_npz(tmp_path / name, {"w": np.float32([1])}, {"b": 1, "a": 2})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("tensors, meta, reason", [
    ({"__meta__": np.zeros(1)}, None, "cannot be the name"), ({"": np.zeros(1)}, None, "cannot be the name"),
    ({"a\0b": np.zeros(1)}, None, "cannot be the name"), ({3: np.zeros(1)}, None, "cannot be the name"),
    ({"\ud800": np.zeros(1)}, None, "not valid text"), ({"k": np.array(["x"])}, None, "plain numbers"),
    ({"k": np.array([None])}, None, "plain numbers"), ({"k": np.zeros(1)}, {"a": {1, 2}}, "as JSON"),
    ({"k": np.zeros(1)}, {"loss": float("nan")}, "as JSON"),
])
def test_what_cannot_be_stored(tmp_path, tensors, meta, reason):
    path = tmp_path / "x.npz"
    with pytest.raises(CheckpointError, match=reason) as caught:
        save_npz(path, tensors, meta)
    assert str(caught.value).startswith(f"{path}: ") and os.listdir(tmp_path) == []


def test_bad_places(tmp_path):
    with pytest.raises(CheckpointError, match="is a folder"):
        save_npz(tmp_path, {"a": np.zeros(1)})
    with pytest.raises(CheckpointError, match="folder does not exist"):
        save_npz(tmp_path / "no" / "x.npz", {"a": np.zeros(1)})


def test_a_symbolic_link_stays_one(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "last.npz").symlink_to(tmp_path / "real" / "1.npz")
    save_npz(tmp_path / "last.npz", {"a": np.float32([1])})
    assert (tmp_path / "last.npz").is_symlink() and load_npz(tmp_path / "real" / "1.npz")[0]["a"] == 1


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch, fails):
    path = tmp_path / "x.npz"
    save_npz(path, {"a": np.float32([1])})

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, fails, full)
    with pytest.raises(CheckpointError, match="No space left on device.*untouched.*Free some space") as caught:
        save_npz(path, {"a": np.float32([2])})
    assert str(caught.value).startswith(f"{path}: ")
    monkeypatch.undo()
    assert load_npz(path)[0]["a"] == 1 and os.listdir(tmp_path) == ["x.npz"]


FULL = """
import resource, sys, numpy as np
from jea.checkpoint import CheckpointError
from jea.checkpoint.loading import write
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
try:
    write(sys.argv[1], {f"w{i}": np.full(50_000, 2, np.float32) for i in range(3)})
except CheckpointError as error:
    assert "untouched" in str(error) and str(error).startswith(sys.argv[1] + ": "), error
    sys.exit(7)
"""


@pytest.mark.parametrize("suffix, room", [(".npz", 1000), (".npz", 300_000), (".npz", 600_200), (".pth", 300_000),
                                          (".pkl", 300_000), (".safetensors", 300_000)])
def test_a_disk_that_fills_up(tmp_path, suffix, room):
    """The kernel refuses to let the file grow: in the first tensor, later, and in the zip directory at its end."""
    path = tmp_path / f"x{suffix}"
    path.write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", FULL, str(path), str(room)], capture_output=True, text=True,
                          env=forge.ENVIRONMENT)
    assert done.returncode == 7, done.stderr
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == [path.name]


def test_interrupting_a_save_cleans_up(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_npz(tmp_path / "x.npz", {"a": np.zeros(1)})
    assert os.listdir(tmp_path) == []


def test_leftovers_of_the_dead_are_removed_and_others_kept(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = os.uname().nodename.replace("-", "_")
    names = {f".x.npz.{host}-{dead.pid}-0.tmp": False, f".x.npz.{host}-{os.getpid()}-999999.tmp": False,
             f".x.npz.{host}-{os.getppid()}-0.tmp": True, f".y.npz.{host}-{dead.pid}-0.tmp": True,
             ".x.npz.elsewhere-5-0.tmp": True, ".x.npz.longago-5-0.tmp": False, ".x.npz.notes.tmp": True}
    for name in names:
        (tmp_path / name).write_bytes(b"")
    os.utime(tmp_path / ".x.npz.longago-5-0.tmp", (0, 0))
    save_npz(tmp_path / "x.npz", {"a": np.zeros(1)})
    assert {name for name in names if (tmp_path / name).exists()} == {name for name, kept in names.items() if kept}


def kill_while_saving(folder, times):
    """In a process of its own: Jittor ends the process in which a child is killed."""
    done = subprocess.run([sys.executable, checkpoint_kills.__file__, folder, str(times)], capture_output=True,
                          text=True, env=forge.ENVIRONMENT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_kill_9_while_saving(tmp_path):
    kill_while_saving(tmp_path, 5)


@pytest.mark.slow
def test_kill_9_while_saving_100_times(tmp_path):
    kill_while_saving(tmp_path, 100)
