"""What happens to gradients before the optimizer takes them: undoing the scale of a float16 loss, and clipping."""
from __future__ import annotations

import math

import numpy as np

from jea._jittor import jt
from jea.training.state import on_any_rank


def gradients(optimizer) -> list:
    """The gradients of all parameters that train."""
    return [g for group in optimizer.param_groups for p, g in zip(group["params"], group["grads"])
            if not p.is_stop_grad()]


def square_sums(values: list) -> np.ndarray:
    """The sum of the squares of each Var, in float64: not finite where one of its numbers is not, and only there.

    (jt.isfinite would do for that, but Python 3.12 crashes while Jittor compiles it: its source calls Python from a
    compiling thread.)
    """
    return square_sums_on_device(values).numpy()


def square_sums_on_device(values: list):
    """square_sums as a Var, for which nobody waits."""
    return jt.concat([value.float64().sqr().sum().reshape(1) for value in values])


def clip(optimizer, largest: float) -> float:
    """Scale an optimizer's gradients so that their global norm is at most `largest`; returns the norm before.

    As torch's clip_grad_norm_: by min(1, largest / (norm + 1e-6)). The sum of squares runs in float64. The norm is NaN
    where a gradient is not finite.
    """
    found = gradients(optimizer)
    squares = square_sums(found).sum()
    norm = math.sqrt(squares) if math.isfinite(squares) else math.nan
    if norm > largest:
        factor = largest / (norm + 1e-6)
        for g in found:
            g.update(g * factor)
    return norm


class LossScaler:
    """Multiplies a loss, so that gradients that pass through float16 are not rounded to zero (Micikevicius et al.,
    arXiv 1710.03740).

    The scale starts at 2^16, is halved at a step whose gradients are not finite, which is then left out, and doubled
    after `patience` good steps in a row.
    """

    def __init__(self, *, scale: float = 2.0 ** 16, patience: int = 2000):
        self.scale, self.patience, self.good_steps = scale, patience, 0

    def unscale(self, values: list) -> bool:
        """Divide gradients by the scale, in place; whether all of them are finite, on all ranks."""
        finite = np.isfinite(square_sums(values)).all()
        for g in values:
            g.update(g * (1 / self.scale))  # exact: a power of two
        return not on_any_rank(not finite)

    def adjust(self, finite: bool) -> None:
        """Set the scale for the next step."""
        self.good_steps = self.good_steps + 1 if finite else 0
        if not finite:
            self.scale /= 2
        elif self.good_steps == self.patience:
            self.scale, self.good_steps = self.scale * 2, 0

    @property
    def state(self) -> dict:
        """What a checkpoint keeps."""
        return {"scale": self.scale, "good_steps": self.good_steps}

    def restore(self, state: dict) -> None:
        self.scale, self.good_steps = float(state["scale"]), int(state["good_steps"])
