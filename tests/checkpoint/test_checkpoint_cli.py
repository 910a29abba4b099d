"""jea inspect and jea convert."""
import json

import checkpoint_forge as forge
import numpy as np
import pytest

from jea.checkpoint import KeyMap, git_blob_id, load_npz, read, save_npz
from jea.checkpoint.loading import write
from jea.commands import convert, inspect
from jea.errors import ConfigError

TENSORS = {"extractor.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
           "extractor.running_mean": np.float32([1, 2]),
           "extractor.num_batches_tracked": np.array(0), "head.bias": np.float32([3])}


class Var:
    """As much of a Jittor Var as the converter needs."""

    def __init__(self, shape):
        self.shape, self.dtype = list(shape), "float32"


class Model:
    key_maps = (KeyMap(name="toy", marker="extractor.", rules=(("extractor.", "backbone."),)),
                KeyMap(name="toy stem", marker="stem.", rules=(("stem.", "backbone."),), partial=("head.",)))

    def __init__(self, num_classes):
        self.num_classes = num_classes

    def state_dict(self):
        return {"backbone.weight": Var((2, 3)), "backbone.running_mean": Var((2,)),
                "head.bias": Var((self.num_classes,))}


@pytest.fixture
def toy(monkeypatch):
    """A model registry with one model, "toy"."""
    def create_model(name, **kwargs):
        if name != "toy":
            raise ConfigError(f"unknown model {name!r}")
        return Model(**kwargs)

    def infer_kwargs(name, tensors):
        return {"num_classes": tensors["head.bias"].shape[0]} if "head.bias" in tensors else {"num_classes": 1}

    monkeypatch.setattr("jea.models.create_model", create_model)
    monkeypatch.setattr("jea.models.infer_kwargs", infer_kwargs)


def test_git_blob_id(tmp_path, capsys, monkeypatch):
    """What `git hash-object` prints for the same content."""
    for content, wanted in ((b"", "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"),
                            (b"hello\n", "ce013625030ba8dba906f756967f9e9ca394464a")):
        (tmp_path / "x").write_bytes(content)
        assert git_blob_id(tmp_path / "x") == wanted
    save_npz(tmp_path / "x.npz", TENSORS)
    monkeypatch.setitem(inspect.KNOWN_BLOBS, git_blob_id(tmp_path / "x.npz"), "the toy")
    assert inspect.main([str(tmp_path / "x.npz")]) == 0
    assert f"  git blob    {git_blob_id(tmp_path / 'x.npz')}: the toy\n" in capsys.readouterr().out


def test_inspect(tmp_path, capsys):
    namespace = b"cargparse\nNamespace\n)\x81" + forge.mapping({"lr": b"K\2", "bad": b"G\x7f\xf8\0\0\0\0\0\0"}) + b"b"
    body = forge.mapping({"step": forge.whole(30000), "args": namespace, "net": forge.mapping({
        "a.weight": forge.tensor("0", "FloatStorage", 12, 0, (4, 3), (1, 4)),
        "a.running_mean": forge.tensor("0", "FloatStorage", 12, 0, (2,), (1,)),
        "b": forge.tensor("1", "BFloat16Storage", 1, 0, (), ())})})
    path = forge.torch_zip(tmp_path / "x.pth", body, {"0": bytes(48), "1": bytes(2)})
    assert inspect.main([str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(path)
    assert lines[1] == f"  format      torch-zip, under 'net', {path.stat().st_size:,} bytes"
    assert lines[2] == "  contents    3 tensors (2 float32, 1 bfloat16), 13 parameters"
    assert lines[3] == f"  git blob    {git_blob_id(path)}"
    assert "  step        30000" in lines and "  args        {'lr': 2, 'bad': nan}" in lines
    assert [line.split() for line in lines[-3:]] == [
        ["a.weight", "4x3", "float32", "strided"],
        ["a.running_mean", "2", "float32", "shares", "memory", "with", "a.weight"], ["b", "scalar", "bfloat16"]]
    assert inspect.main([str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["parameters"] == 13 and found["wrapper"] == "net" and found["meta"]["step"] == 30000
    assert found["state"][0] == {"key": "a.weight", "shape": [4, 3], "dtype": "float32", "contiguous": False,
                                 "shared": None}


def test_inspect_names_wrappers_in_wrappers_and_the_averaged(tmp_path, capsys):
    inner = forge.mapping({"w": forge.tensor("0", "FloatStorage", 1, 0, (1,), (1,))})
    body = forge.mapping({"model": forge.mapping({"state_dict": inner, "state_dict_ema": inner})})
    path = forge.torch_zip(tmp_path / "x.pth", body, {"0": bytes(4)})
    assert inspect.main([str(path)]) == 0
    said = capsys.readouterr().out
    assert "torch-zip, under 'model/state_dict_ema'," in said and "averaged weights, which timm" in said
    assert inspect.main([str(path), "--no-ema"]) == 0
    assert "torch-zip, under 'model/state_dict'," in capsys.readouterr().out


def test_errors_are_one_line_and_exit_code_2(tmp_path, capsys):
    path = tmp_path / "x.pth"
    path.write_bytes(b"<html>")
    for run in (lambda: inspect.main([str(path)]), lambda: convert.main([str(path), str(tmp_path / "y.npz")])):
        assert run() == 2
        captured = capsys.readouterr()
        assert captured.err.count("\n") == 1 and f"error: {path}: is a web page" in captured.err


@pytest.mark.parametrize("arguments, reason", [
    (["x.pth", "x.pth"], "same file"), (["x.pth", "./x.pth"], "same file"), (["x.pth", "y.bin"], "suffix"),
    (["x.pth", "y.npz", "--num-classes", "3"], "give --model"), (["x.pth", "y.npz", "--arg", "a b"], "KEY=VALUE"),
    (["x.pth"], "required"),
])
def test_wrong_calls_exit_with_2(capsys, arguments, reason):
    with pytest.raises(SystemExit) as caught:
        convert.main(arguments)
    assert caught.value.code == 2 and reason in capsys.readouterr().err


@pytest.mark.parametrize("main", [inspect.main, convert.main])
def test_help_fits_a_screen_and_shows_an_example(capsys, main):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    text = capsys.readouterr().out
    assert caught.value.code == 0 and text.count("\n") <= 30 and "example" in text and "jea " in text


def test_convert_without_a_model_keeps_the_names(tmp_path, capsys):
    source = tmp_path / "in.pth"
    write(source, {f"module.{key}": array for key, array in TENSORS.items()}, wrapper="net")
    for suffix in (".npz", ".pkl", ".safetensors", ".pth"):
        target = tmp_path / f"out{suffix}"
        assert convert.main([str(source), str(target)]) == 0
        out = capsys.readouterr().out
        assert "stripped DataParallel's" in out and "1 tensors without a use here dropped" in out
        assert f"{target}: 3 tensors, 7 parameters: every one bit-identical after re-reading" in out
        tensors = read(target).tensors
        assert list(tensors) == ["extractor.weight", "extractor.running_mean", "head.bias"]
        assert all(tensors[key].tobytes() == TENSORS[key].tobytes() for key in tensors)


def test_convert_there_and_back(tmp_path, capsys, toy):
    """Upstream's names in, ours in the .npz, upstream's again in the .pth, without naming the model twice."""
    write(tmp_path / "in.pth", TENSORS, wrapper="net")
    assert convert.main([str(tmp_path / "in.pth"), str(tmp_path / "ours.npz"), "--model", "toy"]) == 0
    tensors, meta = load_npz(tmp_path / "ours.npz")
    assert set(tensors) == {"backbone.weight", "backbone.running_mean", "head.bias"}
    assert meta["model"] == {"name": "toy", "num_classes": 1}
    assert convert.main([str(tmp_path / "ours.npz"), str(tmp_path / "back.pth"), "--wrap", "net"]) == 0
    again = read(tmp_path / "back.pth")
    assert again.wrapper == "net" and set(again.tensors) == set(TENSORS) - {"extractor.num_batches_tracked"}
    assert all(array.tobytes() == TENSORS[key].tobytes() for key, array in again.tensors.items())


def test_convert_refuses_another_model(tmp_path, capsys, toy):
    write(tmp_path / "in.pth", TENSORS)
    assert convert.main([str(tmp_path / "in.pth"), str(tmp_path / "o.npz"), "--model", "toy", "--num-classes",
                         "5"]) == 2
    said = capsys.readouterr().err
    assert "head.bias: shape (1) in the file, (5) in the model" in said
    assert said.endswith("Check the model's name and arguments (classes, depth).\n")  # it always wants all of them
    assert convert.main([str(tmp_path / "in.pth"), str(tmp_path / "o.npz"), "--model", "toi"]) == 2
    assert "unknown model 'toi'" in capsys.readouterr().err
    assert not (tmp_path / "o.npz").exists()


def test_convert_a_backbone_says_what_it_lacks(tmp_path, capsys, toy):
    write(tmp_path / "in.pth", {"stem.weight": TENSORS["extractor.weight"], "stem.running_mean": np.float32([1, 2])})
    assert convert.main([str(tmp_path / "in.pth"), str(tmp_path / "o.npz"), "--model", "toy"]) == 0
    assert "holds no head: 1 tensors of toy are not in" in capsys.readouterr().out
    assert set(read(tmp_path / "o.npz").tensors) == {"backbone.weight", "backbone.running_mean"}


def test_odd_values_beside_the_weights_do_not_stop_a_conversion(tmp_path, capsys):
    body = forge.mapping({"metric": b"G\x7f\xf8\0\0\0\0\0\0", "table": b"}(K\1NN" + forge.text("x") + b"u",
                          "net": forge.mapping({"w": forge.tensor("0", "FloatStorage", 1, 0, (1,), (1,))})})
    source = forge.torch_zip(tmp_path / "in.pth", body, {"0": b"\0\0\x80?"})
    assert convert.main([str(source), str(tmp_path / "o.npz")]) == 0
    assert load_npz(tmp_path / "o.npz")[1] == {"metric": "nan", "table": {"1": None, "None": "x"}}


def test_a_result_that_reads_back_differently_is_an_error(tmp_path, capsys, monkeypatch):
    save_npz(tmp_path / "in.npz", {"w": np.float32([1])})
    monkeypatch.setattr("jea.commands.convert.write",
                        lambda path, tensors, **_: save_npz(path, {"w": np.float32([1.0000001])}))
    assert convert.main([str(tmp_path / "in.npz"), str(tmp_path / "out.npz")]) == 2
    assert "w is not the same after reading it back" in capsys.readouterr().err
