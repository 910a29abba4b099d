"""Learning-rate factors, by hand."""
import math

import pytest

from jea.training.schedules import cosine, poly


def test_poly():
    assert poly(9, 100, power=0.9, every=10) == 1.0
    assert poly(10, 100, power=0.9, every=10) == poly(19, 100, power=0.9, every=10) == pytest.approx(0.9 ** 0.9)


@pytest.mark.parametrize("epoch, wanted", [
    (0, 0.001), (1, 0.2008), (4, 0.8002),  # from 0.001 in five steps of 0.1998
    (5, 0.01 + 0.99 * (1 + math.cos(math.pi / 60)) / 2),  # the cosine started at 0
    (100, 0.01 + 0.99 * 0.75), (150, 0.505), (200, 0.01 + 0.99 * 0.25),
    (299, 0.01 + 0.99 * (1 - math.cos(math.pi / 300)) / 2), (300, 0.01), (309, 0.01), (400, 0.01),
])
def test_cosine_with_warm_up_and_cool_down(epoch, wanted):
    assert cosine(epoch, 310, warmup=5, warmup_start=0.001, floor=0.01, cooldown=10) == pytest.approx(wanted, rel=1e-12)


def test_plain_cosine():
    root = math.sqrt(0.125)
    assert [cosine(step, 4) for step in range(5)] == pytest.approx([1, 0.5 + root, 0.5, 0.5 - root, 0])
