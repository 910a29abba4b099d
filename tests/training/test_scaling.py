"""Training in half precision: loss scaling, on the CPU, and what is refused."""
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import jea.tasks.task
from jea import ranks
from jea._jittor import jt, nn
from jea.checkpoint import load_npz
from jea.errors import TrainingError
from jea.nn import precision
from jea.tasks.options.training import TrainOptions
from jea.tasks.task import Evaluation
from jea.training import reading
from jea.training.averages import WeightAverage
from jea.training.log import LOG
from jea.training.loop import train
from jea.training.optimizers import Adam
from jea.training.phase import Phase
from jea.training.scaling import LossScaler
from jea.training.state import LAST

ROOT = Path(__file__).parent.parent.parent


class Overflow(jt.Function):
    """The identity, whose gradient overflows like float16's above a limit."""

    def execute(self, x, limit):
        self.limit = limit
        return x * 1

    def grad(self, dy):
        return jt.ternary(dy > self.limit, jt.full_like(dy, float("inf")), dy), None


class Task(jea.tasks.task.Task):
    """Least squares with Adam, a batch a step; at the steps in `bad` the gradient overflows from 2^15 on."""
    batches_per_epoch = 1000
    description = {"task": "", "model": {}, "data": {}, "train": {}}

    def __init__(self, *, bad=(), batches=None, names=("fit",), limit=2.0 ** 15 - 1, average=False, **options):
        self.options = TrainOptions(batch_size=4, num_workers=0, log_every=1, eval_every=0, save_every=1000, **options)
        rng = np.random.default_rng(0)
        self.weights = {name: rng.standard_normal((3, 2)).astype(np.float32) for name in names}
        self.modules = {name: nn.Module() for name in names}
        for name, module in self.modules.items():
            module.w = jt.array(self.weights[name])
        self.bad, self.limit, self.average = bad, limit, average
        self.numbers = batches or range(1000)  # of the samples, by step

    def batches(self, epoch, start):
        for step in range(start, self.batches_per_epoch):
            rng = np.random.default_rng(100 + self.numbers[step])
            yield {"x": rng.standard_normal((4, 3)).astype(np.float32),
                   "limit": np.full(4, self.limit if step in self.bad else np.inf, np.float32)}

    def phases(self, total):
        phases = []
        for name, module in self.modules.items():
            def losses(batch, name=name, module=module):
                bad = batch["limit"].min() if name == list(self.modules)[0] else np.inf
                return {"loss": Overflow.apply((jt.matmul(jt.array(batch["x"]), module.w) ** 2).mean(), float(bad))}
            phases.append(Phase(name=name, optimizer=Adam([module.w], lr=0.1), losses=losses,
                                average=WeightAverage(module, 0.5) if self.average else None))
        return phases

    def defaults(self, block):
        return {}

    def begin_training(self):
        pass

    def evaluate(self, out, progress=False):
        return Evaluation(1.0, {"score": 1.0})


@pytest.fixture(params=["at once", "later"])
def half_on_cpu(request, monkeypatch):
    """The loss scaling of float16 runs on the CPU; the scale doubles after three good steps. "later": the host reads a
    step's numbers one step later, as on CUDA."""
    monkeypatch.setattr(reading, "reads_later", lambda: request.param == "later")
    monkeypatch.setattr(precision, "unavailable", lambda dtype: None)
    monkeypatch.setitem(LossScaler.__init__.__kwdefaults__, "patience", 3)


def entries(out):
    return [e for e in map(json.loads, (out / LOG).read_text().splitlines()) if "evaluation" not in e]


def without_timing(out):
    return [{k: v for k, v in e.items() if k not in ("images_per_second", "peak_memory_mb")} for e in entries(out)]


def last(out):
    return load_npz(out / LAST)


def check_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for key in ours:
        assert np.array_equal(ours[key], theirs[key]), key


# Overflow at steps 1 and 5: the scale is halved there, and doubled after steps 2, 3 and 4.
SCALES = [2 ** 16, 2 ** 16, 2 ** 15, 2 ** 15, 2 ** 15, 2 ** 16, 2 ** 15, 2 ** 15]
GOOD = [0, 2, 3, 4, 6, 7]


@pytest.mark.parametrize("options", [{}, {"grad_accumulation": 2}, {"grad_clip": 0.5}])
def test_steps_that_overflow_are_left_out(half_on_cpu, tmp_path, options):
    train(Task(bad=(1, 5), steps=8, precision="float16", **options), tmp_path / "half", progress=False)
    assert [e["loss_scale"] for e in entries(tmp_path / "half")] == SCALES
    tensors, meta = last(tmp_path / "half")
    assert meta["loss_scales"] == {"fit": {"scale": 2.0 ** 15, "good_steps": 2}}
    assert meta["optimizer_steps"] == {"fit": 6}
    # As float32 on the other steps' batches, bit for bit: a power of two is exact.
    train(Task(batches=GOOD, steps=6, **options), tmp_path / "single", progress=False)
    check_equal(tensors, last(tmp_path / "single")[0])
    assert "loss_scales" not in last(tmp_path / "single")[1] and "loss_scale" not in entries(tmp_path / "single")[0]
    ours = [entries(tmp_path / "half")[step] for step in GOOD]
    for name in ("loss",) + (("grad_norm",) if "grad_clip" in options else ()):
        assert [e[name] for e in ours] == [e[name] for e in entries(tmp_path / "single")]


def test_averaged_weights_wait_too(half_on_cpu, tmp_path):
    train(Task(bad=(1, 5), steps=8, precision="float16", average=True), tmp_path / "half", progress=False)
    train(Task(batches=GOOD, steps=6, average=True), tmp_path / "single", progress=False)
    check_equal(last(tmp_path / "half")[0], last(tmp_path / "single")[0])


def test_each_phase_has_a_scale(half_on_cpu, tmp_path):
    train(Task(bad=(1, 5), steps=8, precision="float16", names=("d", "g")), tmp_path / "half", progress=False)
    assert [e["d/loss_scale"] for e in entries(tmp_path / "half")] == SCALES
    assert [e["g/loss_scale"] for e in entries(tmp_path / "half")] == [2 ** 16] * 3 + [2 ** 17] * 3 + [2 ** 18] * 2
    tensors, meta = last(tmp_path / "half")
    assert meta["optimizer_steps"] == {"d": 6, "g": 8}
    assert meta["loss_scales"]["g"] == {"scale": 2.0 ** 18, "good_steps": 2}
    train(Task(steps=8, names=("d", "g")), tmp_path / "single", progress=False)
    assert np.array_equal(tensors["model/g/w"], last(tmp_path / "single")[0]["model/g/w"])
    assert not np.array_equal(tensors["model/d/w"], last(tmp_path / "single")[0]["model/d/w"])


@pytest.mark.parametrize("stop", [1, 2, 4])
def test_a_resumed_run_equals_an_unbroken_one(half_on_cpu, tmp_path, stop):
    def task():
        return Task(bad=(1, 5), steps=8, precision="float16")
    train(task(), tmp_path / "whole", progress=False)
    train(task(), tmp_path / "parts", stop_after=stop, progress=False)
    train(task(), tmp_path / "parts", resume=True, progress=False)
    assert without_timing(tmp_path / "parts") == without_timing(tmp_path / "whole")
    check_equal(last(tmp_path / "parts")[0], last(tmp_path / "whole")[0])
    assert last(tmp_path / "parts")[1] == last(tmp_path / "whole")[1]


def test_a_run_begun_in_float32_goes_on_in_float16(half_on_cpu, tmp_path):
    train(Task(steps=4), tmp_path, stop_after=2, progress=False)
    train(Task(steps=4, precision="float16"), tmp_path, resume=True, progress=False)
    assert last(tmp_path)[1]["loss_scales"] == {"fit": {"scale": 2.0 ** 16, "good_steps": 2}}


def test_no_scale_helps(half_on_cpu, tmp_path):
    """From 2^16 down to 1 there are 17 scales."""
    with pytest.raises(TrainingError, match="step 16, phase fit: the gradients are not finite in float16 at any scale"):
        train(Task(bad=range(100), limit=0.0, steps=100, precision="float16"), tmp_path, progress=False)
    assert [e["loss_scale"] for e in entries(tmp_path)] == [2.0 ** (16 - step) for step in range(16)]
    assert not (tmp_path / LAST).exists()


def test_a_loss_that_is_not_finite_stops_all_the_same(half_on_cpu, tmp_path):
    task = Task(steps=3, precision="float16")
    task.modules["fit"].w.assign(np.full((3, 2), np.inf, np.float32))
    with pytest.raises(TrainingError, match="step 0, phase fit: loss is"):
        train(task, tmp_path, progress=False)


def test_bfloat16_has_no_scale(half_on_cpu, tmp_path):
    train(Task(steps=3, precision="bfloat16"), tmp_path, progress=False)
    assert "loss_scale" not in entries(tmp_path)[0] and "loss_scales" not in last(tmp_path)[1]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_gradients_that_are_not_finite(value):
    scaler = LossScaler(scale=4.0)
    gradients = [jt.array(np.array([4.0, -8.0], np.float32)), jt.array(np.array([[2.0]], np.float32))]
    assert scaler.unscale(gradients) and scaler.scale == 4
    assert gradients[0].numpy().tolist() == [1, -2] and gradients[1].numpy().tolist() == [[0.5]]
    assert not scaler.unscale([gradients[0], jt.array(np.array([1, value, 1], np.float32))])


def test_all_ranks_leave_a_step_out(monkeypatch):
    """Another rank's gradients overflowed."""
    monkeypatch.setattr(ranks, "total", lambda values: np.asarray(values) + 3)
    assert not LossScaler().unscale([jt.ones((2,))])


# -- refusals -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_refused_on_the_cpu(tmp_path, dtype, monkeypatch):
    monkeypatch.setattr(precision, "bfloat16_unavailable",
                        lambda: "this processor has neither avx512_bf16 nor amx_bf16")
    reason = {"float16": "float16 needs CUDA. Take bfloat16 or float32",
              "bfloat16": "bfloat16: this processor has neither avx512_bf16 nor amx_bf16. Take float32"}[dtype]
    with jt.flag_scope(use_cuda=0):
        with pytest.raises(TrainingError, match=f"train.precision is {dtype}: {reason}"):
            train(Task(steps=1, precision=dtype), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_refused_at_the_command_line(tmp_path):
    done = subprocess.run([sys.executable, "train.py", "--device", "cpu", "--out", str(tmp_path / "run"),
                           "train.precision=float16"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("float16 needs CUDA") == 1 and "Traceback" not in done.stderr
    done = subprocess.run([sys.executable, "train.py", "--device", "cpu", "train.precision=half"], cwd=ROOT,
                          capture_output=True, text=True)
    assert done.returncode == 2 and "precision is 'half'; expected float32, float16, bfloat16" in done.stderr


def test_bfloat16_wants_ampere(monkeypatch):
    for archs, refused in (([75], True), ([75, 90], True), ([80], False), ([90], False)):
        monkeypatch.setattr(precision, "jt", SimpleNamespace(flags=SimpleNamespace(use_cuda=1, cuda_archs=archs)))
        reason = precision.unavailable("bfloat16")
        assert bool(reason) == refused, archs
        assert not refused or "compute capability 8.0 (Ampere) or newer, and this one has 7.5" in reason
        assert precision.unavailable("float16") is None and precision.unavailable("float32") is None
