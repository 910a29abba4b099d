"""train(): the only training loop. A task brings its modules, batches, phases and evaluation; see jea/tasks/task.py.

Everything random in a step is a pure function of (seed, step): the order of the data, each sample's augmentation and
the random numbers on the device. So a checkpoint needs no generator states, and a resumed run equals an unbroken one.
"""
from __future__ import annotations

import contextlib
import math
import sys
import time
from pathlib import Path
from typing import Callable

from jea._jittor import jt
from jea.data import Batch
from jea.errors import ConfigError, TrainingError
from jea.nn import precision
from jea.progress import progress as progress_bar
from jea.training.averages import averages_applied
from jea.training.interrupt import Interrupt
from jea.training.lock import locked
from jea.training.log import open_log, plain, samples_per_second, say, scalars
from jea.training.memory import peak_memory_mb
from jea.training.phase import begin_step
from jea.training.reading import Diverged, Gate
from jea.training.scaling import LossScaler
from jea.training.state import SavedRun, check_shares, evaluate, on_any_rank, seed_of_step


def train(task, out_dir, *, resume: bool = False, stop_after: int | None = None, progress: bool = True,
          ema: bool = True, strict: bool = True, report: Callable | None = None) -> dict:
    """Train a task; returns the values of the last evaluation, {} where there was none.

    Args:
        task: a jea.tasks.task.Task.
        out_dir: folder for last.npz (everything to go on), best.npz (weights only), log.jsonl and curves.png.
        resume: go on from out_dir/last.npz; options that differ from those of the run are told.
        stop_after: end (and save) before this step, as a time-limited job would; the schedule keeps its length.
        progress: show a progress bar on stderr.
        ema, strict: how train.init_weights are loaded, as jea.checkpoint.load_weights.
        report: called with each Evaluation, by the rank that writes, once the curves are drawn.
    Raises:
        TrainingError: a loss, gradient or weight that is not finite; last.npz stays that of the last save. A precision
            that the device does not have. Another run that writes into the folder.
        CheckpointError: nothing to resume from, or it belongs to another run.
    """
    options, out = task.options, Path(out_dir)
    total = total_steps(task)
    end = total if stop_after is None else min(stop_after, total)
    out.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:  # lock, log, bar and signal handlers are given back whatever happens
        stack.enter_context(locked(out))
        phases = task.phases(total)
        if options.precision == "float16":
            for phase in phases:
                phase.scaler = LossScaler()
        saved = SavedRun(task, phases, out)
        step, best = saved.restore(total) if resume else saved.begin(ema=ema, strict=strict)
        log = stack.enter_context(contextlib.closing(open_log(out, step)))
        shown = progress and log.writes
        bar = stack.enter_context(contextlib.closing(progress_bar(total=total, initial=step, unit="step", shown=shown)))
        interrupt = stack.enter_context(Interrupt())
        gate = Gate(lambda: interrupt.asked)
        running: list = []  # steps whose numbers have not been read: [(step, batch size, when it began, read), ...]
        read_at = 0.0
        task.begin_training()

        def is_judged(step: int) -> bool:
            return step == total or bool(options.eval_every) and step % options.eval_every == 0

        def judge(step: int, best) -> tuple:
            """Evaluate, and write best.npz if the score is the highest; returns (values, best score)."""
            with averages_applied(phases):
                found = evaluate(task, out / "val", progress=shown)
                score = found.score if found.score is not None and math.isfinite(found.score) else None
                if best is None or score is not None and score > best:
                    saved.save_best(step, score, found.values)
                    best = score
            log.write(step=step, score=score, evaluation=plain(found.values), peak_memory_mb=peak_memory_mb())
            if log.writes:
                bar.write(f"step {step}: " + ", ".join(f"{k} {v:.4f}" for k, v in scalars(found.values).items()),
                          file=sys.stderr)
            log.draw()
            if report and log.writes:
                report(found)
            return found.values, best

        def read_oldest() -> None:
            """Read the numbers of the oldest step that runs, and tell them. Raises Diverged."""
            nonlocal read_at
            step, size, began, read = running.pop(0)
            numbers = read()
            now = time.perf_counter()
            rate, read_at = samples_per_second(size, now - max(began, read_at)), now
            bar.set_postfix_str(", ".join([*(f"{name} {value:.4g}" for name, value in numbers.items()),
                                           f"{rate:.1f} images/s"]), refresh=False)
            bar.update()
            if step % options.log_every == 0 or step == total:
                log.write(step=step, images_per_second=round(rate, 3), **numbers, peak_memory_mb=peak_memory_mb())

        values, stopped, whole = {}, False, True
        try:
            if 0 < step <= total and is_judged(step) and not saved.was_judged(log, step):
                values, best = judge(step, best)  # the run ended between a save and its evaluation
            elif step >= end:
                say(f"nothing left to do: {out} is at step {step}" if step < total else
                    f"nothing left to do: this run had ended, after {step} steps" + f" of {total}" * (step > total))
            while step < end and not stopped:
                for batch in task.batches(*divmod(step, task.batches_per_epoch)):
                    batch, began = Batch(batch), time.perf_counter()
                    jt.set_seed(seed_of_step(options.seed, step))
                    whole = False
                    read = begin_step(phases, batch, step, options, gate)
                    whole, step = True, step + 1
                    running.append((step, batch.size, began, read))
                    is_kept = step % options.save_every == 0 or is_judged(step)
                    # All of them before anything is kept; else on CUDA all but the one that has just begun.
                    while len(running) > (gate.later and not is_kept and step < end):
                        read_oldest()
                    if is_kept:
                        saved.save(step, best)
                    if is_judged(step):
                        values, best = judge(step, best)
                    stopped = gate.stopped if gate.later else on_any_rank(interrupt.asked)  # all ranks at the same step
                    if step >= end or stopped:
                        break
            while running:
                read_oldest()
            if (saved.step, saved.best) != (step, best):
                saved.save(step, best)
        except Diverged as error:
            try:
                while running and running[0][0] <= error.step:  # those before it
                    read_oldest()
            except Diverged as earlier:
                error = earlier
            raise TrainingError(f"{error}. {saved.what_is_kept(error.step)}") from None
        except Exception as error:  # a broken file, a full disk, no memory: the weights between two steps are good
            if whole and step not in (0, saved.step, saved.tried) and not isinstance(error, TrainingError):
                with contextlib.suppress(Exception):  # the first error is the one to tell
                    while running:
                        read_oldest()
                    saved.save(step, best)
            raise
        on_any_rank(False)  # no rank leaves before the first has saved: that would end the first as well
    if stopped:
        raise KeyboardInterrupt(f"stopped at step {step}; {saved.last} is saved, --resume goes on from it")
    return dict(values, peak_memory_mb=peak_memory_mb()) if values else values


def total_steps(task) -> int:
    """The length of a run; ConfigError for options of which one is missing or too much, or that cannot be shared
    out."""
    options = task.options
    if (options.steps is None) == (options.epochs is None):
        said = "neither steps nor epochs is" if options.steps is None else "both steps and epochs are"
        raise ConfigError(f"train: {said} given; expected exactly one")
    check_shares(options)
    reason = precision.unavailable(options.precision)
    if reason:
        raise TrainingError(f"train.precision is {options.precision}: {reason}")
    return options.steps if options.steps is not None else options.epochs * task.batches_per_epoch
