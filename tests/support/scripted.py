"""Random draws that are written into a test, and small pictures."""
import numpy as np
import pytest
from PIL import Image


class Script:
    """A generator whose draws are given: [("uniform", (low, high), value), ...]; None for any bounds."""

    def __init__(self, *draws):
        self.draws = list(draws)

    def __getattr__(self, name):
        def draw(*arguments, **options):
            kind, bounds, value = self.draws.pop(0)
            assert kind == name, f"{name}{arguments} was drawn, {kind} expected"
            got = (*arguments, *options.values())
            assert bounds is None or got == pytest.approx(bounds), f"{name}{got}, expected {bounds}"
            return value
        return draw

    def done(self):
        return not self.draws


def generator(seed=0):
    return np.random.Generator(np.random.PCG64(seed))


def picture(array):
    return Image.fromarray(np.asarray(array, np.uint8))


def grey(array):
    return picture(np.repeat(np.asarray(array, np.uint8)[:, :, None], 3, 2))
