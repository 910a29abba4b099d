"""Class weights, hard example mining and the auxiliary loss against numpy; the schedule's floor; parameter groups."""
import numpy as np
import pytest

from jea._jittor import jt
from jea.tasks.pixel_losses import hard_pixels, weighted_pixel_cross_entropy
from jea.tasks.segmentation import Segmentation, parameter_groups, pixel_cross_entropy


def example(seed=0, shape=(2, 7, 9), classes=5):
    rng = np.random.default_rng(seed)
    logits = (rng.standard_normal((shape[0], classes, *shape[1:])) * 3).astype(np.float32)
    labels = rng.integers(0, classes, shape).astype(np.int32)
    labels[rng.random(shape) < 0.2] = 255
    return logits, labels


def reference(logits, labels, weights=None, threshold=None, min_kept=0):
    """Loss and gradient in float64, with sorting, as mmsegmentation and JSeg define them."""
    x = logits.astype(np.float64)
    p = np.exp(x - x.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    valid = labels != 255
    onehot = (np.arange(x.shape[1])[:, None, None] == labels[:, None]) & valid[:, None]
    at_label = np.where(valid, (p * onehot).sum(1), 1)
    factor = valid.astype(float)
    if weights is not None:
        factor *= np.asarray(weights)[np.where(valid, labels, 0)]
    if threshold is not None:
        ordered = np.sort(at_label[valid])
        bound = max(threshold, ordered[min(min_kept * len(labels), len(ordered) - 1)])
        factor *= at_label < bound
    loss = -(np.log(at_label) * factor).sum() / labels.size
    return loss, (p - onehot) * factor[:, None] / labels.size, int((factor > 0).sum())


WEIGHTS = [0.5, 1.0, 2.0, 1.5, 0.25]


@pytest.mark.parametrize("options", [
    {}, {"class_weights": WEIGHTS}, {"ohem_threshold": 0.3, "ohem_min_kept": 5},
    {"ohem_threshold": 0.01, "ohem_min_kept": 30}, {"ohem_threshold": 0.2, "ohem_min_kept": 10_000},
    {"class_weights": WEIGHTS, "ohem_threshold": 0.5, "ohem_min_kept": 10},
])
def test_value_and_gradient(options):
    logits, labels = example()
    wanted, gradient, kept = reference(logits, labels, options.get("class_weights"), options.get("ohem_threshold"),
                                       options.get("ohem_min_kept", 0))
    x = jt.array(logits)
    loss = weighted_pixel_cross_entropy(x, jt.array(labels), **options)
    assert abs(loss.item() - wanted) < 2e-6 * wanted
    assert np.abs(jt.grad(loss, x).numpy() - gradient).max() < 2e-6 * np.abs(gradient).max()
    if options.get("ohem_min_kept") == 30:  # the threshold alone keeps fewer than 2 x 30
        assert kept == 60


def test_hard_pixels_by_hand():
    p = np.array([[[0.9, 0.1, 0.6, 0.3]], [[0.2, 0.8, 0.5, 0.7]]])
    labels = np.array([[[0, 0, 0, 0]], [[0, 255, 0, 0]]])
    loss = -np.log(p)

    def kept(threshold, count):
        return hard_pixels(loss, labels, threshold=threshold, min_kept=count).reshape(2, 4).astype(int).tolist()
    assert kept(0.55, 1) == [[0, 1, 0, 1], [1, 0, 1, 0]]
    assert kept(0.05, 2) == [[0, 1, 0, 1], [1, 0, 1, 0]]  # 2 pictures: the 4 lowest of 0.1 0.2 0.3 0.5 0.6 0.7 0.9
    assert kept(0.05, 1) == [[0, 1, 0, 0], [1, 0, 0, 0]]
    assert kept(0.05, 100) == [[0, 1, 1, 1], [1, 0, 1, 1]]  # all but the most certain, as upstream
    assert not hard_pixels(loss, np.full_like(labels, 255), threshold=0.5, min_kept=1).any()


def make_task(model=None, **train):
    return Segmentation(model={"name": "eanet_tiny", "num_classes": 5, "dropout": 0.0, **(model or {})},
                        data={"name": "voc", "root": "unused"}, train={"steps": 10, **train})


def test_auxiliary_loss_is_added_with_its_weight():
    task = make_task({"auxiliary": True}, auxiliary_weight=0.4, class_weights=WEIGHTS, ohem_threshold=0.7,
                     ohem_min_kept=40)
    task.model.auxiliary_head.dropout.p = 0
    rng = np.random.default_rng(0)
    batch = {"image": rng.standard_normal((2, 3, 17, 25)).astype(np.float32), "label": example(shape=(2, 17, 25))[1]}
    task.begin_training()
    logits, auxiliary = (y.numpy() for y in task.model.with_auxiliary(jt.array(batch["image"])))
    losses = {name: value.item() for name, value in task.losses(batch).items()}
    main = reference(logits, batch["label"], WEIGHTS, 0.7, 40)[0]
    second = reference(auxiliary, batch["label"])[0]  # plain: neither weights nor mining
    assert abs(losses["main_loss"] - main) < 1e-5 * main and abs(losses["auxiliary_loss"] - second) < 1e-5 * second
    assert abs(losses["loss"] - (main + 0.4 * second)) < 1e-5 * losses["loss"]
    state = task.model.state_dict()
    names = ("auxiliary_head.conv_seg.weight", "backbone.conv1.0.weight", "fc2.weight")
    gradients = jt.grad(task.losses(batch)["loss"], [state[name] for name in names])
    assert all(np.abs(g.numpy()).max() > 0 for g in gradients)
    assert set(task.losses({**batch, "label": np.full_like(batch["label"], 255)})) == set(losses)


def test_without_options_it_is_the_plain_loss():
    task = make_task()
    batch = {"image": np.zeros((1, 3, 17, 17), np.float32), "label": example(shape=(1, 17, 17))[1]}
    losses = task.losses(batch)
    wanted = pixel_cross_entropy(task.model(jt.array(batch["image"])), jt.array(batch["label"]))
    assert set(losses) == {"loss"} and abs(losses["loss"].item() - wanted.item()) < 1e-6


def test_poly_with_a_floor():
    task = make_task(lr=0.01, min_lr=1e-4, bias_lr=1.0, lr_decay_every=1, decay_all=True, weight_decay=5e-4)
    phase, = task.phases(100)
    for step in (0, 1, 50, 99):
        wanted = (0.01 - 1e-4) * (1 - step / 100) ** 0.9 + 1e-4  # JSeg's PolyLR
        phase.set_rates(step)
        assert [group["lr"] for group in phase.optimizer.param_groups] == pytest.approx([wanted] * 3, rel=1e-12)
    assert [group["weight_decay"] for group in phase.optimizer.param_groups] == [5e-4] * 3
    plain, = make_task(lr=0.01).phases(100)
    plain.set_rates(0)
    rates = [(group["lr"], group["weight_decay"]) for group in plain.optimizer.param_groups]
    assert rates == [(0.01, 1e-4), (0.01, 0.0), (0.02, 0.0)]


def test_an_auxiliary_head_without_weight_is_not_trained():
    task = make_task({"auxiliary": True})
    auxiliary = {id(v) for k, v in task.model.state_dict().items() if k.startswith("auxiliary_head.")}
    trained = {id(v) for group in task.phases(10)[0].optimizer.param_groups for v in group["params"]}
    assert auxiliary and not auxiliary & trained
    everything = {id(v) for group in parameter_groups(task.model) for v in group}
    assert {id(v) for k, v in task.model.state_dict().items() if "running_" not in k} == everything


@pytest.mark.parametrize("blocks, said", [
    ({"train": {"auxiliary_weight": 0.4}}, "the model has no auxiliary head; say model.auxiliary=true"),
    ({"train": {"class_weights": [1.0, 2.0]}}, "class_weights has 2 factors; the model has 5 classes"),
    ({"eval": {"mode": "slided"}}, "eval.mode is 'slided'; expected whole or slide"),
    ({"eval": {"window": 9, "window_stride": 10}}, "window_stride is 10; expected 1 to eval.window, 9"),
    ({"eval": {"logit_stride": 0}}, "logit_stride is 0; expected at least 1"),
    ({"eval": {"scales": []}}, r"eval.scales is \[\]; expected one or more factors above 0, at most 16"),
    ({"eval": {"scales": [1.0, 0]}}, r"eval.scales is \[1.0, 0\]"),
    ({"eval": {"fit": [512]}}, r"eval.fit is \[512\]; expected \[longer, shorter\] side"),
    ({"train": {"lr": -1}}, "train.lr is -1; expected a number above 0"),
    ({"train": {"lr_decay_every": 0}}, "train.lr_decay_every is 0; expected at least 1"),
    ({"train": {"ohem_threshold": 2.0}}, "train.ohem_threshold is 2.0; expected 0 to 1"),
    ({"model": {"name": "ea_pct_tiny_cls"}}, "model.name is ea_pct_tiny_cls, which is not for segmentation; expected "
                                             "one of eanet_tiny, "),
])
def test_options_that_cannot_work(blocks, said):
    with pytest.raises(ValueError, match=said):
        Segmentation(**{"model": {"name": "eanet_tiny", "num_classes": 5}, "data": {"name": "voc", "root": "unused"},
                        **blocks})
