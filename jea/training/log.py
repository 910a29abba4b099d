"""What a run tells: log.jsonl and the curves drawn from it, TensorBoard events, lines on stderr; one rank tells it."""
from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path

import numpy as np

from jea import ranks
from jea.draw.charts import curve_png
from jea.errors import TrainingError
from jea.files import write_bytes
from jea.reading import read_file

LOG, CURVES = "log.jsonl", "curves.png"
_MAX_LOG = 1024 * 1024 * 1024  # bytes of log.jsonl: millions of steps


def open_log(out: Path, step: int) -> Log | NoLog:
    """Open the log of a run that goes on after `step` steps; entries of steps that it does again are dropped."""
    return Log(out, step) if ranks.is_first() else NoLog()


def say(text: str) -> None:
    """Tell a person something, once, whatever the number of ranks."""
    if ranks.is_first():
        print(f"jea: {text}", file=sys.stderr)


def mean_over_ranks(losses: dict, parts: int = 1) -> dict:
    """The numbers of scalar Vars, each the mean over all ranks, divided by `parts`. Waits until they are computed."""
    shares = ranks.total([value.item() for value in losses.values()]) / (ranks.size() * parts)
    return dict(zip(losses, shares.tolist()))


def samples_per_second(count: int, seconds: float) -> float:
    """The rate of all ranks, each of which takes as many samples."""
    return count * ranks.size() / seconds


class Log:
    """log.jsonl, a line per entry; curves.png from it; TensorBoard events when it is installed.

    An entry is {"step": ..., numbers} of a step, or {"step": ..., "score": ..., "evaluation": {...}} of an evaluation.
    """

    writes = True

    def __init__(self, out: Path, step: int):
        self.path, self.curves = out / LOG, out / CURVES
        self.entries = self._entries_to(step) if step else []
        write_bytes(self.path, "".join(json.dumps(entry) + "\n" for entry in self.entries).encode())
        self.file = open(self.path, "a", encoding="utf-8")
        self.events = _event_writer(out)

    def _entries_to(self, step: int) -> list:
        """The entries up to a step; lines that are none, such as the last one of a killed run, are left out."""
        if not self.path.is_file():
            return []
        lines = read_file(self.path, limit=_MAX_LOG, error=TrainingError, what="log", empty=True,
                          too_large="move it away: the weights are not in it").splitlines()
        entries = [_entry(line) for line in lines]
        damaged = entries[:-1].count(None)
        if damaged:
            say(f"{self.path}: {damaged} of {len(lines)} lines could not be read and are left out; the weights are not "
                f"in it")
        return [entry for entry in entries if entry is not None and entry["step"] <= step]

    def was_judged(self, step: int) -> bool:
        """Whether the log has an evaluation of this step."""
        return any(entry["step"] == step and "evaluation" in entry for entry in self.entries)

    def write(self, **entry) -> None:
        """Add an entry."""
        self.entries.append(entry)
        self.file.write(json.dumps(entry) + "\n")
        self.file.flush()
        if self.events:
            flat = {**scalars(entry), **{f"val/{k}": v for k, v in scalars(entry.get("evaluation", {})).items()}}
            self.events(entry["step"], {k: v for k, v in flat.items() if k != "step"})

    def draw(self) -> None:
        """Draw loss and score over the steps."""
        names = sorted({name for entry in self.entries for name in entry if name.endswith("loss")})
        panels = {"loss": {name: _columns([(e["step"], e[name]) for e in self.entries if name in e]) for name in names}}
        judged = [(entry["step"], entry["evaluation"]) for entry in self.entries if entry.get("evaluation")]
        if judged:
            name = next(iter(judged[0][1]))
            panels[name] = {"held out": _columns([(step, values.get(name)) for step, values in judged])}
        curve_png(self.curves, panels, title=self.curves.parent.name, xlabel="step")

    def close(self) -> None:
        self.file.close()


class NoLog:
    """The log of the ranks that write none."""

    writes = False

    def was_judged(self, step: int) -> bool:
        return False

    def write(self, **entry) -> None:
        pass

    draw = close = write


def _entry(line: bytes) -> dict | None:
    """An entry of the log; None for a line that is none."""
    try:
        entry = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or type(entry.get("step")) is not int or abs(entry["step"]) > 2 ** 53:
        return None
    return entry if isinstance(entry.get("evaluation", {}), dict) else None


def _columns(points: list) -> tuple:
    """[(x, y), ...] -> (xs, ys); what is no number (a score without anything to judge) becomes NaN."""
    def number(value) -> float:
        try:
            return float(value) if isinstance(value, (int, float)) else math.nan
        except OverflowError:
            return math.nan
    return tuple(np.array([number(point[axis]) for point in points], float) for axis in (0, 1))


def _event_writer(out: Path):
    """A function (step, {name: value}) that writes TensorBoard events, or None where it is not installed."""
    try:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter
    except ImportError:
        return None
    writer = EventFileWriter(str(out))

    def write(step: int, values: dict) -> None:
        summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])
        writer.add_event(Event(wall_time=time.time(), step=step, summary=summary))
        writer.flush()
    return write


def scalars(values: dict) -> dict:
    """The entries that are plain numbers."""
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
