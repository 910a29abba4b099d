"""Steps whose numbers the host reads one step later, as on CUDA, here on the CPU."""
import json
import math

import numpy as np
import pytest
import toy

from jea._jittor import jt, nn
from jea.checkpoint import load_npz
from jea.errors import TrainingError
from jea.nn import BatchNorm1d, norm
from jea.nn.mode import keeping_buffers
from jea.training import loop, reading
from jea.training.averages import WeightAverage
from jea.training.log import LOG
from jea.training.loop import train
from jea.training.optimizers import SGD, Adam, AdamOfJittor, AdamW
from jea.training.phase import Phase
from jea.training.state import LAST


@pytest.fixture
def later(monkeypatch):
    monkeypatch.setattr(reading, "reads_later", lambda: True)


def entries(out):
    return [{k: v for k, v in json.loads(line).items() if k not in ("images_per_second", "peak_memory_mb")}
            for line in (out / LOG).read_text().splitlines()]


OPTIMIZERS = {"SGD": lambda p: SGD(p, lr=0.1, momentum=0.5), "SGD of Jittor's": lambda p: nn.SGD(p, 0.1, momentum=0.5),
              "Adam": lambda p: Adam(p, lr=0.1), "AdamW": lambda p: AdamW(p, lr=0.1, weight_decay=0.1),
              "Adam of Jittor's": lambda p: AdamOfJittor(p, lr=0.1, weight_decay=0.1),
              "RMSprop": lambda p: nn.RMSprop(p, lr=0.01)}


def task_with(optimizer, *, average=False, bad=None, phases=1, **options):
    """toy's line, with `phases` phases of a line each; the loss of phase `bad[1]` is not finite at step `bad[0]`."""
    task, seen = toy.make(**options), []
    task.modules = {"model": task.model, **{f"other{i}": toy.Line() for i in range(1, phases)}}
    for module in list(task.modules.values())[1:]:
        module.slope.assign(np.float32([0.3]))

    def phases_of(total):
        made = []
        for number, module in enumerate(task.modules.values()):
            def losses(batch, number=number, module=module):
                seen.append(number)
                loss = ((module(jt.array(batch["x"])) - jt.array(batch["y"])) ** 2).mean()
                if bad and number == bad[1] and seen.count(number) == bad[0] + 1:
                    loss = loss / jt.zeros(1)
                return {"loss": loss, "twice": 2 * loss}
            made.append(Phase(name=f"phase{number}", optimizer=OPTIMIZERS[optimizer](list(module.parameters())),
                              losses=losses, average=WeightAverage(module, 0.5) if average else None))
        return made
    task.phases = phases_of
    return task, seen


@pytest.mark.parametrize("options", [{}, {"grad_clip": 0.5}, {"grad_accumulation": 2, "grad_clip": 0.5}], ids=str)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_it_makes_no_difference(tmp_path, monkeypatch, optimizer, options):
    for name, later in (("at once", False), ("later", True)):
        monkeypatch.setattr(reading, "reads_later", lambda later=later: later)
        train(task_with(optimizer, average=True, eval_every=2, **options)[0], tmp_path / name, progress=False)
    ours, theirs = (entries(tmp_path / name) for name in ("later", "at once"))
    assert [list(entry) for entry in ours] == [list(entry) for entry in theirs] and len(ours) == 12
    for a, b in zip(ours, theirs):
        assert {k: v for k, v in a.items() if k != "evaluation"} == pytest.approx(
            {k: v for k, v in b.items() if k != "evaluation"}, rel=1e-5)
    ours, theirs = (load_npz(tmp_path / name / LAST) for name in ("later", "at once"))
    assert ours[1]["optimizer_steps"] == theirs[1]["optimizer_steps"] and ours[0].keys() == theirs[0].keys()
    for key, value in theirs[0].items():
        assert np.abs(ours[0][key] - value).max() < 1e-5, key


@pytest.mark.parametrize("stop", [1, 4, 7])
def test_a_resumed_run_equals_an_unbroken_one(later, tmp_path, stop):
    def task():
        return task_with("AdamW", average=True, save_every=3, grad_clip=0.5)[0]
    train(task(), tmp_path / "whole", progress=False)
    train(task(), tmp_path / "parts", stop_after=stop, progress=False)
    train(task(), tmp_path / "parts", resume=True, progress=False)
    assert entries(tmp_path / "parts") == entries(tmp_path / "whole")
    ours, theirs = (load_npz(tmp_path / name / LAST)[0] for name in ("parts", "whole"))
    assert all(np.array_equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("phases, bad", [(1, 0), (2, 0), (2, 1)])
@pytest.mark.parametrize("optimizer", ["SGD", "AdamW", "RMSprop"])
def test_a_step_that_is_not_finite_changes_nothing_and_stops(later, tmp_path, monkeypatch, optimizer, phases, bad):
    """Step 3's; where its second phase diverges, the first has made its own step."""
    task, seen = task_with(optimizer, average=True, bad=(3, bad), phases=phases, save_every=1000)
    whole, _ = task_with(optimizer, average=True, phases=phases, save_every=1000)
    made = {}

    def remember(task):
        original = task.phases
        task.phases = lambda total: made.setdefault(id(task), original(total))
        return task
    with pytest.raises(TrainingError, match=f"step 3, phase phase{bad}: loss is (inf|nan). Nothing had been saved"):
        train(remember(task), tmp_path / "bad", progress=False)
    assert not (tmp_path / "bad" / LAST).exists()
    assert seen.count(0) <= 5  # steps 0 to 3, and one more
    assert [entry["step"] for entry in entries(tmp_path / "bad")] == [1, 2, 3]
    train(remember(whole), tmp_path / "whole", stop_after=3, progress=False)
    names = list(task.modules)
    for number, name in enumerate(names):
        if number < bad:
            continue
        for key, var in whole.modules[name].state_dict().items():
            assert np.array_equal(task.modules[name].state_dict()[key].numpy(), var.numpy()), (name, key)
        averages = [made[id(t)][number].average.state for t in (task, whole)]
        assert all(np.array_equal(averages[0][key].numpy(), value.numpy()) for key, value in averages[1].items())


def test_gradients_that_are_not_finite_stop_too(later, tmp_path):
    task, _ = task_with("SGD", grad_clip=1.0)
    task.phases = (lambda original: lambda total: broken(original(total)))(task.phases)

    def broken(phases):
        losses, calls = phases[0].losses, []

        def without_gradient(batch):
            calls.append(1)
            found = losses(batch)
            if len(calls) == 3:  # the root's gradient at 0 is infinite, its value is not
                found["loss"] = found["loss"] + (found["loss"] * 0).sqrt()
            return found
        phases[0].losses = without_gradient
        return phases
    with pytest.raises(TrainingError, match="step 2, phase phase0: grad_norm is nan"):
        train(task, tmp_path, progress=False)


def test_the_host_reads_one_step_late_and_no_later(later, tmp_path, monkeypatch):
    """And before anything is saved or judged."""
    happened, begin = [], loop.begin_step

    def begin_step(phases, batch, step, options, gate):
        read = begin(phases, batch, step, options, gate)
        happened.append(f"begun {step}")
        return lambda: happened.append(f"read {step}") or read()
    monkeypatch.setattr(loop, "begin_step", begin_step)
    task = task_with("SGD", steps=6, save_every=4, eval_every=0)[0]
    save = loop.SavedRun.save
    monkeypatch.setattr(loop.SavedRun, "save", lambda *a: happened.append("saved") or save(*a))
    train(task, tmp_path, progress=False)
    assert happened == ["begun 0", "begun 1", "read 0", "begun 2", "read 1", "begun 3", "read 2", "read 3", "saved",
                        "begun 4", "begun 5", "read 4", "read 5", "saved", "saved"]  # with what it scored


def test_an_error_after_a_step_that_is_not_finite_saves_nothing(later, tmp_path):
    task, _ = task_with("SGD", bad=(1, 0), save_every=1000)
    batches = task.batches

    def broken(epoch, start):
        for number, batch in enumerate(batches(epoch, start), 2 * epoch + start):
            if number == 2:
                raise MemoryError
            yield batch
    task.batches = broken
    with pytest.raises(MemoryError):
        train(task, tmp_path, progress=False)
    assert not (tmp_path / LAST).exists()


def test_one_who_asks_to_stop_is_heard(later, tmp_path, monkeypatch):
    asked = iter([False, False, True] + [True] * 10)
    monkeypatch.setattr(loop, "Gate", lambda _: reading.Gate(lambda: next(asked)))
    with pytest.raises(KeyboardInterrupt, match="stopped at step 4"):  # asked in step 2, read while step 3 runs
        train(task_with("SGD", save_every=1000)[0], tmp_path, progress=False)
    assert load_npz(tmp_path / LAST)[1]["step"] == 4


# -- running statistics -------------------------------------------------------------------------------------------

def test_running_statistics_move_together():
    rng = np.random.default_rng(0)
    x = jt.array(rng.standard_normal((6, 4, 5)).astype(np.float32) + 3)
    at_once, together = BatchNorm1d(4), BatchNorm1d(4)
    for _ in range(2):
        at_once(x)
        at_once(2 * x)
    with norm.collected() as statistics:
        for _ in range(2):  # a layer that runs several times moves as often
            together(x)
            together(2 * x)
        assert together.running_mean.numpy().tolist() == [0] * 4
    statistics.move()
    for name in ("running_mean", "running_var"):
        assert np.abs(getattr(together, name).numpy() - getattr(at_once, name).numpy()).max() < 1e-6
    before = together.running_var.numpy()
    with norm.collected() as statistics:
        together(x)
    statistics.move(jt.zeros(2))  # a step that does not count
    assert np.array_equal(together.running_var.numpy(), before)


def test_buffers_that_are_kept_stay_as_they_were():
    layer = BatchNorm1d(4)
    with norm.collected() as statistics:
        with keeping_buffers(layer):
            layer(jt.randn(3, 4))
        statistics.move()
    assert layer.running_mean.numpy().tolist() == [0] * 4 and math.isclose(layer.running_var.numpy().sum(), 4)
