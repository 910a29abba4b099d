"""Upstream's loss: ignored pixels are zero and count in the mean."""
import numpy as np

from jea._jittor import jt
from jea.tasks.segmentation import parameter_groups, pixel_cross_entropy


def reference_loss(logits, labels):
    """In float64; also its gradient."""
    x = logits.astype(np.float64)
    x = x - x.max(1, keepdims=True)
    p = np.exp(x) / np.exp(x).sum(1, keepdims=True)
    valid = labels != 255
    onehot = (np.arange(x.shape[1])[:, None, None] == labels[:, None]) * valid[:, None]
    loss = -(np.log(p) * onehot).sum() / labels.size
    return loss, (p - onehot) * valid[:, None] / labels.size


def test_value_and_gradient():
    rng = np.random.default_rng(0)
    logits = (rng.standard_normal((2, 5, 7, 9)) * 20).astype(np.float32)
    labels = rng.integers(0, 5, (2, 7, 9)).astype(np.int32)
    labels[rng.random(labels.shape) < 0.3] = 255
    x = jt.array(logits)
    loss = pixel_cross_entropy(x, jt.array(labels))
    wanted, gradient = reference_loss(logits, labels)
    assert abs(loss.item() - wanted) < 1e-6 * wanted
    assert np.abs(jt.grad(loss, x).numpy() - gradient).max() < 1e-6 * np.abs(gradient).max()


def test_large_pictures_keep_their_digits():
    logits = np.zeros((4, 21, 513, 513), np.float32)
    labels = np.zeros((4, 513, 513), np.int32)
    loss = pixel_cross_entropy(jt.array(logits), jt.array(labels)).item()
    assert abs(loss - np.log(21)) < 2e-7 * np.log(21)


def test_everything_ignored_is_zero():
    loss = pixel_cross_entropy(jt.randn(1, 3, 4, 4), jt.full((1, 4, 4), 255).int32())
    assert loss.item() == 0


def test_parameter_groups_hold_every_parameter_once():
    import jea
    model = jea.create_model("eanet_tiny", num_classes=4)
    groups = parameter_groups(model)
    ids = [id(var) for group in groups for var in group]
    wanted = {id(v) for k, v in model.state_dict().items() if "running_" not in k}
    assert len(ids) == len(set(ids)) and set(ids) == wanted
    state = {id(v): k for k, v in model.state_dict().items()}
    weights, norms, biases = ([state[id(v)] for v in group] for group in groups)
    assert "linu.linear_0.weight" in weights and "backbone.bn1.weight" in norms and "linu.conv1.bias" in biases
    assert all(k.endswith("bias") for k in biases) and "backbone.bn1.bias" in biases
