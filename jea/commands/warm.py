"""`jea warm`: compile beforehand what training and testing of a config need."""
from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from jea.commands.common import console, session
from jea.commands.common.session import load_config, run_parser
from jea.errors import ConfigError

PARTS = ("a training step", "another one", "an evaluation", "a test")


def main(argv=None) -> int:
    """Run the command; returns its exit status."""
    parser = run_parser("warm", "Compile now what training and testing of a config need, so that nothing is compiled "
                        "when they start. Jittor compiles the kernels of one step or evaluation side by side, on all "
                        "cores, and keeps them. A small batch of the config's own data goes through; weights and "
                        "results are thrown away.", "example: jea warm segmentation_eanet_resnet101_voc --data "
                        "VOCdevkit")
    parser.add_argument("--again", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_intermixed_args(argv)
    if arguments.overrides and "=" not in arguments.overrides[0]:
        arguments.config = arguments.overrides.pop(0)
    return console.run("warm", lambda arguments: _warm(arguments, sys.argv[1:] if argv is None else argv), arguments)


def _warm(arguments, argv) -> int:
    started = time.perf_counter()
    device = session.choose_device(arguments)
    config, stem = load_config(arguments)
    session.check_paths(arguments, config, None)
    # Kernels know no sizes of batches: two samples for each part of a step.
    config["train"].update(batch_size=2 * config["train"].get("grad_accumulation", 1), num_workers=0)
    device = session.start(arguments, device)
    from jea import ranks
    if ranks.size() > 1:
        raise ConfigError("jea warm: run it without mpirun; the ranks find what one process has compiled")
    from jea.tasks import create_task
    task = create_task(config)
    if arguments.dry_run:
        session.say(f"dry run: would compile for {session.describe(config, task)}; device {device}; data: "
                    f"{session.data_state(task)}")
        return 0
    if arguments.again:
        _train(task, steps=1)
        return 0
    session.say(f"{session.describe(config, task)}; device {device}")
    before = _kernels()
    with _Bar(before) as bar, tempfile.TemporaryDirectory() as folder:
        phases = _train(task, steps=2, done=bar.next)
        _evaluate(task, phases, Path(folder) / "val")
        bar.next()
        task.close()
        task = create_task(config, draw=False)
        task.fuse()
        _evaluate(task, (), Path(folder) / "test")
        bar.next()
    task.close()
    session.say(f"{stem}: {len(_kernels() - before)} kernels compiled, {time.perf_counter() - started:.0f} s")
    session.say(f"the next start takes {_next_start(argv):.1f} s to the end of its first step (measured, with batches "
                "of two)")
    return 0


def _train(task, *, steps: int, done=lambda: None) -> list:
    """Make training steps, and wait for them; returns the phases."""
    from jea._jittor import jt
    from jea.data import Batch
    from jea.training.phase import run_step
    from jea.training.scaling import LossScaler
    total = max(steps, 10)
    phases = task.phases(total)
    for phase in phases:
        phase.every = 1
        if task.options.precision == "float16":
            phase.scaler = LossScaler()
        if phase.average:
            phase.average.reset()
    task.begin_training()
    try:
        batch = Batch(next(iter(task.batches(0, 0))))
    except StopIteration:
        raise ConfigError(f"{task.name}: the training data have no two samples") from None
    for step in range(steps):
        run_step(phases, batch, step, task.options)
        jt.sync_all(True)
        done()
    return phases


def _evaluate(task, phases, out: Path) -> None:
    from jea.training.averages import averages_applied
    out.mkdir()
    with averages_applied(phases):
        task.evaluate(out, limit=2, progress=False)


def _kernels() -> set:
    """The kernels in Jittor's cache."""
    from jea._jittor import jt
    folder = Path(jt.flags.cache_path) / "jit"
    return {entry.name for entry in os.scandir(folder) if entry.name.endswith(".so")} if folder.is_dir() else set()


def _next_start(argv) -> float:
    """The seconds that a new process takes to the end of its first step."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "jea", "warm", *argv, "--again"], stdout=subprocess.DEVNULL,
                          stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise ConfigError(f"the next start was tried, and failed: {done.stderr.strip()[-500:]}")
    return time.perf_counter() - started


class _Bar:
    """A progress bar over PARTS, with the number of kernels so far. Inside, what Jittor and compilers say goes
    nowhere: it would be drawn into the bar, and a failed build is told by its exception."""

    def __init__(self, before: set):
        self._before, self._ended = before, threading.Event()

    def __enter__(self) -> _Bar:
        from jea.progress import progress
        self._python, self._kept = sys.stderr, os.dup(2)
        self._python.flush()
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        sys.stderr = os.fdopen(self._kept, "w", buffering=1, closefd=False)
        self._bar = progress(total=len(PARTS), title=PARTS[0], unit="part")
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._ended.wait(1.0):
            with contextlib.suppress(OSError):
                self._bar.set_postfix_str(f"{len(_kernels() - self._before)} kernels")

    def next(self) -> None:
        """The next part begins."""
        self._bar.update()
        self._bar.set_description(PARTS[min(self._bar.n, len(PARTS) - 1)], refresh=False)

    def __exit__(self, *error) -> None:
        self._ended.set()
        self._thread.join()
        self._bar.set_postfix_str(f"{len(_kernels() - self._before)} kernels")
        self._bar.close()
        sys.stderr.flush()
        os.dup2(self._kept, 2)
        os.close(self._kept)
        sys.stderr = self._python
