"""The .pth reader on files made byte by byte; no PyTorch is needed."""
import gc
import subprocess
import sys
import tracemalloc

import checkpoint_forge as forge
import numpy as np
import pytest

from jea.checkpoint import CheckpointError, outline, read

TWELVE = np.arange(12, dtype="<f4")


def write(container, path, body, raw, count):
    if container == "zip":
        return forge.torch_zip(path, body, {"0": raw})
    return forge.torch_legacy(path, body, {"0": (count, raw)})


@pytest.mark.parametrize("container", ["zip", "legacy"])
@pytest.mark.parametrize("offset, size, stride, expected", [
    (0, (3, 4), (4, 1), TWELVE.reshape(3, 4)),
    (0, (4, 3), (1, 4), TWELVE.reshape(3, 4).T),
    (5, (2, 2), (4, 1), np.float32([[5, 6], [9, 10]])),
    (1, (3,), (4,), np.float32([1, 5, 9])),
    (7, (2, 3), (0, 0), np.full((2, 3), 7, np.float32)),
    (3, (1, 2, 1), (99, 2, 1000), np.float32([3, 5]).reshape(1, 2, 1)),
    (11, (), (), np.float32(11)),
    (12, (0, 3), (3, 1), np.zeros((0, 3), np.float32)),
    (0, (2, 2, 2, 1, 1, 1, 1), (6, 3, 1, 1, 1, 1, 1),
     np.float32([0, 1, 3, 4, 6, 7, 9, 10]).reshape(2, 2, 2, 1, 1, 1, 1)),
], ids=["contiguous", "transposed", "sliced", "column", "expanded", "ones", "scalar", "empty", "rank7"])
def test_views_of_a_storage(tmp_path, container, offset, size, stride, expected):
    body = forge.mapping({"w": forge.tensor("0", "FloatStorage", 12, offset, size, stride)})
    got = read(write(container, tmp_path / "x", body, TWELVE.tobytes(), 12)).tensors["w"]
    assert got.dtype == np.dtype("float32") and got.shape == expected.shape
    assert got.flags.c_contiguous and got.flags.writeable
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("container", ["zip", "legacy"])
@pytest.mark.parametrize("kind, raw, expected", [
    ("DoubleStorage", np.float64([1.5, -2]).tobytes(), np.float64([1.5, -2])),
    ("HalfStorage", np.float16([1.5, 6e-8]).tobytes(), np.float32([1.5, np.float16(6e-8)])),
    ("BFloat16Storage", b"\x80\x3f\x49\xc0", np.float32([1, -3.140625])),
    ("LongStorage", np.int64([-1, 2 ** 62]).tobytes(), np.int64([-1, 2 ** 62])),
    ("IntStorage", np.int32([-1, 7]).tobytes(), np.int32([-1, 7])),
    ("ShortStorage", np.int16([-1, 7]).tobytes(), np.int16([-1, 7])),
    ("CharStorage", b"\xff\x07", np.int8([-1, 7])),
    ("ByteStorage", b"\xff\x07", np.uint8([255, 7])),
    ("BoolStorage", b"\x00\x07", np.array([False, True])),
])
def test_element_types(tmp_path, container, kind, raw, expected):
    body = forge.mapping({"w": forge.tensor("0", kind, 2, 0, (2,), (1,))})
    checkpoint = read(write(container, tmp_path / "x", body, raw, 2))
    got = checkpoint.tensors["w"]
    assert got.dtype == expected.dtype and got.tobytes() == expected.tobytes()
    assert any("widened to float32" in note for note in checkpoint.notes) == (kind in ("HalfStorage",
                                                                                       "BFloat16Storage"))


def test_tensors_that_share_a_storage_are_read_once(tmp_path):
    body = forge.mapping({"q": forge.tensor("0", "FloatStorage", 12, 0, (12,), (1,)),
                          "k": forge.tensor("0", "FloatStorage", 12, 4, (4,), (1,))})
    tensors = read(forge.torch_zip(tmp_path / "x", body, {"0": TWELVE.tobytes()})).tensors
    np.testing.assert_array_equal(tensors["k"], [4, 5, 6, 7])
    assert np.shares_memory(tensors["q"], tensors["k"])


@pytest.mark.parametrize("container", ["zip", "legacy"])
@pytest.mark.parametrize("count", [12, 13], ids=["read", "refused"])
def test_memory_is_free_at_once(tmp_path, container, count):
    """No reference cycle keeps the storages until Python's garbage collector comes by, also after an error."""
    size = 4 << 20
    body = forge.mapping({"a": forge.tensor("0", "ByteStorage", size, 0, (size,), (1,)),
                          "b": forge.tensor("1", "FloatStorage", count, 0, (1,), (1,))})
    if container == "zip":
        path = forge.torch_zip(tmp_path / "x", body, {"0": bytes(size), "1": TWELVE.tobytes()})
    else:
        path = forge.torch_legacy(tmp_path / "x", body, {"0": (size, bytes(size)), "1": (12, TWELVE.tobytes())})
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        for _ in range(4):
            try:
                read(path)
            except CheckpointError:
                assert count == 13
        assert tracemalloc.get_traced_memory()[0] < size
    finally:
        tracemalloc.stop()
        gc.enable()


def test_big_endian_zip(tmp_path):
    body = forge.mapping({"w": forge.tensor("0", "FloatStorage", 12, 0, (3, 4), (4, 1))})
    path = forge.torch_zip(tmp_path / "x", body, {"0": TWELVE.astype(">f4").tobytes()}, byteorder=b"big")
    got = read(path).tensors["w"]
    assert got.dtype.isnative
    np.testing.assert_array_equal(got, TWELVE.reshape(3, 4))


def test_big_endian_legacy_is_refused(tmp_path):
    system = forge.SYSTEM.replace(b"little_endian\x88", b"little_endian\x89")
    path = forge.torch_legacy(tmp_path / "x", forge.mapping({}), system=system)
    with pytest.raises(CheckpointError, match="big-endian machine"):
        read(path)


def test_legacy_storage_view(tmp_path):
    view = b"(" + forge.text("v") + forge.whole(4) + forge.whole(6) + b"t"  # elements 4 to 9
    body = forge.mapping({"w": forge.tensor("0", "FloatStorage", 12, 2, (4,), (1,), view=view)})
    path = forge.torch_legacy(tmp_path / "x", body, {"0": (12, TWELVE.tobytes())})
    np.testing.assert_array_equal(read(path).tensors["w"], [6, 7, 8, 9])
    body = forge.mapping({"w": forge.tensor("0", "FloatStorage", 12, 2, (5,), (1,), view=view)})
    with pytest.raises(CheckpointError, match="beyond its storage"):
        read(forge.torch_legacy(tmp_path / "x", body, {"0": (12, TWELVE.tobytes())}))


def state(value, keys=("w",)):
    return forge.mapping({key: forge.tensor("0", "FloatStorage", 12, value, (1,), (1,)) for key in keys})


def opened(tmp_path, entries, **how):
    return read(forge.torch_zip(tmp_path / "x.pth", forge.mapping(entries), {"0": TWELVE.tobytes()}), **how)


def test_wrappers(tmp_path):
    namespace = b"cargparse\nNamespace\n)\x81" + forge.mapping({"lr": b"G" + b"\x3f\xe0" + b"\0" * 6}) + b"b"
    entries = {"epoch": forge.whole(7), "arch": forge.text("T2t"), "args": namespace,
               "optimizer": forge.mapping({"state": state(3)}), "state_dict": state(1), "state_dict_ema": state(2)}
    averaged = opened(tmp_path, entries)
    assert (averaged.wrapper, averaged.tensors["w"][0]) == ("state_dict_ema", 2)
    assert averaged.meta == {"epoch": 7, "arch": "T2t", "args": {"lr": 0.5}}
    assert any("state_dict" in note for note in averaged.notes) and any("optimizer" in note for note in averaged.notes)
    raw = opened(tmp_path, entries, ema=False)
    assert (raw.wrapper, raw.tensors["w"][0]) == ("state_dict", 1)
    with pytest.raises(CheckpointError, match="has no state dict under 'net'.*state_dict_ema"):
        opened(tmp_path, entries, wrapper="net")


def test_averaged_weights_and_the_choice_are_named(tmp_path):
    """timm and the official EAMLP and T2T-ViT code evaluate the averaged ones."""
    for name in ("state_dict_ema", "model_ema", "ema_state_dict", "params_ema", "ema"):
        entries = {"state_dict": state(1), name: state(2)}
        averaged, raw = opened(tmp_path, entries), opened(tmp_path, entries, ema=False)
        assert (averaged.wrapper, averaged.tensors["w"][0]) == (name, 2)
        assert (raw.wrapper, raw.tensors["w"][0]) == ("state_dict", 1)
        assert averaged.notes[0] == (f"took {name!r}, averaged weights, which timm and the official EAMLP and T2T-ViT "
                                     "code evaluate; the file also has state_dict (ema=False, or --no-ema, takes it)")
        assert raw.notes[0] == f"took 'state_dict'; the file also has {name}"
    only = opened(tmp_path, {"model_ema": state(2)}, ema=False)
    assert "the only state dict in the file; averaged weights were not wanted" in only.notes[0]


@pytest.mark.parametrize("names, value", [
    (["model", "state_dict"], 1), (["state_dict", "model"], 1), (["state_dict", "params", "net", "generator"], 1),
    (["model", "model"], 1), (["model", "model_ema"], 1)])
def test_wrappers_inside_of_wrappers(tmp_path, names, value):
    entries = state(value)
    for depth, name in enumerate(reversed(names)):
        entries = forge.mapping({name: entries, f"epoch{depth}": forge.whole(depth)})
    path = forge.torch_zip(tmp_path / "x.pth", entries, {"0": TWELVE.tobytes()})
    checkpoint = read(path)
    assert checkpoint.wrapper == "/".join(names) and checkpoint.tensors["w"][0] == value
    around = {"epoch0": 0}
    for depth, name in enumerate(reversed(names[:-1]), 1):
        around = {f"epoch{depth}": depth, name: around}
    assert checkpoint.meta == around
    assert read(path, wrapper="/".join(names)).wrapper == checkpoint.wrapper


def test_which_of_several_wrapped_twice(tmp_path):
    """The least wrapped, as files with one that is not wrapped twice have always been read."""
    entries = {"model": forge.mapping({"state_dict": state(1), "state_dict_ema": state(2)}), "net": state(3),
               "optimizer": forge.mapping({"state_dict": state(4)})}
    assert opened(tmp_path, entries).wrapper == "model/state_dict_ema"
    raw = opened(tmp_path, entries, ema=False)
    assert raw.wrapper == "net"
    assert raw.notes[0] == "took 'net'; the file also has model/state_dict, model/state_dict_ema"
    assert any("tensors not read: those in model, optimizer" in note for note in raw.notes)


def test_names_that_are_not_known_are_not_unwrapped(tmp_path):
    for entries in ({"task": forge.mapping({"state_dict": state(1)})}, {"model": forge.mapping({"task": state(1)})},
                    {"net": forge.mapping({"net": forge.mapping({"net": forge.mapping({"net": forge.mapping(
                        {"net": state(1)})})})})}):
        with pytest.raises(CheckpointError, match="holds no tensors under names"):
            opened(tmp_path, entries)
    tensors = opened(tmp_path, {"net": forge.mapping({"w": forge.tensor("0", "FloatStorage", 12, 5, (1,), (1,)),
                                                      "state_dict": state(1)})})
    assert tensors.wrapper == "net" and tensors.tensors["w"][0] == 5  # has tensors of its own


def test_a_wrapper_that_holds_itself(tmp_path):
    body = b"}q\x00" + forge.text("model") + b"h\x00s" + forge.text("state_dict") + state(1) + b"s"
    path = forge.torch_zip(tmp_path / "x.pth", body, {"0": TWELVE.tobytes()})
    assert read(path).wrapper == "state_dict"
    assert read(path, wrapper="model/state_dict").tensors["w"][0] == 1


def test_only_the_chosen_tensors_are_read(tmp_path):
    entries = {"net": state(1), "optimizer": forge.mapping({
        "exp_avg": forge.tensor("1", "FloatStorage", 10 ** 12, 0, (10 ** 12,), (1,))})}
    assert list(opened(tmp_path, entries).tensors) == ["w"]


def test_outline_checks_every_tensor_and_reads_none(tmp_path):
    tensors = {key: forge.tensor(key, "FloatStorage", 12, 0, (12,), (1,)) for key in "ab"}
    body = forge.mapping({"net": forge.mapping(tensors)})
    whole = forge.torch_zip(tmp_path / "x.pth", body, {"a": TWELVE.tobytes(), "b": TWELVE.tobytes()})
    found = outline(whole)
    assert found.wrapper == "net" and [tensor.shape for tensor in found.tensors.values()] == [(12,), (12,)]
    assert not any(isinstance(tensor, np.ndarray) for tensor in found.tensors.values())
    short = forge.torch_zip(tmp_path / "y.pth", body, {"a": TWELVE.tobytes(), "b": TWELVE.tobytes()[:-4]})
    with pytest.raises(CheckpointError, match=f"^{tmp_path / 'y.pth'}: "):
        outline(short)


def test_unknown_wrappers(tmp_path):
    one = opened(tmp_path, {"backbone": state(4), "best": forge.tensor("0", "FloatStorage", 12, 0, (1,), (1,))})
    assert one.wrapper == "backbone" and one.tensors["w"][0] == 4
    with pytest.raises(CheckpointError, match="several state dicts.*first, second"):
        opened(tmp_path, {"first": state(1), "second": state(2)})
    assert opened(tmp_path, {"first": state(1), "second": state(2)}, wrapper="second").tensors["w"][0] == 2


def test_data_parallel_prefix(tmp_path):
    body = {"module.a": forge.tensor("0", "FloatStorage", 12, 1, (1,), (1,)),
            "module.b": forge.tensor("0", "FloatStorage", 12, 2, (1,), (1,))}
    checkpoint = opened(tmp_path, body)
    assert list(checkpoint.tensors) == ["a", "b"] and any("module." in note for note in checkpoint.notes)
    body["c"] = body["module.a"]
    assert list(opened(tmp_path, body).tensors) == ["module.a", "module.b", "c"]


def test_pytorchs_averaged_model(tmp_path):
    """torch.optim.swa_utils.AveragedModel, torchvision's model_ema: a counter beside DataParallel's prefix."""
    one = forge.tensor("0", "FloatStorage", 12, 1, (1,), (1,))
    assert list(opened(tmp_path, {"model_ema": forge.mapping({"n_averaged": one, "module.a": one})}).tensors) == ["a"]
    assert list(opened(tmp_path, {"n_averaged": one, "a": one}).tensors) == ["n_averaged", "a"]


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "module.module."])
def test_prefixes_of_compiled_models(tmp_path, prefix):
    body = {f"{prefix}{key}": forge.tensor("0", "FloatStorage", 12, 1, (1,), (1,)) for key in ("a", "module.b")}
    assert list(opened(tmp_path, body).tensors) == ["a", "module.b"]


@pytest.mark.parametrize("content, reason", [
    (b"", "is empty"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
    (b"\n<!DOCTYPE html><html></html>", "web page"),
    (b"\x1f\x8b\x08\0\0\0", "gunzip"),
    (b"\0" * 257 + b"ustar\x0000" + b"\0" * 300, "tar archive"),
    (b"hello, world\n", "no checkpoint that jea knows"),
    (b"PK\x05\x06" + b"\0" * 18, "empty zip archive"),
    (b"\x93NUMPY\x01\0", "single numpy array"),
    (b"\x80\x02K\x01.", "not a state dict"),
    (b"\x80\x02}.", "holds no tensors"),
])
def test_what_is_not_a_checkpoint(tmp_path, content, reason):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=reason) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_paths_that_are_not_files(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        read(tmp_path / "absent.pth")
    with pytest.raises(CheckpointError, match="is a folder"):
        read(tmp_path)


def test_torchscript_is_named(tmp_path):
    path = forge.torch_zip(tmp_path / "x.pt", forge.mapping({}), **{"constants.pkl": b"\x80\x02).", "code/a.py": b""})
    with pytest.raises(CheckpointError, match="TorchScript"):
        read(path)


def test_importing_needs_neither_torch_nor_jittor():
    code = ("import sys, jea.checkpoint, jea.commands.convert, jea.commands.inspect\n"
            "bad = {'torch', 'jittor', 'safetensors'} & set(sys.modules)\nsys.exit(f'imported {bad}' if bad else 0)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          env=forge.ENVIRONMENT)
    assert done.returncode == 0, done.stderr
