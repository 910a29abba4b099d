"""report.html of `jea test` and `jea train`: what was found, with what, and how to find it again."""
from __future__ import annotations

import datetime
import shlex
import sys
from pathlib import Path

import yaml

from jea import __version__
from jea.commands.info import cpu_name, version
from jea.draw.report import Picture, Report

REPORT = "report.html"


def write_report(path, evaluation, *, title: str, lead: str, config: dict, defaults: dict, command: list,
                 curves: Path | None = None) -> None:
    """Write the report of an evaluation.

    Args:
        path: the file.
        evaluation: a jea.tasks.task.Evaluation.
        title, lead: the page's first two lines.
        config: as it was run; defaults: block -> the values that a key has where the config does not name it.
        command: words of the command line.
        curves: the picture of a training run's curves.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)  # an evaluation need not have written anything
    scores, tables = _split(evaluation.values)
    worst = sorted(evaluation.shown, key=lambda entry: (entry.score is None, entry.score))
    attention = [Picture(entry.attention.path, entry.caption.partition(";")[0], entry.attention.words)
                 for entry in [*worst, *evaluation.charts] if entry.attention]
    charts = [_picture(entry) for entry in evaluation.charts]
    if curves is not None and curves.is_file():
        charts.append(Picture(curves, "Curves of the run", "curves of the run over its steps"))
    text, changed = config_text(config, defaults)
    Report(title=title, lead=lead, scores=scores, tables=tables, pictures=[_picture(entry) for entry in worst],
           attention=attention, charts=charts, config=text, changed=changed, facts=_facts(),
           command=shlex.join(command)).write(path)


def command_line() -> list:
    """The words that started this process, as a person types them."""
    name = Path(sys.argv[0]).name
    start = ["python", name] if name in ("train.py", "test.py") else ["jea"]
    return [*start, *sys.argv[1:]]


def task_defaults(task) -> dict:
    """block -> the defaults of its keys, for write_report."""
    return {"model": task.defaults("model"), "data": task.defaults("data"), "train": task.defaults("train"),
            "eval": vars(task.Eval())}


def config_text(config: dict, defaults: dict) -> tuple:
    """A config as YAML, and those of its lines that differ from the defaults."""
    lines, changed = [f"task: {config['task']}"], set()
    for block in ("model", "data", "train", "eval"):
        lines.append(f"{block}:")
        for key, value in config.get(block, {}).items():
            plain = list(value) if isinstance(value, tuple) else value
            line = f"  {key}: " + yaml.safe_dump(plain, default_flow_style=True, width=10 ** 6).split("\n")[0]
            lines.append(line)
            default = defaults.get(block, {}).get(key)
            if key != "name" and plain != (list(default) if isinstance(default, tuple) else default):
                changed.add(line)
    return "\n".join(lines), frozenset(changed)


def _split(values: dict) -> tuple:
    """Numbers and texts; and of values per class one table, a column per value."""
    scores, rows, tables = {}, {}, {}
    for name, value in values.items():
        if isinstance(value, dict):
            for key, number in value.items():
                rows.setdefault(key, {})[name] = number
        elif isinstance(value, list) and all(isinstance(entry, str) for entry in value):
            scores[name.replace("_", " ")] = ", ".join(value)
        elif isinstance(value, list):
            tables[name.replace("_", " ").capitalize()] = {
                str(next(iter(entry.values()))): {key: number for key, number in entry.items()
                                                  if isinstance(number, (int, float))} for entry in value}
        else:
            scores[name] = value
    return scores, {"Classes": rows, **tables} if rows else tables


def _picture(entry) -> Picture:
    return Picture(entry.path, entry.caption, entry.caption)


def _facts() -> dict:
    return {"date": datetime.datetime.now().strftime("%Y-%m-%d %H:%M"), "jea": __version__, "Jittor": version("jittor"),
            "Python": sys.version.split()[0], "numpy": version("numpy"), "processor": cpu_name()}
