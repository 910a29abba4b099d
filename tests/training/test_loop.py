"""The training loop: resuming, stopping, failing and saving, on a small network and a small data set."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jea.checkpoint import CheckpointError, load_npz
from jea.data import DataError, make_shapes
from jea.errors import TrainingError
from jea.tasks.segmentation import Segmentation
from jea.tasks.task import Evaluation
from jea.training.log import CURVES, LOG
from jea.training.loop import train
from jea.training.state import BEST, LAST

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True)
def home(demo_home, monkeypatch):
    monkeypatch.setenv("JEA_HOME", str(demo_home))


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp("data") / "shapes", num_train=20, num_val=3, num_test=1)


def make_task(shapes, *, seed=5, **train):
    options = {"steps": 10, "batch_size": 4, "lr": 0.02, "num_workers": 0, "log_every": 1, "eval_every": 0,
               "save_every": 4, "seed": seed, **train}
    return Segmentation(model={"name": "eanet_tiny", "num_classes": 7},
                        data={"name": "voc", "root": str(shapes), "num_classes": 7, "crop_size": 65,
                              "scales": [0.75, 1]},
                        train=options, eval={"pictures": 1, "num_workers": 0})


def losses_in(out):
    return {e["step"]: e["loss"] for e in map(json.loads, (out / LOG).read_text().splitlines()) if "loss" in e}


@pytest.fixture(scope="module")
def unbroken(shapes, tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken")
    result = train(make_task(shapes), out, progress=False)
    return out, result


def test_a_run_leaves_everything(unbroken):
    out, result = unbroken
    losses = losses_in(out)
    assert sorted(losses) == list(range(1, 11)) and losses[10] < losses[1]
    assert next(iter(result)) == "mIoU" and 0 <= result["mIoU"] <= 1
    assert (out / CURVES).read_bytes().startswith(b"\x89PNG")
    tensors, meta = load_npz(out / BEST)
    assert meta["step"] == 10 and meta["model"]["name"] == "eanet_tiny" and "fc2.weight" in tensors
    assert not [name for name in os.listdir(out) if name.startswith(".")]


@pytest.mark.parametrize("stop", [1, 4, 7])  # 5 steps are one epoch
def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit(shapes, unbroken, tmp_path, stop):
    train(make_task(shapes), tmp_path, stop_after=stop, progress=False)
    assert max(losses_in(tmp_path)) == stop
    train(make_task(shapes, num_workers=2), tmp_path, resume=True, progress=False)
    assert losses_in(tmp_path) == losses_in(unbroken[0])
    ours, theirs = load_npz(tmp_path / LAST)[0], load_npz(unbroken[0] / LAST)[0]
    assert ours.keys() == theirs.keys()
    assert any(key.startswith("optimizer/") for key in ours)
    for key in ours:
        assert np.array_equal(ours[key], theirs[key]), key


def test_another_seed_is_another_run(shapes, unbroken, tmp_path):
    train(make_task(shapes, seed=6), tmp_path, stop_after=2, progress=False)
    assert losses_in(tmp_path)[1] != losses_in(unbroken[0])[1]
    with pytest.raises(CheckpointError, match="trained with seed 6, the config says 5"):
        train(make_task(shapes), tmp_path, resume=True, progress=False)


def test_a_broken_file_loses_no_steps(shapes, tmp_path, monkeypatch):
    """Found at the first evaluation, before the first save."""
    def broken(self, *arguments, **options):
        raise DataError("val/a.jpg: broken")
    monkeypatch.setattr(Segmentation, "evaluate", broken)
    with pytest.raises(DataError, match="a.jpg: broken"):
        train(make_task(shapes, eval_every=2), tmp_path, progress=False)
    assert load_npz(tmp_path / LAST)[1]["step"] == 2


def test_a_run_that_ended_before_its_last_evaluation_is_evaluated_once(shapes, unbroken, tmp_path, monkeypatch):
    original, calls = Segmentation.evaluate, []

    def broken_at_the_end(self, *arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise DataError("val/a.jpg: broken")
        return original(self, *arguments, **options)
    monkeypatch.setattr(Segmentation, "evaluate", broken_at_the_end)
    with pytest.raises(DataError):
        train(make_task(shapes, eval_every=5), tmp_path, progress=False)
    assert load_npz(tmp_path / LAST)[1]["step"] == 10
    assert load_npz(tmp_path / BEST)[1]["step"] == 5  # of the first evaluation
    result = train(make_task(shapes, eval_every=5), tmp_path, resume=True, progress=False)
    assert len(calls) == 3 and result["mIoU"] == unbroken[1]["mIoU"]
    entries = [json.loads(line) for line in (tmp_path / LOG).read_text().splitlines()]
    assert [e["step"] for e in entries if "evaluation" in e] == [5, 10]
    best = load_npz(tmp_path / LAST)[1]["best"]
    assert best == max(e["evaluation"]["mIoU"] for e in entries if "evaluation" in e)
    assert load_npz(tmp_path / BEST)[1]["metrics"]["mIoU"] == best
    assert train(make_task(shapes, eval_every=5), tmp_path, resume=True, progress=False) == {}
    assert len(calls) == 3
    (tmp_path / BEST).unlink()
    assert train(make_task(shapes, eval_every=5), tmp_path, resume=True, progress=False) and len(calls) == 4
    tensors, meta = load_npz(tmp_path / BEST)
    wanted = load_npz(unbroken[0] / BEST)[0]
    assert meta["step"] == 10 and all(np.array_equal(tensors[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize("options, message", [({"batch_size": 0}, "batch_size is 0"),
                                              ({"log_every": 0}, "log_every is 0"),
                                              ({"steps": -3}, "steps is -3"), ({"seed": -1}, "seed is -1")])
def test_numbers_out_of_range(shapes, options, message):
    with pytest.raises(ValueError, match=f"train.{message}; expected"):
        make_task(shapes, **options)


def test_what_cannot_be_resumed(shapes, unbroken, tmp_path):
    with pytest.raises(CheckpointError, match="nothing to resume"):
        train(make_task(shapes), tmp_path, resume=True, progress=False)
    with pytest.raises(TrainingError, match="is there already: add --resume"):
        train(make_task(shapes), unbroken[0], progress=False)
    (tmp_path / LAST).write_bytes((unbroken[0] / BEST).read_bytes())
    with pytest.raises(CheckpointError, match="not a training checkpoint"):
        train(make_task(shapes), tmp_path, resume=True, progress=False)


def test_a_non_finite_loss_stops_and_names_step_and_phase(shapes, tmp_path):
    task = make_task(shapes)
    train(task, tmp_path, stop_after=4, progress=False)
    before = (tmp_path / LAST).read_bytes()
    task = make_task(shapes)
    original, calls = task.losses, []

    def broken(batch):
        losses = original(batch)
        calls.append(1)
        return {"loss": losses["loss"] * float("nan")} if len(calls) == 2 else losses
    task.losses = broken
    with pytest.raises(TrainingError, match="step 5, phase segmentation: loss is nan"):
        train(task, tmp_path, resume=True, progress=False)
    assert (tmp_path / LAST).read_bytes() == before


def test_an_evaluation_without_anything_to_judge(shapes, tmp_path):
    task = make_task(shapes, steps=2, eval_every=1)
    scores = iter([float("nan"), 0.5])
    task.evaluate = lambda out, progress: Evaluation((score := next(scores)), {"mIoU": score})
    train(task, tmp_path, progress=False)
    assert load_npz(tmp_path / LAST)[1]["best"] == 0.5 and load_npz(tmp_path / BEST)[1]["step"] == 2


def test_a_phase_that_is_not_due_is_left_out(shapes, tmp_path):
    task = make_task(shapes, steps=3)
    phases = task.phases(3)
    phases[0].every = 2
    task.phases = lambda total: phases
    ran = []
    original = phases[0].losses
    phases[0].losses = lambda batch: ran.append(1) or original(batch)
    train(task, tmp_path, progress=False)
    assert len(ran) == 2 and sorted(losses_in(tmp_path)) == [1, 3]  # steps 0 and 2


COMMAND = [sys.executable, "train.py", "--config", "segmentation_eanet_tiny_shapes", "data.crop_size=65",
           "train.batch_size=2",
           "train.num_workers=1", "train.log_every=1", "train.steps=2000", "train.save_every=3", "train.eval_every=0"]


def start(out, *more):
    return subprocess.Popen([*COMMAND, "--out", str(out), *more], cwd=ROOT, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, start_new_session=True)


def wait_for_steps(out, steps, process, seconds=240):
    deadline = time.time() + seconds
    while time.time() < deadline and process.poll() is None:
        if (out / LOG).exists() and len((out / LOG).read_text().splitlines()) >= steps:
            return
        time.sleep(0.1)
    process.kill()
    raise AssertionError(f"no {steps} steps: {process.communicate()}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves(tmp_path, number):
    out = tmp_path / "run"
    process = start(out)
    wait_for_steps(out, 4, process)
    os.killpg(process.pid, number)  # to the whole group, as a terminal and a batch system do
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130 and "--resume goes on from it" in err and "Traceback" not in err, err
    step = load_npz(out / LAST)[1]["step"]
    assert step == max(losses_in(out)) >= 4


def kill_and_load(out, delay, *more):
    """Train, kill -9 after `delay` seconds of training, and load what is there."""
    process = start(out, *more)
    wait_for_steps(out, 4, process)
    time.sleep(delay)
    process.kill()
    process.communicate()
    tensors, meta = load_npz(out / LAST)
    assert meta["kind"] == "training" and all(np.isfinite(value).all() for value in tensors.values())
    return meta["step"]


def test_kill_leaves_a_loadable_checkpoint(tmp_path):
    out = tmp_path / "run"
    step = kill_and_load(out, 0.35)
    process = start(out, "--resume", "--stop-after", str(step + 1))
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert load_npz(out / LAST)[1]["step"] == step + 1


FULL_DISK = """
import resource, signal, sys
from jea.commands import train
from jea.training.state import SavedRun
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
save = SavedRun.save
def save_on_a_full_disk(*arguments):
    # While saving only: Jittor compiles kernels at any step, and its compiler needs the disk too.
    resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, resource.RLIM_INFINITY))
    try:
        save(*arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
SavedRun.save = save_on_a_full_disk
sys.argv[0] = "train.py"
sys.exit(train.main())
"""


def test_a_full_disk_is_one_message_and_loses_nothing(tmp_path):
    """Simulated by a limit on file sizes: half of what last.npz needs."""
    out = tmp_path / "run"
    process = start(out, "--stop-after", "3")
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    before = (out / LAST).read_bytes()
    done = subprocess.run([sys.executable, "-c", FULL_DISK.format(size=len(before) // 2), *COMMAND[2:],
                           "--out", str(out), "--resume"], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 2 and "jea train: error: " in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert (out / LAST).read_bytes() == before


@pytest.mark.slow
def test_many_kills(tmp_path):
    rng = np.random.default_rng(0)
    for attempt in range(10):
        kill_and_load(tmp_path / str(attempt) / "run", rng.random(), "train.save_every=1")
