"""A task of one's own: a model, a data set, a task and a config in a folder of their own, nothing of jea changed,
through the command line."""
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import toy

from jea.checkpoint import load_npz
from jea.errors import DataError
from jea.tasks.classification import Classification
from jea.tasks.generation import Generation

ROOT = Path(__file__).parent.parent.parent
CONFIG = """
task: my_line:Fit
model:
  name: my_line:Line
  spread: 0.5
data:
  name: my_points:Points
  count: 24
train:
  steps: 12
  batch_size: 6
  lr: 0.2
  num_workers: 1
  log_every: 1
  eval_every: 6
eval:
  split: val
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mine")
    shutil.copy(ROOT / "tests" / "support" / "toy.py", folder / "my_line.py")
    shutil.copy(ROOT / "tests" / "support" / "toy_points.py", folder / "my_points.py")
    (folder / "line.yaml").write_text(CONFIG)
    return folder


def jea(folder, *arguments, status=0):
    """Run a command where nothing but the config's folder knows the module."""
    done = subprocess.run([sys.executable, "-c", "import sys; sys.path.insert(0, sys.argv.pop(1)); "
                           "from jea.__main__ import main; sys.exit(main(sys.argv[1:]))", str(ROOT),
                           *map(str, arguments)],
                          capture_output=True, text=True, cwd=folder)
    assert done.returncode == status and "Traceback" not in done.stderr, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def trained(folder):
    done = jea(folder, "train", "--config", "line.yaml", "--out", "run", "--device", "cpu")
    assert "my_line:Line, 2 parameters" in done.stderr and "error: 0.0" in done.stdout
    return folder / "run"


def test_it_trains(trained):
    tensors, meta = load_npz(trained / "best.npz")
    assert abs(tensors["slope"].item() - 2) < 0.1 and abs(tensors["intercept"].item() - 1) < 0.1
    assert meta["task"] == "line" and meta["model"] == {"name": "my_line:Line", "spread": 0.5}
    assert (trained / "curves.png").is_file()


def test_it_resumes_bit_for_bit(trained, folder):
    for more in (["--stop-after", "7"], ["--resume"]):
        jea(folder, "train", "--config", folder / "line.yaml", "--out", "again", "--device", "cpu", *more)
    ours, theirs = load_npz(folder / "again" / "last.npz")[0], load_npz(trained / "last.npz")[0]
    assert ours.keys() == theirs.keys() and all(np.array_equal(ours[key], theirs[key]) for key in ours)


def test_it_is_tested_and_takes_files(trained, folder):
    command = ["test", "--config", "line.yaml", "--weights", trained / "best.npz", "--device", "cpu", "--json"]
    result = json.loads(jea(folder, *command).stdout)
    assert result["error"] < 0.2 and result["points"] == 24
    (folder / "a.json").write_text("[0, 1]")
    result = json.loads(jea(folder, *command, "--input", "a.json", "--out", "out").stdout)
    assert result["lists"] == 1
    assert np.allclose(np.loadtxt(folder / "out" / "a.txt"), [1, 3], atol=0.2)


def test_its_data_are_checked(folder):
    assert "24 points in split train" in jea(folder, "data", "check", "line.yaml").stdout


@pytest.mark.parametrize("change, said", [
    ("task=my_line:Fits", "no class 'Fits' (did you mean Fit?)"),
    ("model.name=nowhere:Line", "there is no module nowhere"),
    ("model.spraed=2", "unknown; my_line:Line takes spread"),
    ("data.count=true", "data.count: is True; expected an integer"),
    ("train.lrr=1", "(did you mean lr?)")])
def test_its_mistakes_are_told(folder, change, said):
    done = jea(folder, "train", "--config", "line.yaml", "--out", "none", change, status=2)
    assert said in done.stderr, done.stderr


def test_a_split_of_null_is_all_there_is_and_not_the_split_of_the_config():
    task = toy.make(data={"split": "half"})
    assert task.dataset().split == "half" and task.dataset(None).split is None and task.dataset("x").split == "x"
    asked = []
    for task in (Classification(model={"name": "eamlp_tiny", "img_size": 32}, data={"name": "shape_classes"},
                                eval={"split": None}),
                 Generation(model={"name": "ea_sagan_tiny", "width": 8}, data={"name": "plain_shapes"},
                            eval={"split": None})):
        def dataset(*split):
            asked.append(split)
            raise DataError("seen")
        task.dataset = dataset
        with pytest.raises(DataError, match="seen"):
            task.reference(task.eval.split) if task.name == "generation" else task.evaluate("unused")
    assert asked == [(None,), (None,)]
