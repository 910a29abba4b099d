"""Learning rates as pure functions of the step: each returns the factor of the base rate."""
from __future__ import annotations

import math


def poly(step: int, total: int, *, power: float, every: int) -> float:
    """(1 - s / total) ^ power with s = step rounded down to a multiple of `every` (EANet's train_torch.py)."""
    return (1 - step // every * every / total) ** power


def cosine(step: int, total: int, *, warmup: int = 0, warmup_start: float = 0.0, floor: float = 0.0,
           cooldown: int = 0) -> float:
    """Linear warm-up, half a cosine, then a constant cool-down, as timm's CosineLRScheduler.

    With T = total - cooldown:
        step < warmup     warmup_start + (1 - warmup_start) * step / warmup
        step < T          floor + (1 - floor) * (1 + cos(pi * step / T)) / 2
        else              floor
    The cosine counts from step 0, not from the end of the warm-up: it is already below 1 when the warm-up ends.
    `total` includes warm-up and cool-down; warmup_start and floor are factors of the base rate.
    """
    if step < warmup:
        return warmup_start + (1 - warmup_start) * step / warmup
    length = total - cooldown
    if step >= length:
        return floor
    return floor + (1 - floor) * (1 + math.cos(math.pi * step / length)) / 2
