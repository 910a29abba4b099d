"""How memories are used: by hand."""
import math

import numpy as np
import pytest

from jea.metrics.attention import mean_numbers, memory_use


def test_a_map_by_hand():
    """Four memories on four positions: 0 and 1 look at a half each, 2 and 3 everywhere."""
    attention = np.array([[0.8, 0.8, 0.0, 0.0], [0.0, 0.0, 0.6, 0.6], [0.15, 0.15, 0.3, 0.3], [0.05, 0.05, 0.1, 0.1]])
    assert np.allclose(attention.sum(0), 1)
    use = memory_use(attention)
    assert np.allclose(use.mass, [0.4, 0.3, 0.225, 0.075]) and use.mass.sum() == pytest.approx(1)
    assert use.most.tolist() == [0, 1] and use.least.tolist() == [3, 2]
    assert use.among_most == pytest.approx(1.0) and use.among_least == pytest.approx(0.0)
    # (1/2, 1/2, 0, 0) and (1/6, 1/6, 1/3, 1/3): half of 2/3 + 2/3; (0, 0, 1/2, 1/2) and the same: 1/3
    assert use.between == pytest.approx((2 / 3 + 1 / 3) / 2)
    numbers = use.numbers()
    assert numbers["mass of the most used"] == pytest.approx(0.7)
    assert numbers["mass of the least used"] == pytest.approx(0.3)
    assert list(numbers.values())[2:] == [use.among_most, use.among_least, use.between]


def test_groups_are_of_eight_and_never_overlap():
    random = np.random.default_rng(0)
    for memories in (1, 2, 5, 16, 33):
        attention = random.random((memories, 7))
        use = memory_use(attention / attention.sum(0))
        count = min(8, max(memories // 2, 1))
        assert len(use.most) == len(use.least) == count
        assert memories == 1 or not set(use.most) & set(use.least)
        assert use.mass[use.most].min() >= use.mass[use.least].max()
        assert math.isnan(use.among_most) == (count < 2) and 0 <= use.between <= 1
    nothing = memory_use(np.array([[1.0, 1.0], [0.0, 0.0]]))  # a memory that is never used
    assert nothing.least.tolist() == [1] and nothing.between == pytest.approx(0.5)


def test_means_over_pictures():
    found = mean_numbers([{"a": {"x": 1.0, "y": 2.0}, "b": {"x": 5.0, "y": 0.0}}, {"a": {"x": 3.0, "y": 4.0}}])
    assert found == [{"layer": "a", "x": 2.0, "y": 3.0}, {"layer": "b", "x": 5.0, "y": 0.0}]
    assert mean_numbers([]) == []
