"""train(): the only training loop. A task brings its modules, batches, phases and evaluation; see jea/tasks/base.py.

Everything random in a step is a pure function of (seed, step): the order of the data, each sample's augmentation and
the random numbers on the device. So a checkpoint needs no generator states, and a resumed run equals an unbroken one.
"""
from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import sys
import time
from pathlib import Path
from typing import Optional

import numpy as np

from jea import checkpoint as store
from jea import ranks
from jea._jittor import jt
from jea.draw.charts import curve_png
from jea.errors import CheckpointError, DataError, TrainingError
from jea.nn import precision
from jea.progress import progress as progress_bar
from jea.tasks.base import peak_memory_mb

LAST, BEST, LOG, CURVES = "last.npz", "best.npz", "log.jsonl", "curves.png"


def train(task, out_dir, *, resume: bool = False, stop_after: Optional[int] = None, progress: bool = True) -> dict:
    """Train a task; returns the last evaluation's result.

    Args:
        task: has `modules` (name -> Module, saved), `options` (TrainOptions), `phases(total_steps)`,
            `batches(epoch, start_batch)`, `batches_per_epoch`, `begin_training()`, `evaluate(out_dir, ...) -> dict` whose
            first value judges "best", `description` (stored in checkpoints) and `close()`.
        out_dir: folder for last.npz (everything to go on), best.npz (weights only), log.jsonl and curves.png.
        resume: go on from out_dir/last.npz.
        stop_after: end (and save) before this step, as a time-limited job would; the schedule keeps its length.
        progress: show a progress bar on stderr.
    Raises:
        TrainingError: non-finite loss; last.npz stays that of the last save. A precision that the device does not have.
        CheckpointError: nothing to resume from, or it belongs to another run.
    """
    options, out_dir = task.options, Path(out_dir)
    if options.batch_size % (ranks.size() * options.grad_accumulation):
        raise TrainingError(f"batch_size is {options.batch_size}, for {ranks.size()} processes and grad_accumulation "
                            f"{options.grad_accumulation}; it must be a multiple of their product: change "
                            "train.batch_size or mpirun's -np")
    reason = precision.unavailable(options.precision)
    if reason:
        raise TrainingError(f"train.precision is {options.precision}: {reason}")
    progress = progress and ranks.is_first()
    out_dir.mkdir(parents=True, exist_ok=True)
    total = options.steps if options.steps is not None else options.epochs * task.batches_per_epoch
    phases = task.phases(total)
    if options.precision == "float16":
        for phase in phases:
            phase.scaler = precision.LossScaler()
    log = _Log(out_dir) if ranks.is_first() else _NoLog()
    step, best, result = 0, None, {}
    if resume:
        step, best = _restore(task, phases, out_dir / LAST)
    elif (out_dir / LAST).exists():
        raise TrainingError(f"{out_dir / LAST} is there already: add --resume to go on from it, or choose another --out")
    else:
        ranks.share_variables(var for module in task.modules.values() for var in module.state_dict().values())
        for phase in phases:
            if phase.average:
                phase.average.reset()
    log.keep_before(step)
    task.begin_training()
    end = total if stop_after is None else min(stop_after, total)
    bar = progress_bar(total=total, initial=step, unit="step", shown=progress)
    with _Interrupt() as interrupt:
        saved = step
        stopped = False
        try:
            if step == total and not ranks.on_first(lambda: _was_judged(log, out_dir, total)):
                # The run ended between its last step and the evaluation.
                best = best if (out_dir / BEST).is_file() else None
                result, best = _judge(task, phases, out_dir, step, best, log, bar, progress)
                _save(task, phases, out_dir / LAST, step, best)
            while step < end and not stopped:
                epoch, start = divmod(step, task.batches_per_epoch)
                for batch in task.batches(epoch, start):
                    started = time.perf_counter()
                    jt.set_seed(_step_seed(options.seed, step, ranks.rank()))
                    values = _step(phases, batch, step, options)
                    seconds = time.perf_counter() - started
                    step += 1
                    images = len(next(iter(batch.values()))) * ranks.size()
                    shown = [f"{name} {value:.4g}" for name, value in values.items()]
                    bar.set_postfix_str(", ".join(shown + [f"{images / seconds:.1f} images/s"]), refresh=False)
                    bar.update()
                    if step % options.log_every == 0 or step == total:
                        log.write(step=step, images_per_second=round(images / seconds, 3), **values,
                                  peak_memory_mb=peak_memory_mb())
                    if (options.eval_every and step % options.eval_every == 0) or step == total:
                        result, best = _judge(task, phases, out_dir, step, best, log, bar, progress)
                    if step % options.save_every == 0 or step == total:
                        _save(task, phases, out_dir / LAST, step, best)
                        saved = step
                    stopped = ranks.total(interrupt.asked) > 0  # all ranks stop at the same step
                    if step >= end or stopped:
                        break
        except (DataError, OSError):  # a broken file, a full disk: the weights are good
            if saved != step:
                _save(task, phases, out_dir / LAST, step, best)
            raise
        if saved != step:
            _save(task, phases, out_dir / LAST, step, best)
        ranks.total(0)  # no rank leaves before the first has saved: that would end the first as well
    bar.close()
    log.close()
    if stopped:
        raise KeyboardInterrupt(f"stopped at step {step}; {out_dir / LAST} is saved, --resume goes on from it")
    return dict(result, peak_memory_mb=peak_memory_mb()) if result else result


def _judge(task, phases, out_dir: Path, step: int, best, log, bar, progress: bool) -> tuple:
    """Evaluate, and write best.npz if the score is the highest; returns (result, best score)."""
    with _averages_applied(phases):
        result = evaluate(task, out_dir / "val", progress=progress)
        score = next(iter(result.values()))
        if best is None or score > best:
            best = score if math.isfinite(score) else None  # NaN: there was nothing to judge
            if ranks.is_first():
                store.save_npz(out_dir / BEST, _weights(task), dict(task.description, step=step, metrics=plain(result)))
    log.write(step=step, evaluation=plain(result), peak_memory_mb=peak_memory_mb())
    if ranks.is_first():
        bar.write(f"step {step}: " + ", ".join(f"{k} {v:.4f}" for k, v in _scalars(result).items()), file=sys.stderr)
    log.draw()
    return result, best


def evaluate(task, out_dir, **options) -> dict:
    """task.evaluate, by all ranks or by rank 0 alone; all get the result."""
    if getattr(task, "shares_evaluation", False):
        return task.evaluate(out_dir, **options)
    return ranks.on_first(lambda: task.evaluate(out_dir, **options))


def _step(phases, batch, step: int, options) -> dict:
    """Run the due phases on one batch; returns numbers for the log."""
    logged, parts = {}, _parts(batch, options.grad_accumulation)
    for phase in phases:
        if step % phase.every:
            continue
        rate = phase.set_rates(step)
        values: dict = {}
        for part in parts:
            with precision.autocast(options.precision):
                losses = phase.losses(part)
            shares = ranks.total([value.item() for value in losses.values()]) / (ranks.size() * len(parts))
            for name, value in zip(losses, shares.tolist()):
                values[name] = values.get(name, 0.0) + value
            _check_finite(values, step, phase)  # before the optimizer's step, so the weights stay those of the last
            loss = losses["loss"] * phase.scaler.scale if phase.scaler else losses["loss"]
            phase.optimizer.backward(loss if len(parts) == 1 else loss / len(parts))
            if len(parts) > 1:
                jt.sync_all()  # frees this part's activations
        phase.optimizer.n_step -= len(parts) - 1  # Jittor counts the backward passes; Adam's correction wants the steps
        if _unscaled(phase, values, step):
            if options.grad_clip:
                values["grad_norm"] = _clip(phase.optimizer, options.grad_clip)
                _check_finite(values, step, phase)
            phase.optimizer.step()
            if phase.average:
                phase.average.update()
        for group in phase.optimizer.param_groups:
            del group["grads"]  # Jittor would keep them through the next forward pass
        prefix = "" if len(phases) == 1 else f"{phase.name}/"
        logged.update({prefix + name: value for name, value in values.items()}, **{prefix + "lr": rate})
        jt.sync_all()
    return logged


def _parts(batch: dict, count: int) -> list:
    """The batch cut into `count` pieces of one size, along the first axis of its arrays."""
    if count == 1:
        return [batch]
    size = len(next(iter(batch.values()))) // count
    return [{name: array[k * size:(k + 1) * size] for name, array in batch.items()} for k in range(count)]


def _check_finite(values: dict, step: int, phase) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            raise TrainingError(f"step {step}, phase {phase.name}: {name} is {value}. The weights of the last save are "
                                "untouched; a lower learning rate or gradient clipping often helps.")


def _unscaled(phase, values: dict, step: int) -> bool:
    """Undo the scaling of the loss in a phase's gradients; False where they are not finite and the step is left out."""
    scaler, optimizer = phase.scaler, phase.optimizer
    if not scaler:
        return True
    values["loss_scale"] = scaler.scale
    finite = scaler.unscale(_gradients(optimizer))
    scaler.adjust(finite)
    if not finite:
        optimizer.zero_grad()  # or the next gradients would be added to zeros
        optimizer.n_step -= 1
        if scaler.scale < 1:
            raise TrainingError(f"step {step}, phase {phase.name}: the gradients are not finite in float16 at any scale "
                                "of the loss, down to 1. The weights of the last save are untouched; a lower learning "
                                "rate, gradient clipping, or train.precision=bfloat16 or float32 helps.")
    return finite


def _gradients(optimizer) -> list:
    return [g for group in optimizer.param_groups for p, g in zip(group["params"], group["grads"])
            if not p.is_stop_grad()]


def _clip(optimizer, largest: float) -> float:
    """Scale an optimizer's gradients so that their global norm is at most `largest`; returns the norm before.

    As torch's clip_grad_norm_: by min(1, largest / (norm + 1e-6)). The sum of squares runs in float64.
    """
    gradients = _gradients(optimizer)
    squares = precision.square_sums(gradients).sum()
    norm = math.sqrt(squares) if math.isfinite(squares) else math.nan
    if norm > largest:
        factor = largest / (norm + 1e-6)
        for g in gradients:
            g.update(g * factor)
    return norm


@contextlib.contextmanager
def _averages_applied(phases):
    """Inside the block the modules have the averaged weights of the phases that keep some."""
    with contextlib.ExitStack() as stack:
        for phase in phases:
            if phase.average:
                stack.enter_context(phase.average.applied())
        yield


def _step_seed(seed: int, step: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0] & 0x7FFFFFFF)


def _was_judged(log, out_dir: Path, step: int) -> bool:
    """Whether a resumed run has best.npz and the evaluation of a step."""
    return (out_dir / BEST).is_file() and any(e["step"] == step and "evaluation" in e for e in log.entries)


# -- checkpoints --------------------------------------------------------------------------------------------------

def _weights(task) -> dict:
    """All modules' state; with one module the keys are the model's own, so that load_weights reads the file."""
    many = len(task.modules) > 1
    return {(f"{name}/{key}" if many else key): var.numpy() for name, module in task.modules.items()
            for key, var in module.state_dict().items()}


def _phase_state(phases) -> dict:
    """name -> Var of averaged weights, and of all optimizer state that is a list beside `params`, such as SGD's
    momentum buffers."""
    found = {}
    for phase in phases:
        if phase.average:
            found.update({f"average/{phase.name}/{key}": var for key, var in phase.average.state.items()})
        for number, group in enumerate(phase.optimizer.param_groups):
            for kind, values in group.items():
                if kind in ("params", "grads") or not isinstance(values, list):
                    continue
                for index, var in enumerate(values):
                    found[f"optimizer/{phase.name}/{number}/{kind}/{index}"] = var
    return found


def _save(task, phases, path: Path, step: int, best) -> None:
    if not ranks.is_first():
        return
    tensors = {f"model/{key}": value for key, value in _weights(task).items()}
    tensors.update({key: var.numpy() for key, var in _phase_state(phases).items()})
    counts = {phase.name: int(phase.optimizer.n_step) for phase in phases}
    scales = {phase.name: phase.scaler.state for phase in phases if phase.scaler}
    store.save_npz(path, tensors, dict(task.description, kind="training", step=step, best=best, seed=task.options.seed,
                                       optimizer_steps=counts, **({"loss_scales": scales} if scales else {})))


def _restore(task, phases, path: Path) -> tuple:
    """Put a saved training state back; returns (step, best score)."""
    if not path.is_file():
        raise CheckpointError(path, "not there, so there is nothing to resume; leave --resume out to start anew")
    tensors, meta = store.load_npz(path)
    if meta.get("kind") != "training":
        raise CheckpointError(path, "not a training checkpoint of jea; weights alone are read with train.init_weights")
    if meta["seed"] != task.options.seed:
        raise CheckpointError(path, f"was trained with seed {meta['seed']}, the config says {task.options.seed}")
    many = len(task.modules) > 1
    wanted = {f"model/{name}/{key}" if many else f"model/{key}": var for name, module in task.modules.items()
              for key, var in module.state_dict().items()}
    wanted.update(_phase_state(phases))
    different = sorted(key for key in wanted.keys() | tensors.keys()
                       if key not in wanted or key not in tensors or tuple(wanted[key].shape) != tensors[key].shape)
    if different:
        raise CheckpointError(path, f"belongs to another model or optimizer; {len(different)} tensors differ, "
                              f"first {', '.join(different[:3])}")
    for key, var in wanted.items():
        var.assign(tensors[key])
    for phase in phases:
        phase.optimizer.n_step = meta["optimizer_steps"][phase.name]
        if phase.scaler and phase.name in meta.get("loss_scales", {}):  # none: the run began in another precision
            phase.scaler.restore(meta["loss_scales"][phase.name])
    return meta["step"], meta["best"]


# -- log ------------------------------------------------------------------------------------------------------------

class _Log:
    """log.jsonl, a line per entry; curves.png from it; TensorBoard events when it is installed."""

    def __init__(self, out_dir: Path):
        self.path, self.curves = out_dir / LOG, out_dir / CURVES
        self.entries: list = []
        self.events = _event_writer(out_dir)

    def keep_before(self, step: int) -> None:
        """Forget entries of steps that a resumed run does again (0: all)."""
        if step and self.path.exists():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                try:
                    entry = json.loads(line)
                except ValueError:
                    continue  # the last line of a killed run
                if entry.get("step", 0) <= step:
                    self.entries.append(entry)
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        temporary.write_text("".join(json.dumps(entry) + "\n" for entry in self.entries), encoding="utf-8")
        os.replace(temporary, self.path)
        self.file = open(self.path, "a", encoding="utf-8")

    def write(self, **entry) -> None:
        self.entries.append(entry)
        self.file.write(json.dumps(entry) + "\n")
        self.file.flush()
        if self.events:
            flat = {**_scalars(entry), **{f"val/{k}": v for k, v in _scalars(entry.get("evaluation", {})).items()}}
            self.events(entry["step"], {k: v for k, v in flat.items() if k != "step"})

    def draw(self) -> None:
        """Draw loss and score over the steps."""
        names = sorted({name for e in self.entries for name in e if name.endswith("loss")})
        panels = {"loss": {name: _columns([(e["step"], e[name]) for e in self.entries if name in e]) for name in names}}
        evaluations = [(e["step"], e["evaluation"]) for e in self.entries if "evaluation" in e]
        if evaluations:
            name = next(iter(evaluations[0][1]))
            panels[name] = {"held out": _columns([(step, result[name]) for step, result in evaluations])}
        curve_png(self.curves, panels, title=self.curves.parent.name, xlabel="step")

    def close(self) -> None:
        self.file.close()


class _NoLog:
    """The log of the ranks that write none."""

    def keep_before(self, step: int) -> None:
        pass

    def write(self, **entry) -> None:
        pass

    draw = close = write


def _columns(points) -> tuple:
    """[(x, y), ...] -> (xs, ys); None (a score without anything to judge) becomes NaN."""
    return tuple(np.array([math.nan if p[axis] is None else p[axis] for p in points], float) for axis in (0, 1))


def _event_writer(out_dir: Path):
    """A function (step, {name: value}) that writes TensorBoard events, or None where it is not installed."""
    try:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter
    except ImportError:
        return None
    writer = EventFileWriter(str(out_dir))

    def write(step: int, values: dict) -> None:
        summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])
        writer.add_event(Event(wall_time=time.time(), step=step, summary=summary))
        writer.flush()
    return write


def _scalars(values: dict) -> dict:
    return {k: v for k, v in values.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}


def plain(value):
    """JSON-ready: numpy numbers and arrays become Python's; NaN becomes null."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(v) for v in value]
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value



class _Interrupt:
    """The first Ctrl-C (or SIGTERM) asks the loop to save and stop; the second stops at once."""

    def __init__(self):
        self.asked = False
        self._previous = {}

    def __enter__(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._previous[number] = signal.signal(number, self._handle)
            except ValueError:
                pass  # not the main thread: the caller has its own way to stop
        return self

    def _handle(self, number, frame):
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        print("\njea: stopping after this step and saving (once more to stop at once)", file=sys.stderr)

    def __exit__(self, *error):
        for number, handler in self._previous.items():
            signal.signal(number, handler)
