"""Copies between host and device in a training step, and waits of the host, as the stubs count them (stubs.py)."""
from __future__ import annotations

import contextlib
import ctypes

import numpy as np


@contextlib.contextmanager
def counted():
    """Yields a dict that holds, after the block, what was done inside: "to the device", "to the host", "waits"."""
    counts = (ctypes.c_long * 3).in_dll(ctypes.CDLL("libcudart.so.13"), "jea_stub_counts")
    found, before = {}, list(counts)
    yield found
    found.update(zip(("to the device", "to the host", "waits"), (now - then for now, then in zip(counts, before))))


def allowed(batch: dict, phases: list, clips: bool) -> dict:
    """What a step may do: each phase gets the arrays of its batch and gives its losses back, with the norm of its
    gradients where they are clipped; and the host waits for nothing."""
    arrays = sum(isinstance(value, np.ndarray) for value in batch.values())
    return {"to the device": arrays * len(phases), "to the host": len(phases) * (1 + clips), "waits": 0}


def check(found: dict, batch: dict, phases: list, clips: bool) -> None:
    """Raise AssertionError where a step did more."""
    limits = allowed(batch, phases, clips)
    more = {name: f"{found[name]}, expected at most {limits[name]}" for name in limits if found[name] > limits[name]}
    assert not more, f"error: copies of a training step: {more}"
