"""The way of a network through the formats: where it enters, what runs in which format, where it is converted."""
from __future__ import annotations

import contextlib

from jea._jittor import jt

_steps = None  # while `way` watches
_layer = ""


def note(kind: str, what: str, shape) -> None:
    """One step, if anyone watches."""
    if _steps is not None:
        _steps.append((_layer, kind, what, tuple(int(n) for n in shape)))


def way(network, *inputs) -> list:
    """[(layer, "enter" | "convolution" | "convert" | ..., format, shape of the result), ...] of network(*inputs).

    Nothing is computed, but for what Jittor has to know at once.
    """
    global _steps
    _steps = []
    try:
        with contextlib.ExitStack() as stack:
            for name, module in network.named_modules():
                stack.enter_context(_named(name, module))
            with jt.no_grad():
                network(*inputs)
        return _steps
    finally:
        _steps = None


@contextlib.contextmanager
def _named(name: str, module):
    """Steps inside of the module bear its name."""
    def execute(*args, _run=module.execute, **options):
        global _layer
        before, _layer = _layer, name
        try:
            return _run(*args, **options)
        finally:
            _layer = before
    module.execute = execute
    try:
        yield
    finally:
        del module.execute
