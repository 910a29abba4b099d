"""The classification task: its steps against numpy, learning and resuming."""
import json
import math

import numpy as np
import pytest

import jea
from jea._jittor import jt
from jea.checkpoint import load_npz
from jea.data import DataError
from jea.data.views.augment import mix_batch, soft_targets
from jea.errors import TrainingError
from jea.models.network import Network
from jea.tasks import task as task_module
from jea.tasks.classification import Classification, parameter_groups, soft_cross_entropy
from jea.tasks.task import Evaluation
from jea.training.averages import WeightAverage
from jea.training.log import LOG
from jea.training.loop import train
from jea.training.schedules import cosine
from jea.training.state import BEST, LAST

TINY = {"name": "eamlp_tiny", "num_classes": 10, "img_size": 32}
DATA = {"name": "shape_classes", "size": 32, "num_train": 40, "num_val": 20}


def evaluation(score):
    return Evaluation(score, {"top1": score})


def make_task(*, model=TINY, data=DATA, evaluate=None, **train):
    options = {"steps": 8, "batch_size": 8, "num_workers": 0, "log_every": 1, "eval_every": 0, "save_every": 4,
               "seed": 3, "warmup_epochs": 0.5, **train}
    evaluation = {"num_workers": 0, "batch_size": 8, **(evaluate or {})}
    return Classification(model=model, data=data, train=options, eval=evaluation)


def losses_in(out, name="loss"):
    return [e[name] for e in map(json.loads, (out / LOG).read_text().splitlines()) if name in e]


# -- steps against numpy, with a network whose gradient is known

class Flat(Network):
    """logits = weight x + bias of the flattened picture; `table` is frozen."""

    solves, num_classes, img_size = "classification", 10, 32

    def __init__(self):
        rng = np.random.default_rng(0)
        self.weight = jt.array(rng.normal(0, 0.01, (10, 3 * 32 * 32)).astype(np.float32))
        self.bias = jt.array(rng.normal(0, 0.01, 10).astype(np.float32))
        self.table = jt.array(np.full(3, 0.1, np.float32)).stop_grad()
        self.key_maps = ()

    def execute(self, x):
        return jt.matmul(x.reshape(x.shape[0], -1), self.weight.transpose()) + self.bias


@pytest.fixture
def flat(monkeypatch):
    monkeypatch.setattr(task_module, "create_model", lambda name, **kwargs: Flat())


def softmax(x):
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def adamw_by_hand(task, steps, *, rates, decay=0.0, clip=None):
    """Losses, weights, averaged weights and gradient norms of AdamW in float64, from the task's own batches."""
    o = task.options
    w = {name: task.model.state_dict()[name].numpy().astype(np.float64) for name in ("weight", "bias")}
    m, v = ({name: np.zeros_like(value) for name, value in w.items()} for _ in range(2))
    average = {name: value.copy() for name, value in w.items()}
    losses, norms = [], []
    batches = [batch for epoch in range(9) for batch in task.batches(epoch, 0)][:steps]
    for step, (batch, rate) in enumerate(zip(batches, rates), 1):
        x, t = batch["image"].reshape(len(batch["image"]), -1).astype(np.float64), batch["target"].astype(np.float64)
        logits = x @ w["weight"].T + w["bias"]
        losses.append(-(t * np.log(softmax(logits))).sum(1).mean())
        d = (softmax(logits) * t.sum(1, keepdims=True) - t) / len(x)
        gradient = {"weight": d.T @ x, "bias": d.sum(0)}
        norms.append(math.sqrt(sum((g ** 2).sum() for g in gradient.values())))
        for name, g in gradient.items():
            if clip and norms[-1] > clip:
                g = g * (clip / (norms[-1] + 1e-6))
            m[name] = 0.9 * m[name] + 0.1 * g
            v[name] = 0.999 * v[name] + 0.001 * g * g
            w[name] = w[name] * (1 - rate * (o.weight_decay if name == "weight" else 0))
            update = m[name] / (1 - 0.9 ** step) / (np.sqrt(v[name] / (1 - 0.999 ** step)) + 1e-8)
            w[name] = w[name] - rate * update
            average[name] = decay * average[name] + (1 - decay) * w[name]
    return losses, w, average, norms


MIXED = dict(mixup=0.8, cutmix=1.0, label_smoothing=0.1, weight_decay=0.5, lr=0.01, min_lr=1.0e-4, erase=0.5)


def test_steps_with_mixing_and_averaged_weights_equal_numpy(flat, close, tmp_path):
    task = make_task(ema_decay=0.8, eval_every=3, **MIXED)  # evaluations in between change nothing
    scores, seen = iter((0.1, 0.2, 0.3)), []
    task.evaluate = lambda *_, **__: seen.append(task.model.weight.numpy()) or evaluation(next(scores))
    rates = [0.01 * cosine(step, 8, warmup=2, warmup_start=1e-4, floor=0.01) for step in range(8)]
    losses, weights, average, _ = adamw_by_hand(task, 8, rates=rates, decay=0.8)
    train(task, tmp_path, progress=False)
    close(losses_in(tmp_path), losses, 1e-6, "losses")
    tensors = load_npz(tmp_path / LAST)[0]
    best = load_npz(tmp_path / BEST)[0]
    for name in ("weight", "bias"):
        close(tensors[f"model/{name}"], weights[name], 2e-5, name)
        close(tensors[f"average/classification/{name}"], average[name], 2e-5, f"average of {name}")
        assert np.array_equal(best[name], tensors[f"average/classification/{name}"])
        assert np.array_equal(task.model.state_dict()[name].numpy(), tensors[f"model/{name}"])  # its own weights again
    assert len(seen) == 3 and np.array_equal(seen[-1], best["weight"])  # what was evaluated
    assert set(best) == {"weight", "bias", "table"} and np.array_equal(best["table"], np.full(3, 0.1, np.float32))


def test_batches_are_mixed_as_their_step_says(flat):
    """The mixing of batch k of epoch e is drawn from (seed, 0, 0, step + 1), after the loader made the plain batch."""
    task, plain = make_task(**MIXED), make_task(**{**MIXED, "mixup": 0.0, "cutmix": 0.0, "label_smoothing": 0.0})
    for epoch, start, step in ((0, 0, 0), (1, 3, 8)):
        mixed, batch = next(task.batches(epoch, start)), next(plain.batches(epoch, start))
        rng = np.random.Generator(np.random.PCG64((3, 0, 0, step + 1)))
        images, targets = mix_batch(batch["image"], soft_targets(batch["label"], 10, 0.1), rng)
        assert np.array_equal(mixed["image"], images) and np.array_equal(mixed["target"], targets)
        assert not np.array_equal(images, batch["image"])
        assert np.array_equal(batch["target"], np.eye(10, dtype=np.float32)[batch["label"]])


@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_accumulated_gradients_equal_one_large_batch(flat, close, tmp_path, clip):
    runs = {}
    for parts in (1, 4):
        task = make_task(grad_accumulation=parts, grad_clip=clip, **MIXED)
        train(task, tmp_path / str(parts), progress=False)
        tensors, meta = load_npz(tmp_path / str(parts) / LAST)
        runs[parts] = losses_in(tmp_path / str(parts)), tensors
        assert meta["optimizer_steps"] == {"classification": 8}
    close(runs[4][0], runs[1][0], 1e-6, "losses")
    for key in runs[1][1]:
        # AdamW divides by the root of the squared gradient: where that is near 0, so is what the division tells.
        if "optimizer" not in key:
            close(runs[4][1][key], runs[1][1][key], 2e-5, key)
        elif "/m/" in key:
            close(runs[4][1][key], runs[1][1][key], 1e-6, key)


def test_clipped_steps_equal_numpy(flat, close, tmp_path):
    task = make_task(grad_clip=0.5, ema_decay=0.0, **MIXED)
    rates = [0.01 * cosine(step, 8, warmup=2, warmup_start=1e-4, floor=0.01) for step in range(8)]
    losses, weights, _, norms = adamw_by_hand(task, 8, rates=rates, clip=0.5)
    assert max(norms) > 0.5  # else nothing is clipped
    train(task, tmp_path, progress=False)
    close(losses_in(tmp_path, "grad_norm"), norms, 1e-5, "norms")
    close(losses_in(tmp_path), losses, 1e-6, "losses")
    close(load_npz(tmp_path / LAST)[0]["model/weight"], weights["weight"], 2e-5, "weight")


def test_a_gradient_that_is_not_finite_stops_before_the_weights_change(flat, tmp_path):
    task = make_task(grad_clip=1.0)
    before = task.model.weight.numpy()

    def losses(batch):  # finite, with the gradient 1 / sqrt(0) * 0
        return {"loss": (task.model.weight * 0).sqrt().sum() + (task.model.bias * 0).sum()}
    task.losses = losses
    with pytest.raises(TrainingError, match="step 0, phase classification: grad_norm is nan"):
        train(task, tmp_path, progress=False)
    assert np.array_equal(task.model.weight.numpy(), before)


def test_an_average_starts_at_the_weights_and_keeps_what_is_constant():
    model = Flat()
    average = WeightAverage(model, 0.9)
    average.reset()
    start = model.bias.numpy()
    model.bias.assign(start + 1)
    for step in range(1, 4):
        average.update()
        assert average.state["bias"].numpy() == pytest.approx(start + 1 - 0.9 ** step, abs=1e-6)
    assert np.array_equal(average.state["table"].numpy(), model.table.numpy())  # to the bit
    with average.applied():
        assert np.array_equal(model.bias.numpy(), average.state["bias"].numpy())
    assert np.array_equal(model.bias.numpy(), start + 1)
    with pytest.raises(ValueError, match="decay of averaged weights is 1.0"):
        WeightAverage(model, 1.0)


@pytest.mark.parametrize("options, said", [
    ({"grad_accumulation": 3}, "is 3; expected a divisor of batch_size, which is 8"),
    ({"grad_accumulation": 0}, "is 0"), ({"grad_clip": -1.0}, "grad_clip is -1.0"), ({"lr": 0.0}, "lr is 0.0"),
    ({"ema_decay": 1.0}, "train.ema_decay is 1.0; expected 0 or more and less than 1"),
    ({"flip": 2.0}, "train.flip is 2.0; expected 0 to 1"), ({"mixup": -1.0}, "train.mixup is -1.0; expected 0 or more"),
    ({"rand_augment": 11.0}, "train.rand_augment is 11.0; expected a magnitude from 0 to 10"),
    ({"crop_scale": [1.0, 0.5]}, r"train.crop_scale is \[1.0, 0.5\]; expected \[low, high\]"),
    ({"crop_ratio": []}, r"train.crop_ratio is \[\]"),
    ({"evaluate": {"batch_size": 0}}, "eval.batch_size is 0; expected at least 1"),
    ({"evaluate": {"crop_pct": 0.0}}, "eval.crop_pct is 0.0; expected 0.1 to 1"),
    ({"evaluate": {"worst": -1}}, "eval.worst is -1; expected 0 or more"),
])
def test_options_that_cannot_be(flat, options, said):
    with pytest.raises(ValueError, match=said):
        make_task(**options).phases(8)


def test_a_missing_class_list_stops_before_the_first_step(flat, tmp_path):
    with pytest.raises(DataError, match="none.txt: class list does not exist"):
        make_task(evaluate={"class_list": str(tmp_path / "none.txt")}).begin_training()


# -- parts

def test_soft_cross_entropy(close):
    logits = np.array([[1000, 999, 0], [-3, 2, 1]], np.float32)
    targets = np.array([[0.7, 0.2, 0.1], [0, 0, 1]], np.float32)
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    wanted = -(targets * (shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))).sum(1).mean()
    x = jt.array(logits)
    loss = soft_cross_entropy(x, jt.array(targets))
    close(loss.item(), wanted, 1e-6)
    close(jt.grad(loss, x).numpy(), (softmax(logits.astype(np.float64)) - targets) / 2, 1e-6)


def test_what_decays():
    model = jea.create_model("eamlp_tiny", num_classes=10, img_size=32)
    names = {id(var): name for name, var in model.state_dict().items()}
    decayed, others = ([names[id(var)] for var in group] for group in parameter_groups(model))
    assert "head.weight" in decayed and "blocks.0.attn.linear_0.weight" in decayed
    assert all(model.state_dict()[name].ndim == 2 for name in decayed)
    assert {"cls_token", "head.bias", "norm.weight", "blocks.0.norm1.bias"} <= set(others)
    assert "pos_embed" not in decayed + others and len(decayed) + len(others) == len(names) - 1


def test_rates(flat):
    task = make_task(steps=50, warmup_epochs=2, cooldown_epochs=1, lr=0.01, warmup_lr=1e-4, min_lr=1e-3)
    assert task.batches_per_epoch == 5
    assert [0.01 * task.rate_factor(step, 50) for step in (0, 5, 10, 44, 45, 49)] == pytest.approx(
        [1e-4, 1e-4 + 0.5 * 0.0099, 1e-3 + 0.009 * (1 + math.cos(math.pi * 10 / 45)) / 2,
         1e-3 + 0.009 * (1 - math.cos(math.pi / 45)) / 2, 1e-3, 1e-3])
    task.options.lr_per_epoch = True
    assert task.rate_factor(9, 50) == task.rate_factor(5, 50) != task.rate_factor(10, 50)


# -- learning and resuming

def test_one_batch_is_learnt_by_heart(tmp_path):
    data = {**DATA, "num_train": 8}
    task = make_task(data=data, steps=100, lr=0.003, warmup_epochs=10, label_smoothing=0.0, weight_decay=0.0,
                     log_every=10, crop_scale=[1.0, 1.0], crop_ratio=[1.0, 1.0], flip=0.0, save_every=1000)
    task.evaluate = lambda *_, **__: evaluation(0.0)
    train(task, tmp_path, progress=False)
    losses = losses_in(tmp_path)
    assert losses[0] > 1.5 and losses[-1] < 0.05, losses


RECIPE = dict(ema_decay=0.7, mixup=0.8, cutmix=1.0, rand_augment=9, erase=0.25, color_jitter=0.4, grad_accumulation=2,
              grad_clip=1.0)


def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit(tmp_path):
    """With dropout of the tokens, stochastic depth, mixing, averaged weights, parts of batches and workers."""
    model = {**TINY, "drop_path_rate": 0.3}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(make_task(model=model, **RECIPE), whole, progress=False)
    train(make_task(model=model, **RECIPE), broken, stop_after=3, progress=False)
    result = train(make_task(model=model, **{**RECIPE, "num_workers": 1}), broken, resume=True, progress=False)
    assert losses_in(broken) == losses_in(whole) and len(losses_in(whole)) == 8
    for file in (LAST, BEST):
        ours, theirs = load_npz(broken / file)[0], load_npz(whole / file)[0]
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert np.array_equal(ours[key], theirs[key]), key
    assert any(key.startswith("average/classification/blocks.0") for key in load_npz(whole / LAST)[0])
    # best.npz reads back into a plain model, and that model has the score of the averaged weights.
    task = make_task(model=model)
    jea.load_weights(task.model, whole / BEST)
    again = task.evaluate(tmp_path / "again", progress=False).values
    assert again["top1"] == result["top1"] and again["worst_classes"] == result["worst_classes"]
