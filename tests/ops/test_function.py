"""Function: what jt.Function does, and letting go of what gradients need."""
import numpy as np
import pytest

from jea._jittor import jt
from jea.ops.function import Function, single_use


class Product(Function):
    made: list = []

    def execute(self, x, scale, w):
        self.made.append(self)
        self.inputs, self.scale = (x, w), scale
        return [x * w * scale, w + 1]

    def grad(self, dy, dz):
        x, w = self.inputs
        return dy * w * self.scale, None, dy * x * self.scale + (0 if dz is None else dz)


@pytest.fixture
def values():
    Product.made.clear()
    return [jt.array(np.array(v, np.float32)) for v in ([1, 2, 3], [4, 5, 6])]


def test_outputs_and_gradients(values):
    x, w = values
    y, z = Product.apply(x, 2.0, w)
    assert y.tolist() == [8, 20, 36] and z.tolist() == [5, 6, 7]
    dx, dw = jt.grad((y + 3 * z).sum(), [x, w])
    assert dx.tolist() == [8, 10, 12] and dw.tolist() == [5, 7, 9]
    dx, dw = jt.grad(Product.apply(x, 2.0, w)[0].sum(), [x, w])  # the other output has no gradient
    assert dx.tolist() == [8, 10, 12] and dw.tolist() == [2, 4, 6]


def test_inputs_without_gradient(values):
    x, w = values
    y, _ = Product.apply(x, 2.0, w.stop_grad())
    assert jt.grad(y.sum(), x).tolist() == [8, 10, 12]
    with jt.no_grad():
        assert Product.apply(x, 2.0, w)[0].is_stop_grad()
    assert Product.apply(x.stop_grad(), 2.0, w)[0].tolist() == [8, 20, 36]


def test_a_second_gradient(values):
    x, w = values
    y, _ = Product.apply(x, 2.0, w)
    for factor in (1, 5):
        assert jt.grad((factor * y).sum(), x).tolist() == [factor * v for v in (8, 10, 12)]


def test_single_use_lets_go(values):
    x, w = values
    with single_use():
        y, _ = Product.apply(x, 2.0, w)
    outside, _ = Product.apply(x, 2.0, w)
    dx, = jt.grad((y + outside).sum(), [x])
    assert dx.tolist() == [16, 20, 24]
    assert not vars(Product.made[0]) and Product.made[1].inputs
