"""Optimizers: Adam with PyTorch's epsilon."""
import numpy as np
import pytest

from jea._jittor import jt
from jea.training.optimizers import Adam

BETAS, LR, EPS = (0.5, 0.999), 0.01, 0.1  # an epsilon that shows


def expected(weight, gradients):
    m = v = np.zeros_like(weight)
    for t, g in enumerate(gradients, 1):
        m, v = BETAS[0] * m + (1 - BETAS[0]) * g, BETAS[1] * v + (1 - BETAS[1]) * g * g
        weight = weight - LR * (m / (1 - BETAS[0] ** t)) / (np.sqrt(v / (1 - BETAS[1] ** t)) + EPS)
    return weight


@pytest.mark.parametrize("separate", [True, False])
def test_steps(separate):
    rng = np.random.default_rng(0)
    start, gradients = rng.standard_normal(7), rng.standard_normal((4, 7))
    weight = jt.array(start.astype(np.float32))
    optimizer = Adam([weight], lr=LR, betas=BETAS, eps=EPS)
    for g in gradients:
        loss = (weight * jt.array(g.astype(np.float32))).sum()
        if separate:  # as the engine does
            optimizer.backward(loss)
            optimizer.step()
        else:
            optimizer.step(loss)
    wanted = expected(start, gradients)
    assert np.abs(weight.numpy() - wanted).max() < 1e-6 and np.abs(wanted - start).max() > 0.01


def test_equals_pytorch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    start, gradients = rng.standard_normal(7).astype(np.float32), rng.standard_normal((4, 7)).astype(np.float32)
    theirs = torch.from_numpy(start.copy()).requires_grad_()
    reference = torch.optim.Adam([theirs], lr=LR, betas=BETAS, eps=EPS)
    for g in gradients:
        theirs.grad = torch.from_numpy(g)
        reference.step()
    assert np.abs(expected(start.astype(float), gradients.astype(float)) - theirs.detach().numpy()).max() < 1e-6
