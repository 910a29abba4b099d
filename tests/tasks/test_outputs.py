"""Outputs of a run over a user's own files: unique names, nothing overwritten, one bad file does not end the run."""
import errno
import json
import os
import sys

import numpy as np
import pytest
import toy
from PIL import Image

import jea
from jea.data.files.inputs import InputKind
from jea.errors import ConfigError, DataError
from jea.results import Result
from jea.tasks.outputs import Outputs, predict_files
from jea.tasks.task import Task


def files(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text(f"the user's {name}")
    return [folder / name for name in names]


def stems(outputs, *suffixes):
    return [item.stem for item in outputs.each(suffixes, unit="file", progress=False)]


@pytest.mark.parametrize("names, suffixes, wanted", [
    (["a.jpg", "b.jpg"], [".png"], ["a", "b"]),
    (["a.jpg", "a.png"], [".png"], ["a", "a.png"]),
    (["a.jpg", "a_overlay.jpg"], [".png", "_overlay.png"], ["a", "a_overlay.jpg"]),
    (["A.jpg", "a.jpg"], [".png"], ["A", "a.jpg"]),  # one file on a disk that does not tell case apart
    (["a", "a.png"], [".png"], ["a", "a.png"]),
    (["a.b", "a.b.c", "a.x"], [".png"], ["a", "a.b", "a.x"]),
    (["a.c", "a.c.d", "a.d"], [".png"], ["a", "a.c", "a.d"]),
    (["x.a", "x.a.b", "x.b", "x.b.c", "x.c"], [".png"], ["x", "x.a", "x.b", "x.b.c", "x.c"]),
    (["predictions.jpg"], [".json"], ["predictions.jpg"]),
], ids=str)
def test_no_output_replaces_another(tmp_path, names, suffixes, wanted):
    outputs = Outputs(tmp_path / "out", files(tmp_path / "in", *names))
    if names == ["predictions.jpg"]:
        outputs.keep_as("predictions.json")
    found = stems(outputs, *suffixes)
    assert found == wanted
    made = [f"{stem}{suffix}".lower() for stem in found for suffix in suffixes]
    assert len(set(made)) == len(made)


@pytest.mark.parametrize("names, suffixes, over", [
    (["chair.ply", "chair_parts.txt"], [".png", "_parts.txt"], "chair_parts.txt"),
    (["a.png"], [".png"], "a.png"), (["b.jpg", "b_overlay.png"], [".png", "_overlay.png"], "b_overlay.png")])
def test_no_input_is_written_over(tmp_path, names, suffixes, over):
    inputs = files(tmp_path, *names)
    with pytest.raises(DataError, match=f"would overwrite the input {tmp_path / over}; choose another --out"):
        stems(Outputs(tmp_path, inputs), *suffixes)
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(DataError, match="would overwrite the input"):
        stems(Outputs(tmp_path / "link", inputs), *suffixes)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names, "link"])
    assert all(path.read_text() == f"the user's {path.name}" for path in inputs)


def test_a_link_to_an_input_is_an_input(tmp_path):
    inputs = files(tmp_path / "in", "a.jpg")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.png").symlink_to(inputs[0])
    with pytest.raises(DataError, match="would overwrite the input"):
        stems(Outputs(tmp_path / "out", inputs), ".png")


def test_the_list_of_results_is_no_input_and_comes_as_it_is_found(tmp_path):
    inputs = files(tmp_path / "in", *"abc")
    outputs = Outputs(tmp_path / "out", inputs)
    outputs.keep_as("list.json")
    seen = []
    for item in outputs.each((), unit="file", progress=False):
        with item:
            if item.stem == "b":
                raise DataError(f"{item.input}: not good")
            item.found(size=1)
        seen.append(len(json.loads((tmp_path / "out" / "list.json").read_text())))
    assert seen[0] == 1
    assert json.loads((tmp_path / "out" / "list.json").read_text()) == outputs.entries == [
        {"input": str(inputs[0]), "size": 1}, {"input": str(inputs[2]), "size": 1}]
    outputs = Outputs(tmp_path, files(tmp_path, "list.json"))
    outputs.keep_as("list.json")
    with pytest.raises(DataError, match="the list of results would overwrite the input"):
        stems(outputs)


def test_one_bad_file_does_not_end_the_run_and_what_is_no_fault_of_a_file_does(tmp_path):
    outputs = Outputs(tmp_path / "out", files(tmp_path / "in", *"abc"))
    for item in outputs.each((".txt",), unit="file", progress=False):
        with item:
            if item.stem != "b":
                raise DataError(f"{item.input}: broken" if item.stem == "a" else "something else")
            item.found()
    assert outputs.result("things") == {"things": 1, "files": [{"input": str(tmp_path / "in" / "b")}], "failed": [
        {"input": str(tmp_path / "in" / "a"), "reason": "broken"},
        {"input": str(tmp_path / "in" / "c"), "reason": "something else"}]}
    for error in (MemoryError(), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), ZeroDivisionError()):
        with pytest.raises(type(error)):
            for item in outputs.each((".txt",), unit="file", progress=False):
                with item:
                    raise error


def test_what_is_wrong_with_the_only_file_is_raised(tmp_path):
    outputs = Outputs(tmp_path / "out", files(tmp_path / "in", "a"))
    with pytest.raises(DataError, match="broken"):
        for item in outputs.each((".txt",), unit="file", progress=False):
            with item:
                raise DataError("broken")


def picture(path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 56, 3), np.uint8)).save(path)


@pytest.mark.parametrize("config, counted", [("segmentation_eanet_tiny_shapes", "images"),
                                             ("classification_eamlp_tiny_shapes", "images"),
                                             ("point_classification_ea_pct_tiny_solids", "clouds"),
                                             ("part_segmentation_ea_pct_tiny_solids", "clouds")])
def test_a_folder_with_a_broken_file(config, counted, tmp_path, capsys):
    from jea.commands.test import main
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    if counted == "images":
        for name in ("a.jpg", "c.png"):
            picture(folder / name)
        (folder / "b.jpg").write_bytes((folder / "a.jpg").read_bytes()[:300])
    else:
        for name in ("a.npy", "c.npy"):
            np.save(folder / name, np.random.default_rng(0).standard_normal((200, 3)))
        (folder / "b.txt").write_text("1 2 three\n")
    assert main(["--config", config, "--input", str(folder), "--out", str(out), "--json"]) == 1
    result = json.loads(capsys.readouterr().out)
    assert result[counted] == 2 and [entry["input"] for entry in result["files"]] == [
        str(path) for path in sorted(folder.iterdir()) if path.stem != "b"]
    failed, = result["failed"]
    assert failed["input"].startswith(str(folder / "b")) and failed["reason"] and str(folder) not in failed["reason"]
    assert main(["--config", config, "--input", str(folder), "--out", str(out)]) == 1
    shown = capsys.readouterr().out
    assert f"failed:\n  {failed['input']} -> {failed['reason']}\n" in shown


def test_a_task_that_takes_no_files_says_so(tmp_path):
    from jea.tasks.generation import Generation
    task = Generation(model={"name": "ea_sagan_tiny", "width": 8}, data={"name": "plain_shapes"})
    with pytest.raises(ConfigError, match="generation does not take single files: leave --input out"):
        predict_files(task, tmp_path, tmp_path / "out")
    with pytest.raises(ConfigError, match="--multi-scale: there is no such test for generation; leave it out"):
        task.multi_scale()


def test_a_task_of_ones_own_takes_files(tmp_path):
    (tmp_path / "a.json").write_text("[0, 1]")
    task = toy.make()
    result = predict_files(task, tmp_path / "a.json", tmp_path / "out", progress=False)
    assert result == {"lists": 1, "files": [{"input": str(tmp_path / "a.json"),
                                             "prediction": str(tmp_path / "out" / "a.txt")}]}


class Sums(Result):
    """The sum of a list of numbers."""

    suffixes = (".txt",)

    def __init__(self, input, found):
        super().__init__(input)
        self.found = found

    def entry(self):
        return {"sum": self.found}

    def write_files(self, path):
        path(".txt").write_text(str(self.found))
        return {"prediction": str(path(".txt")), **self.entry()}

    def words(self):
        return str(self.found)


class Adding(toy.Fit):
    """Takes lists of numbers, without a method that handles files."""

    takes = InputKind("list", "lists", 1, (".json",), lambda path: np.array(json.loads(path.read_text())),
                      lambda value, name: np.asarray(value))
    gives = Sums
    predict_files, list_inputs = Task.predict_files, Task.list_inputs

    def predict(self, inputs):
        return [Sums(one, float(one.value.sum())) for one in inputs]


def test_a_task_that_says_what_it_takes_and_gives_has_files_and_the_predictor(tmp_path, monkeypatch):
    (tmp_path / "a.json").write_text("[0, 1.5]")
    (tmp_path / "line.yaml").write_text("task: test_adding:Adding\nmodel: {name: 'toy:Line'}\n"
                                        "data: {name: 'toy_points:Points'}\ntrain: {steps: 1}\n")
    monkeypatch.setitem(sys.modules, "test_adding", sys.modules[__name__])
    jea.save_weights(toy.Line(), tmp_path / "line.npz")
    predictor = jea.Predictor(tmp_path / "line.yaml", tmp_path / "line.npz", fuse=False)
    assert predict_files(predictor.task, tmp_path, tmp_path / "out", progress=False) == {"lists": 1, "files": [
        {"input": str(tmp_path / "a.json"), "prediction": str(tmp_path / "out" / "a.txt"), "sum": 1.5}]}
    assert (tmp_path / "out" / "a.txt").read_text() == "1.5"
    assert repr(predictor(tmp_path / "a.json")) == "Sums(a.json: 1.5)"
    assert [found.found for found in predictor([np.ones(3), np.ones(2)])] == [3.0, 2.0]
