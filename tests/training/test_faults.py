"""What goes wrong around training loses nothing, and is told: failing evaluations, full disks, weights that are not
finite, options that differ, two runs in one folder, damaged logs, left-over files."""
import errno
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import toy

from jea.checkpoint import load_npz, save_npz
from jea.errors import CheckpointError, ConfigError, TrainingError
from jea.tasks.task import Evaluation
from jea.training.log import LOG
from jea.training.loop import train
from jea.training.state import BEST, LAST, SavedRun


def step_of(path):
    return load_npz(path)[1]["step"]


def entries(out):
    return [json.loads(line) for line in (out / LOG).read_text().splitlines()]


# -- save, then judge -------------------------------------------------------------------------------------------------

def test_an_evaluation_without_memory_loses_no_step(tmp_path):
    task = toy.make(eval_every=3, save_every=1000)
    task.evaluate = lambda *_, **__: (_ for _ in ()).throw(MemoryError())
    with pytest.raises(MemoryError):
        train(task, tmp_path, progress=False)
    assert step_of(tmp_path / LAST) == 3 and [e["step"] for e in entries(tmp_path)] == [1, 2, 3]
    assert train(toy.make(eval_every=3), tmp_path, resume=True, progress=False)  # the lock was given back
    assert [e["step"] for e in entries(tmp_path) if "evaluation" in e] == [3, 6, 8]


def test_a_full_disk_under_best_loses_no_step_and_is_judged_again(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / BEST))
    with monkeypatch.context() as patch:
        patch.setattr(SavedRun, "save_best", full)
        with pytest.raises(OSError, match="No space"):
            train(toy.make(eval_every=4, save_every=1000), tmp_path, progress=False)
    assert step_of(tmp_path / LAST) == 4 and not (tmp_path / BEST).exists()
    train(toy.make(eval_every=4), tmp_path, resume=True, stop_after=5, progress=False)
    assert step_of(tmp_path / BEST) == 4


@pytest.mark.parametrize("place, saved", [("between", 2), ("inside", None)])
def test_an_error_between_two_steps_saves_and_one_inside_a_step_does_not(tmp_path, place, saved):
    """Inside a step one network may have been stepped and another not."""
    task = toy.make(save_every=1000)
    batches, phases = task.batches, task.phases(8)

    def broken_batches(epoch, start):
        for number, batch in enumerate(batches(epoch, start), 2 * epoch + start):
            if number == 2:
                raise MemoryError
            yield batch
    if place == "between":
        task.batches = broken_batches
    else:
        losses, calls = phases[0].losses, []
        phases[0].losses = lambda batch: calls.append(1) or losses(batch if len(calls) < 3 else batch["nothing"])
        task.phases = lambda total: phases
    with pytest.raises((MemoryError, KeyError)):
        train(task, tmp_path, progress=False)
    assert (step_of(tmp_path / LAST) if saved else (tmp_path / LAST).exists()) == (saved or False)


def test_without_anything_to_judge_best_is_the_last(tmp_path):
    task = toy.make(eval_every=2)
    task.evaluate = lambda *_, **__: Evaluation(None, {"points": 12})
    train(task, tmp_path, progress=False)
    assert step_of(tmp_path / BEST) == 8 and load_npz(tmp_path / LAST)[1]["best"] is None
    assert np.array_equal(load_npz(tmp_path / BEST)[0]["slope"], task.model.slope.numpy())


def test_a_run_that_was_killed_after_an_evaluation_remembers_its_best(tmp_path):
    """best.npz was written, last.npz was not told."""
    train(toy.make(eval_every=4), tmp_path, stop_after=6, progress=False)
    tensors, meta = load_npz(tmp_path / LAST)
    save_npz(tmp_path / LAST, tensors, {**meta, "best": None})
    task = toy.make(eval_every=4)
    task.evaluate = lambda *_, **__: Evaluation(-1e9, {"error": 1e9, "points": 12})
    train(task, tmp_path, resume=True, progress=False)
    assert step_of(tmp_path / BEST) == 4


# -- options of a run -------------------------------------------------------------------------------------------------

def test_the_loop_loads_the_initial_weights(tmp_path, capsys):
    save_npz(tmp_path / "start.npz", {"slope": np.array([7], np.float32), "intercept": np.array([3], np.float32)})
    task = toy.make(init_weights=str(tmp_path / "start.npz"), lr=1e-12)
    train(task, tmp_path / "run", progress=False)
    assert task.model.slope.item() == 7 and task.model.intercept.item() == 3
    assert "2 tensors loaded" in capsys.readouterr().err


@pytest.mark.parametrize("options, said", [({"steps": None}, "neither steps nor epochs is given; expected exactly one"),
                                           ({"epochs": 1}, "both steps and epochs are given; expected exactly one")])
def test_a_run_has_a_length(tmp_path, options, said):
    with pytest.raises(ConfigError, match=said):
        train(toy.make(**options), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_says_each_option_that_differs(tmp_path, capsys):
    train(toy.make(lr=0.05), tmp_path, stop_after=3, progress=False)
    capsys.readouterr()
    train(toy.make(lr=0.05), tmp_path, resume=True, stop_after=4, progress=False)
    assert "other options" not in capsys.readouterr().err
    train(toy.make(lr=0.01, log_every=2, model={"spread": 3.0}), tmp_path, resume=True, progress=False)
    said = capsys.readouterr().err
    assert "goes on with other options than it was saved with: model.spread 1.0, now 3.0; " in said
    assert "train.log_every 1, now 2" in said and "train.lr 0.05, now 0.01" in said and "num_workers" not in said


@pytest.mark.parametrize("change, said", [
    ({"batch_size": 3}, "train.batch_size 6, now 3"), ({"seed": 4}, "trained with seed 0, the config says 4"),
    ({"data": {"count": 13}}, "12 samples to train on, now 13; data.count 12, now 13"),
    ({"data": {"split": "test"}}, "data.split train, now test")], ids=str)
def test_what_decides_the_order_of_the_data_may_not_differ(tmp_path, change, said):
    train(toy.make(), tmp_path, stop_after=3, progress=False)
    before = (tmp_path / LAST).read_bytes()
    with pytest.raises(CheckpointError, match=f"{said}. That would change which samples come when"):
        train(toy.make(**change), tmp_path, resume=True, progress=False)
    assert (tmp_path / LAST).read_bytes() == before and [e["step"] for e in entries(tmp_path)] == [1, 2, 3]


def test_an_ended_run_with_another_length(tmp_path, capsys):
    train(toy.make(), tmp_path, progress=False)
    capsys.readouterr()
    assert train(toy.make(), tmp_path, resume=True, progress=False) == {}
    assert "nothing left to do: this run had ended, after 8 steps\n" in capsys.readouterr().err
    assert train(toy.make(steps=5), tmp_path, resume=True, progress=False) == {}
    said = capsys.readouterr().err
    assert "train.steps 8, now 5" in said and "this run had ended, after 8 steps of 5" in said
    assert step_of(tmp_path / LAST) == 8
    assert train(toy.make(steps=11), tmp_path, resume=True, progress=False)["points"] == 12
    said = capsys.readouterr().err
    assert "this run had ended after 8 steps; it goes on to step 11, with the learning rates of a run of 11 " in said
    assert step_of(tmp_path / LAST) == 11


# -- weights that are not finite --------------------------------------------------------------------------------------

def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    train(toy.make(save_every=1), tmp_path, stop_after=3, progress=False)
    before = (tmp_path / LAST).read_bytes()
    task = toy.make(save_every=1, lr=3e38)
    with pytest.raises(TrainingError, match=r"step 4: . of . tensors are not finite.*This run was resumed from "
                                            r".*last.npz, of step 3, and did not get far: those weights may have "
                                            r"diverged already"):
        train(task, tmp_path, resume=True, progress=False)
    assert (tmp_path / LAST).read_bytes() == before
    with pytest.raises(TrainingError, match=r"step \d+.*(not finite|loss is).*Nothing had been saved"):
        train(toy.make(save_every=100, lr=3e38), tmp_path / "other", progress=False)


@pytest.mark.parametrize("what, value", [("weights", np.nan), ("weights", np.inf), ("momentum", -np.inf),
                                         ("best", np.nan)])
def test_each_save_looks_at_every_number(tmp_path, what, value):
    task = toy.make(save_every=2)
    phases = task.phases(8)
    run = SavedRun(task, phases, tmp_path)
    run.save(2, None)
    before = (tmp_path / LAST).read_bytes()
    (task.model.slope if what != "momentum" else phases[0].optimizer.param_groups[0]["values"][0]).assign(
        np.array([value], np.float32))
    with pytest.raises(TrainingError, match=f"step 3: 1 of . tensors are not finite, first .*; they are not saved. "
                                            f"{tmp_path / LAST} is that of step 2, untouched"):
        run.save_best(3, 1.0, {}) if what == "best" else run.save(3, None)
    assert (tmp_path / LAST).read_bytes() == before and not (tmp_path / BEST).exists()


def test_the_message_is_true_where_resuming_would_end_the_same(tmp_path):
    task = toy.make(save_every=1, lr=1e25)
    with pytest.raises(TrainingError, match="step 1, phase line: loss is inf. .*last.npz holds the finite weights from "
                                            "which "
                                            "this step began, so that --resume would end here again"):
        train(task, tmp_path, progress=False)
    with pytest.raises(TrainingError, match="step 1, phase line: loss is inf. .*so that --resume would end here again"):
        train(toy.make(save_every=1, lr=0.1), tmp_path, resume=True, progress=False)
    with pytest.raises(TrainingError, match="step 1, phase line: loss is inf. Nothing had been saved. Start again with "
                                            "a "):
        train(toy.make(lr=1e25), tmp_path / "other", progress=False)


# -- the folder -------------------------------------------------------------------------------------------------------

HOLDER = """import fcntl, os, sys, time
fcntl.flock(os.open(sys.argv[1], 0), fcntl.LOCK_EX)
print(1, flush=True)
time.sleep(60)
"""


def test_one_run_at_a_time_until_it_ends_or_is_killed(tmp_path):
    other = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE)
    other.stdout.readline()
    with pytest.raises(TrainingError, match="another run is writing into this folder; wait for its end, or choose"):
        train(toy.make(), tmp_path, progress=False)
    assert not list(tmp_path.iterdir())
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert train(toy.make(), tmp_path, progress=False)
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_two_runs_of_one_process_too(tmp_path):
    task = toy.make()
    task.evaluate = lambda *_, **__: train(toy.make(), tmp_path, progress=False)
    with pytest.raises(TrainingError, match="another run is writing into this folder"):
        train(task, tmp_path, progress=False)
    assert step_of(tmp_path / LAST) == 8


@pytest.mark.parametrize("damage", [b"\xff\xfe\x00", b"[1, 2]", b'{"step": null}', b'{"step": 1e400}', b"[" * 100_000,
                                    b'{"step": ' + b"9" * 5000 + b"}", b'{"step": 2, "evaluation": 3}',
                                    b'{"step": true}',
                                    b'{"step": 2, "loss": {"a": []}}', b'{"step": 2, "loss": 1' + b"0" * 400 + b"}",
                                    b'{"step": 2, "evaluation": {"error": "x"}}'], ids=lambda text: repr(text[:24]))
def test_a_damaged_log_does_not_stop_a_sound_run(tmp_path, damage, capsys):
    train(toy.make(eval_every=2), tmp_path, stop_after=4, progress=False)
    good = (tmp_path / LOG).read_bytes()
    (tmp_path / LOG).write_bytes(damage + b"\n" + good)
    assert train(toy.make(eval_every=2), tmp_path, resume=True, progress=False)
    kept = entries(tmp_path)
    assert [e["step"] for e in kept if "images_per_second" in e] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert all(isinstance(e["step"], int) for e in kept)
    lines = len(good.splitlines()) + 1
    assert (len(kept) > 12) or f"1 of {lines} lines could not be read" in capsys.readouterr().err


def test_left_over_files_of_killed_runs_are_removed(tmp_path):
    from jea.files import _host
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    gone = [f".curves.png.{dead.pid}.tmp", f".best.npz.{_host()}-{dead.pid}-0.tmp",
            f".curves.png.{_host()}-{dead.pid}-3.tmp"]
    kept = [f".curves.png.{os.getppid()}.tmp", f".last.npz.{_host()}-{os.getppid()}-0.tmp", ".notes.tmp", "a.tmp"]
    for name in (*gone, *kept):
        (tmp_path / name).write_text("")
    train(toy.make(), tmp_path, progress=False)
    left = {path.name for path in tmp_path.iterdir()}
    assert left.isdisjoint(gone) and left >= set(kept)
