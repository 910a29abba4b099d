"""pytest plugin: several processes take tests from one queue, and each result is on disk as soon as it is known.

    pytest -p shared_queue -m cuda tests          with JEA_QUEUE=FOLDER, and tests/gpu/machine on the path

FOLDER/next holds the number of the next test, FOLDER/tests.jsonl the results, a line each: the test, its outcome,
seconds, and how it failed. A test that is begun and has no outcome ended its process. FOLDER/first.txt, if it is there,
names tests (parts of their names, a line each) that come first. JEA_QUEUE_UNTIL: the time (seconds since 1970) after
which none is begun.
"""
from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path

import pytest

FOLDER = Path(os.environ["JEA_QUEUE"])


def write(**entry) -> None:
    # one write: lines of several processes stay whole
    with open(FOLDER / "tests.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def take() -> int:
    """The number of the next test, for this process alone."""
    with open(FOLDER / "next", "a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        number = int(file.read() or 0)
        file.seek(0)
        file.truncate()
        file.write(str(number + 1))
    return number


def order(names: list) -> list:
    """Numbers of the tests: those that first.txt names, then the rest; those that share kernels side by side."""
    path = FOLDER / "first.txt"
    first = path.read_text().split("\n") if path.exists() else []
    first = [part for part in first if part]
    rank = {i: next((n for n, part in enumerate(first) if part in name), len(first)) for i, name in enumerate(names)}
    return sorted(range(len(names)), key=lambda i: (rank[i], i))


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session):
    if session.config.option.collectonly:
        return None
    (FOLDER / "count").write_text(str(len(session.items)))
    items = [session.items[i] for i in order([item.nodeid for item in session.items])]
    until = float(os.environ.get("JEA_QUEUE_UNTIL", "inf"))
    while time.time() < until:
        number = take()
        if number >= len(items):
            break
        item = items[number]
        write(test=item.nodeid, begun=round(time.time(), 1))
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
    return True


def pytest_runtest_logreport(report):
    if report.when == "call" or report.outcome != "passed":
        entry = {"test": report.nodeid, "outcome": report.outcome, "seconds": round(report.duration, 1)}
        if report.when != "call":
            entry["when"] = report.when
        if report.outcome == "failed":
            entry["said"] = str(report.longrepr)[-1500:]
        elif report.outcome == "skipped":
            entry["said"] = str(report.longrepr)[-200:]
        write(**entry)
