"""The options of the tasks: what they refuse, and that reading them needs no Jittor."""
import subprocess
import sys

import pytest

from jea.errors import ConfigError
from jea.tasks import TASKS, task_class
from jea.tasks.options import task_options


def test_options_of_all_tasks_are_read_without_jittor():
    code = ("import sys\nfrom jea.data import DATASETS\nfrom jea.tasks import TASKS\n"
            "from jea.tasks.options import task_options\nimport jea.progress\n"
            "for name in TASKS:\n    train, options, datasets = task_options(name)\n    train(), options()\n"
            "    assert datasets and set(datasets) <= set(DATASETS), name\n"
            "print([m for m in ('jittor', 'jittor_utils') if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


@pytest.mark.parametrize("name", TASKS)
def test_a_task_has_the_options_of_its_file(name):
    task = task_class(name)
    assert (task.Train, task.Eval, task.datasets) == task_options(name)


@pytest.mark.parametrize("task, block, options, said", [
    ("segmentation", "train", {"lr": 0.0}, "train.lr is 0.0; expected a number above 0"),
    ("segmentation", "train", {"batch_size": 6, "grad_accumulation": 4},
     "expected a divisor of batch_size, which is 6"),
    ("segmentation", "train", {"precision": "float"},
     "train.precision is 'float'; expected float32, float16, bfloat16"),
    ("segmentation", "train", {"grad_clip": -1.0}, "train.grad_clip is -1.0"),
    ("segmentation", "eval", {"mode": "slid"},
     r"eval.mode is 'slid'; expected whole or slide \(did you mean slide\?\)"),
    ("segmentation", "eval", {"window": 4, "window_stride": 5},
     "expected 1 to eval.window, 4, or pixels would be left out"),
    ("segmentation", "eval", {"scales": ()}, "expected one or more factors above 0"),
    ("segmentation", "eval", {"fit": (100,)}, r"expected \[longer, shorter\]"),
    ("classification", "train", {"crop_scale": (1.0, 0.5)}, r"expected \[low, high\]"),
    ("classification", "train", {"rand_augment": 11.0}, "expected a magnitude from 0 to 10"),
    ("classification", "eval", {"crop_pct": 0.0}, "eval.crop_pct is 0.0; expected 0.1 to 1"),
    ("generation", "train", {"beta1": 1.0}, "0 or more and less than 1"),
    ("generation", "eval", {"samples": 1}, "expected at least 2"),
    ("generation", "eval", {"samples": 10, "splits": 6}, "expected at most half of eval.samples, 10"),
    ("generation", "eval", {"save": "jpg"}, 'expected "png", "npz" or null'),
    ("point_classification", "train", {"optimizer": "sdg"}, r"expected sgd or adam \(did you mean sgd\?\)"),
    ("part_segmentation", "eval", {"votes": 0}, "eval.votes is 0; expected at least 1"),
], ids=str)
def test_a_wrong_value_is_a_config_error(task, block, options, said):
    with pytest.raises(ConfigError, match=said):
        task_options(task)[block == "eval"](**options)


def test_a_task_of_the_users_own_is_found_by_module_and_class(tmp_path, monkeypatch):
    (tmp_path / "my_own_task.py").write_text("class MyTask:\n    Train, Eval, datasets = int, float, None\n")
    (tmp_path / "my_broken_task.py").write_text("import a_module_that_is_not_there\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert task_options("my_own_task:MyTask") == (int, float, None)
    with pytest.raises(ConfigError, match=r"no class 'MyTsk' \(did you mean MyTask\?\)"):
        task_class("my_own_task:MyTsk")
    with pytest.raises(ConfigError, match="there is no module nowhere.at_all in the config's folder"):
        task_class("nowhere.at_all:MyTask")
    with pytest.raises(ConfigError, match=r"unknown task 'segmantation'.*did you mean segmentation"):
        task_class("segmantation")
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_not_there"):  # a bug keeps its traceback
        task_class("my_broken_task:MyTask")
