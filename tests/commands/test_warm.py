"""`jea warm`: what training and testing need is compiled, and nothing else happens."""
import re
import shutil
from pathlib import Path

import pytest

from jea._jittor import jt
from jea.commands import warm

SUPPORT = Path(__file__).parents[1] / "support"

CONFIG = """
task: toy:Fit
model: {name: "toy:Line"}
data: {name: "toy_points:Points"}
train: {steps: 8, batch_size: 6, grad_accumulation: 2, num_workers: 4, eval_every: 4, save_every: 4, log_every: 1}
"""


@pytest.fixture
def config(tmp_path):
    for name in ("toy.py", "toy_points.py"):  # a user's own task
        shutil.copy(SUPPORT / name, tmp_path)
    (tmp_path / "line.yaml").write_text(CONFIG)
    return str(tmp_path / "line.yaml")


def test_everything_is_compiled_once(config, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    with jt.flag_scope():
        assert warm.main([config, "--device", "cpu"]) == 0
    said = capfd.readouterr().err
    assert re.search(r"line: \d+ kernels compiled, \d+ s", said)
    assert re.search(r"the next start takes \d+\.\d s to the end of its first step", said)
    assert "4/4" in said  # the bar
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix in (".npz", ".jsonl", ".png")) == []
    before = warm._kernels()
    assert warm.main([config, "--device", "cpu"]) == 0
    assert "line: 0 kernels compiled" in capfd.readouterr().err and warm._kernels() == before and before


def test_errors(config, capsys, monkeypatch):
    assert warm.main(["no_such_config"]) == 2
    assert "no_such_config" in capsys.readouterr().err
    assert warm.main([config, "train.nothing=1"]) == 2
    assert "nothing" in capsys.readouterr().err
    assert warm.main([config, "--dry-run", "--device", "cpu"]) == 0
    assert "dry run: would compile for toy:Fit" in capsys.readouterr().err
    monkeypatch.setattr(warm, "_train", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # a bug keeps its traceback, and the terminal is as it was
        warm.main([config, "--device", "cpu"])
    print("here")
    assert capsys.readouterr().out == "here\n"
