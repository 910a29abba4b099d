"""Prefixes that all names of a file share: found, named and stripped."""
import types

import numpy as np
import pytest

from jea.checkpoint import CheckpointError, KeyMap, read, save_npz
from jea.checkpoint.loading import match, require_complete, write
from jea.checkpoint.prefixes import pattern, shared

NAMES = ("backbone.conv.weight", "backbone.bn.bias", "head.weight")
SHAPES = {name: ((2,), "float32") for name in NAMES}
MAP = KeyMap(name="toy", marker="extractor.", rules=(("extractor.0.", "backbone.conv."),
                                                     ("extractor.1.", "backbone.bn.")))
THEIRS = ("extractor.0.weight", "extractor.1.bias", "head.weight")


def tensors(names, prefix=""):
    return {prefix + name: np.float32([index, 1]) for index, name in enumerate(names)}


@pytest.mark.parametrize("prefix", ["model.", "module.", "_orig_mod.", "net.", "my_wrapper.", "model.net.",
                                    "module.model.", "_orig_mod.model.", "a.b.c."])
@pytest.mark.parametrize("names", [NAMES, THEIRS], ids=["our names", "their names"])
@pytest.mark.parametrize("suffix", [".pth", ".npz", ".safetensors", ".pkl"])
def test_any_shared_prefix_is_stripped_and_said(tmp_path, prefix, names, suffix):
    path = tmp_path / f"x{suffix}"
    write(path, tensors(names, prefix))
    arrays, report = match((MAP,), SHAPES, read(path))
    require_complete(report, SHAPES)
    assert {name: array[0] for name, array in arrays.items()} == {name: index for index, name in enumerate(NAMES)}
    said = " ".join(note for note in report.notes if note.startswith("stripped"))
    assert all(f"{part}." in said for part in prefix.strip(".").split(".")) and "from every key" in said


def test_lightning_is_named(tmp_path):
    write(tmp_path / "x.pth", tensors(NAMES, "model."), wrapper="state_dict")
    checkpoint = read(tmp_path / "x.pth")
    assert list(checkpoint.tensors) == list(NAMES) and checkpoint.prefix == "model."
    assert "stripped Lightning's 'model.' from every key" in checkpoint.notes


def test_a_model_whose_own_names_have_the_prefix(tmp_path):
    """A user's model with an attribute `model` gets its names back."""
    shapes = {f"model.{name}": shape for name, shape in SHAPES.items()}
    write(tmp_path / "x.pth", tensors(NAMES, "model."))
    arrays, report = match((), shapes, read(tmp_path / "x.pth"))
    require_complete(report, shapes)
    assert "put 'model.' back, as this model's names have it" in report.notes
    write(tmp_path / "y.pth", tensors(NAMES, "module.model."))
    require_complete(match((), shapes, read(tmp_path / "y.pth"))[1], shapes)


def test_names_that_fit_are_left_alone(tmp_path):
    shapes = {f"backbone.{name}": ((2,), "float32") for name in ("a", "b")}
    save_npz(tmp_path / "x.npz", tensors(("backbone.a", "backbone.b")))
    arrays, report = match((), shapes, read(tmp_path / "x.npz"))
    assert set(arrays) == set(shapes) and report.notes == []


def test_a_prefix_of_most_names(tmp_path):
    """Lightning's modules have more than the model: the rest is listed, and is all that does not fit."""
    write(tmp_path / "x.pth", {**tensors(NAMES, "net."), "loss.weight": np.float32([1])})
    arrays, report = match((MAP,), SHAPES, read(tmp_path / "x.pth"))
    assert set(arrays) == set(NAMES) and report.unexpected == ["loss.weight"]
    assert "stripped 'net.' from 3 of 4 keys" in report.notes


def test_names_are_not_merged(tmp_path):
    """Two names that would become one are left as they are."""
    write(tmp_path / "x.pth", {**tensors(NAMES, "net."), **tensors(NAMES)})
    arrays, report = match((), SHAPES, read(tmp_path / "x.pth"))
    assert set(arrays) == set(NAMES) and len(report.unexpected) == 3


def test_the_pattern_of_a_misfit_is_said(tmp_path):
    shapes = {f"layer{i}.weight": ((2,), "float32") for i in range(116)}
    other = {f"{'ab'[i % 2]}.layer{i}.weight": np.float32([1, 2]) for i in range(116)}  # no prefix of all
    save_npz(tmp_path / "x.npz", other)
    _, report = match((), shapes, read(tmp_path / "x.npz"))
    with pytest.raises(CheckpointError,
                       match=r"58 missing, 58 unexpected.*\n(.*\n)*  58 of the missing names are in the file "
                                              "behind '[ab]\\.'"):
        require_complete(report, shapes)
    inner = {f"layer{i}.weight": np.float32([1, 2]) for i in range(116)}
    save_npz(tmp_path / "y.npz", inner)
    outer = {f"backbone.layer{i}.weight": ((2,), "float32") for i in range(116)}
    _, report = match((), outer, read(tmp_path / "y.npz"))
    with pytest.raises(CheckpointError,
                       match="116 of the missing names are in the file without the 'backbone.' before them"):
        require_complete(report, outer)


@pytest.mark.parametrize("missing, unexpected, expected", [
    (["a", "b"], ["net.a", "net.b"], "2 of the missing names are in the file behind 'net.'"),
    (["net.a", "net.b"], ["a", "b"], "2 of the missing names are in the file without the 'net.' before them"),
    (["a"], ["net.a"], ""), (["a", "b"], ["c", "d"], ""), ([], ["a"], ""), (["a"], [], ""),
])
def test_patterns(missing, unexpected, expected):
    assert pattern(missing, unexpected) == expected


def test_shared_prefixes():
    assert shared(["a.b.c", "a.b.d"]) == ["a.", "a.b."]
    assert shared(["ab.c", "ac.d"]) == shared(["a", "a.b"]) == []
    assert shared(["a.", "a.b"]) == []


def test_long_chains_of_names_cost_little():
    names = [".".join("x" * 500) + str(i) for i in range(2_000)]
    checkpoint = types.SimpleNamespace(tensors=dict.fromkeys(names), prefix="")
    from jea.checkpoint.prefixes import fitting
    assert fitting(checkpoint, (), SHAPES, []) is checkpoint.tensors
    assert pattern(names, [name[::-1] for name in names]) == ""
