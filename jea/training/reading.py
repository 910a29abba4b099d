"""What the host learns of a training step, and when: at once on the CPU, one step later on CUDA.

On CUDA a step is only begun by the host; the device comes to it later. To read a loss is to wait for it, and while the
host waits, nothing new is begun. So the losses travel in pinned memory while the next step is begun, and whether they
are finite is judged on the device: what a step changes, it changes only if its own losses, and all before it, are. The
host learns of a loss that is not finite one step late, and finds the weights as they were before it.

Jittor has two ways for arrays of the host. By default (use_cuda_host_allocator=1) an array is copied by cudaMemcpy
where it is first used, and before that the host waits for all that the device has to do. The other one copies it into
pinned memory when the Var is made, and from there on a stream of its own; that is how a step's batch travels here.
"""
from __future__ import annotations

import contextlib
import functools
import math
import time
from typing import Callable

import numpy as np

from jea import ranks
from jea._jittor import jt
from jea.errors import TrainingError
from jea.ops import all_finite, clipped, gathered
from jea.training.log import mean_over_ranks, say

_NOTHING = np.zeros(2, np.float32)


class Diverged(TrainingError):
    """A loss or gradient that is not finite. The step changed nothing; the loop adds what is saved."""

    def __init__(self, said: str, step: int):
        super().__init__(said)
        self.step = step


def reads_later() -> bool:
    """Whether the host learns of a step's numbers one step later: on CUDA, if that is right on this card."""
    return bool(jt.flags.use_cuda) and not _wrong()


@contextlib.contextmanager
def travelling(wanted: bool = True):
    """On CUDA arrays become Vars inside the block without a wait for the device."""
    with jt.flag_scope(use_cuda_host_allocator=0) if wanted and jt.flags.use_cuda else contextlib.nullcontext():
        yield


@functools.lru_cache(maxsize=None)
def _wrong() -> str:
    """What is wrong with numbers that travel both ways at once, tried once in a process; "" if nothing is."""
    found = []
    try:
        for numbers in ((1.0, 2.0, math.nan), (1.0, 2.0, 3.0)):
            with travelling(), jt.flag_scope(auto_convert_64_to_32=0):
                found.append(_OnItsWay(all_finite(jt.array(np.array(numbers)))))
        found = [one.read(limit=20).tolist() for one in found]
        said = "" if found == [[0, 1], [1, 1]] else f"{found} came back"
    except RuntimeError as error:
        said = str(error).strip().splitlines()[0][:200]
    if said:
        say(f"each training step waits for its losses: they do not travel on this card ({said})")
    return said


class Gate:
    """What decides on the device whether the steps of a run still count.

    later: the host reads the numbers of a step one step later. control: see jea/ops/training/finite.py; None: the host
    reads at once, and decides. asked: called once a step, whether this rank wants to stop; stopped: whether any did,
    as far as the host has read.
    """

    def __init__(self, asked: Callable[[], bool] = lambda: False):
        self.later, self.control = reads_later(), None
        self.asked, self.stopped = asked, False


class _OnItsWay:
    """The numbers of a Var, which travel to the host while other things happen."""

    def __init__(self, var):
        self._numbers = None
        jt.sync([var])
        jt.fetch(var, self._take)

    def _take(self, numbers) -> None:
        self._numbers = np.array(numbers)

    def read(self, limit: float = 60) -> np.ndarray:
        """Wait for them; after `limit` seconds for all that the device has to do."""
        begun = time.monotonic()
        while self._numbers is None:
            if time.monotonic() - begun < limit:
                with travelling():
                    jt.array(_NOTHING)  # Jittor hands over what has arrived whenever an array is made so
                if self._numbers is None:
                    time.sleep(5e-5)
            else:
                jt.sync_all(True)  # raises what has gone wrong on the device
                if self._numbers is None:
                    raise RuntimeError("a training step's losses never came back from the device")
        return self._numbers


class Told:
    """The numbers of one phase of a step: read at once, or on their way."""

    def __init__(self, phase: str, step: int, gate: Gate):
        self.phase, self.step, self.gate = phase, step, gate
        self._values, self._on_their_way, self._asked = {}, [], gate.asked()

    def losses(self, losses: dict, parts: int) -> None:
        """Add a part's scalars, each the mean over ranks and parts. Raises Diverged where the host reads at once."""
        if not self.gate.later:
            self._add(mean_over_ranks(losses, parts))
            return
        values = ranks.total_on_device(gathered(list(losses.values()), self._asked))
        self.gate.control = all_finite(values, self.gate.control)
        self._on_their_way.append((list(losses), parts, _OnItsWay(values)))
        self._asked = False

    def clipped(self, squares, largest: float):
        """The control that clips gradients with these sums of squares; their norm is told."""
        self.gate.control, norm = clipped(squares, self.gate.control, largest)
        self._on_their_way.append((["grad_norm"], None, _OnItsWay(norm)))
        return self.gate.control

    def number(self, name: str, value: float) -> None:
        """Add a number that the host has. Raises Diverged where it is not finite."""
        self._values[name] = value
        self._check({name: value})

    def _add(self, values: dict) -> None:
        for name, value in values.items():
            self._values[name] = self._values.get(name, 0.0) + value
        self._check(self._values)

    def _check(self, values: dict) -> None:
        for name, value in values.items():
            if not math.isfinite(value):
                raise Diverged(f"step {self.step}, phase {self.phase}: {name} is {value}", self.step)

    def read(self) -> dict:
        """All numbers, by name; waits for those on their way. Raises Diverged."""
        for names, parts, numbers in self._on_their_way:
            found = numbers.read()
            if parts is None:
                self._add({"grad_norm": float(found[0])})
            else:
                self.gate.stopped |= bool(found[-1] > 0)
                self._add(dict(zip(names, (found[:-1] / (ranks.size() * parts)).tolist())))
        self._on_their_way = []
        return self._values
