"""The generation task: phases that keep to their network, resuming, NaN, sampling, scores and files."""
import json

import numpy as np
import pytest
from PIL import Image

import jea
from jea._jittor import jt
from jea.checkpoint import CheckpointError, load_npz
from jea.data import DataError
from jea.errors import TrainingError
from jea.metrics.generation import Gaussian, frechet_distance
from jea.tasks.generation import NO_INCEPTION, Generation, hinge_d, hinge_g
from jea.training.log import LOG
from jea.training.loop import train
from jea.training.state import BEST, LAST


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("JEA_HOME", str(tmp_path / "home"))


def make_task(*, seed=5, evaluation=None, model=None, **train):
    options = {"steps": 6, "batch_size": 4, "d_steps": 2, "num_workers": 0, "log_every": 1, "eval_every": 0,
               "save_every": 100, "seed": seed, **train}
    return Generation(model={"name": "ea_sagan_tiny", "width": 8, **(model or {})},
                      data={"name": "plain_shapes", "num_train": 16, "num_val": 12},
                      train=options, eval={"split": "val", "samples": 8, "batch_size": 4, "num_workers": 0,
                                           **(evaluation or {})})


def snapshot(network):
    return {name: var.numpy().copy() for name, var in network.state_dict().items()}


def changed(before, network):
    return {name for name, var in network.state_dict().items() if not np.array_equal(var.numpy(), before[name])}


def step(task, phase):
    batch = next(iter(task.batches(0, 0)))
    losses = phase.losses(batch)
    values = {name: value.item() for name, value in losses.items()}
    phase.optimizer.backward(losses["loss"])
    phase.optimizer.step()
    jt.sync_all()
    return values


def test_hinge_by_hand():
    real, fake = jt.array(np.array([2, 0.5], np.float32)), jt.array(np.array([-3, 0.5, 1], np.float32))
    assert hinge_d(real, fake).item() == pytest.approx(0.5 / 2 + (1.5 + 2) / 3)
    assert hinge_g(fake).item() == pytest.approx(0.5)


def test_each_phase_leaves_the_other_network_alone():
    task = make_task()
    task.begin_training()
    d, g = task.phases(6)
    assert (d.name, d.every, g.name, g.every) == ("discriminator", 1, "generator", 2)
    networks = {"generator": task.model.generator, "discriminator": task.model.discriminator}
    for phase, other in ((d, "generator"), (g, "discriminator")):
        before = {name: snapshot(network) for name, network in networks.items()}
        values = step(task, phase)
        assert all(np.isfinite(list(values.values())))
        assert not changed(before[other], networks[other])
        moved, own = changed(before[phase.name], networks[phase.name]), networks[phase.name].state_dict()
        # Everything of its own moves, but what a vector of length 1 cannot, and the attention behind a sigma of 0.
        still = {name for name in own if name not in moved}
        assert all(own[name].numel() == 1 or "conv1x1" in name or "linear_" in name for name in still), still
        assert any(name.endswith("weight_u") for name in moved)
    assert any(name.endswith("running_var") for name in moved)


def losses_in(out):
    entries = map(json.loads, (out / LOG).read_text().splitlines())
    return {e["step"]: {k: v for k, v in e.items() if "/" in k} for e in entries if "evaluation" not in e}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JEA_HOME", str(out / "home"))
        result = train(make_task(ema_decay=0.5), out, progress=False)
    return out, result


def test_a_run_leaves_everything(unbroken):
    out, result = unbroken
    losses = losses_in(out)
    assert sorted(losses) == [1, 2, 3, 4, 5, 6]
    assert [n for n in losses if "generator/loss" in losses[n]] == [1, 3, 5]  # every second step
    assert list(result)[:2] == ["score", "fid_proxy"] and result["score"] == -result["fid_proxy"] < 0
    assert result["note"] == NO_INCEPTION and not any(key == "fid" for key in result)
    tensors, meta = load_npz(out / BEST)
    assert meta["metrics"]["fid_proxy"] == result["fid_proxy"]
    assert {key.partition(".")[0] for key in tensors} == {"generator", "discriminator"}
    assert Image.open(out / "val" / "samples_0000006.png").size == Image.open(out / "val" / "samples.png").size
    model = jea.create_model("ea_sagan_tiny", width=8)
    jea.load_weights(model, out / BEST)


@pytest.mark.parametrize("stop", [1, 4, 5])  # 4 steps are one epoch
def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit(unbroken, tmp_path, stop):
    train(make_task(ema_decay=0.5), tmp_path, stop_after=stop, progress=False)
    train(make_task(ema_decay=0.5, num_workers=1), tmp_path, resume=True, progress=False)
    assert losses_in(tmp_path) == losses_in(unbroken[0])
    ours, theirs = load_npz(tmp_path / LAST)[0], load_npz(unbroken[0] / LAST)[0]
    assert ours.keys() == theirs.keys() and any(key.startswith("average/generator/") for key in ours)
    assert {key.split("/")[1] for key in ours if key.startswith("optimizer/")} == {"discriminator", "generator"}
    for key in ours:
        assert np.array_equal(ours[key], theirs[key]), key


@pytest.mark.parametrize("network, name", [("generator", "blocks.1.0.conv2d1.weight_orig"),
                                           ("discriminator", "blocks.0.0.conv2d1.weight_orig")])
def test_a_nan_stops_the_run_and_names_the_phase(tmp_path, network, name):
    """Although Jittor's relu(NaN) is 0, so that the loss itself may stay finite."""
    task = make_task()
    weight = getattr(task.model, network).state_dict()[name]
    value = weight.numpy()
    value.reshape(-1)[3] = np.nan
    weight.assign(value)
    with pytest.raises(TrainingError, match=r"step 0, phase (discriminator|generator): \w+ is nan"):
        train(task, tmp_path, progress=False)
    assert not (tmp_path / LAST).exists()


def test_samples_do_not_depend_on_the_batch(tmp_path):
    task = make_task()
    rng = np.random.default_rng(0)
    z, labels = rng.standard_normal((6, 32)).astype(np.float32), np.arange(6, dtype=np.int32)
    pictures = task.sample(z, labels)
    assert pictures.shape == (6, 32, 32, 3) and pictures.dtype == np.uint8
    one = np.concatenate([task.sample(z[i:i + 1], labels[i:i + 1]) for i in range(6)])
    assert np.abs(one.astype(int) - pictures).max() <= 1  # rounding at .5
    mean = task.model.generator.bn4.running_mean.numpy()
    task.eval.batch_statistics = True
    assert np.abs(task.sample(z, labels).astype(int) - pictures).max() > 1
    assert np.array_equal(task.model.generator.bn4.running_mean.numpy(), mean)
    assert all(module.is_training() for module in task.model.generator.modules())


def test_evaluation_is_the_same_every_time_and_its_statistics_are_kept(tmp_path, monkeypatch):
    task = make_task()
    first = task.evaluate(tmp_path, progress=False).values
    (kept,) = (tmp_path / "home" / "statistics").glob("plain_shapes-*.npz")
    real = np.stack([task.dataset("val").load(i)[0] for i in range(12)])
    g = Gaussian.of(task.features(real)[0])
    assert np.allclose(load_npz(kept)[0]["covariance"], g.covariance, atol=1e-9)
    z = np.random.Generator(np.random.PCG64(1)).standard_normal((8, 32), np.float32)
    fake = task.sample(z, np.arange(8, dtype=np.int32) % 6)
    assert first["fid_proxy"] == pytest.approx(frechet_distance(Gaussian.of(task.features(fake)[0]), g), rel=1e-6)
    monkeypatch.setattr("jea.tasks.generation.map_ordered", None)  # the statistics are not made again
    assert task.evaluate(tmp_path, progress=False).values == first
    with pytest.raises(TypeError):
        task.evaluate(tmp_path, split="train", progress=False).values


def test_real_pictures_are_nearer_than_noise():
    task = make_task()
    real = task.reference("train", progress=False)
    held_out = np.stack([task.dataset("val").load(i)[0] for i in range(12)])
    noise = np.random.default_rng(0).integers(0, 256, held_out.shape).astype(np.uint8)
    near, far = (frechet_distance(Gaussian.of(task.features(x)[0]), real) for x in (held_out, noise))
    assert far > 5 * near


def test_files(tmp_path):
    task = make_task(evaluation={"save": "npz", "metrics": False})
    task.fuse()
    assert task.evaluate(tmp_path, progress=False).values == {"samples": 8}
    tensors, _ = load_npz(tmp_path / "samples.npz")
    assert tensors["images"].shape == (8, 32, 32, 3) and tensors["images"].dtype == np.uint8
    assert tensors["labels"].tolist() == [0, 1, 2, 3, 4, 5, 0, 1]
    task.eval.save = "png"
    assert task.evaluate(tmp_path, limit=3, progress=False).values == {"samples": 3}
    names = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert names == ["000000_class000.png", "000001_class001.png", "000002_class002.png"]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "samples" / names[2])), tensors["images"][2])
    assert Image.open(tmp_path / "samples.png").size == (10 * 66 + 2, 6 * 66 + 2)
    assert Image.open(tmp_path / "interpolation.png").size == (10 * 66 + 2, 10 * 66 + 2)


def test_folding_changes_no_sample():
    task = make_task()
    z, labels = np.random.default_rng(0).standard_normal((4, 32)).astype(np.float32), np.arange(4, dtype=np.int32)
    before = task.sample(z, labels)
    task.fuse()
    assert np.abs(task.sample(z, labels).astype(int) - before).max() <= 1


def test_studiogans_folder(tmp_path):
    task, other = make_task(), make_task(seed=6)
    for name, network in (("G", other.model.generator), ("D", other.model.discriminator)):
        jea.save_weights(network, tmp_path / f"model={name}-current-weights-step=20.pth")
    with pytest.raises(CheckpointError, match="no model=G-best"):
        (tmp_path / "empty").mkdir()
        task.weight_files(tmp_path / "empty")

    def load():
        for network, file in task.weight_files(str(tmp_path)):
            jea.load_weights(network, file)
    load()
    assert not changed(snapshot(other.model), task.model)
    jea.save_weights(make_task(seed=7).model.generator, tmp_path / "model=G-best-weights-step=10.pth")
    load()
    assert changed(snapshot(other.model.generator), task.model.generator)  # the best are preferred


@pytest.mark.parametrize("arguments, error, said", [
    ({"evaluation": {"save": "gif"}}, ValueError, 'eval.save is \'gif\'; expected "png", "npz" or null'),
    ({"evaluation": {"samples": 1}}, ValueError, "eval.samples is 1"),
    ({"d_steps": 0}, ValueError, "d_steps is 0; expected at least 1"),
    ({"lr_g": 0.0}, ValueError, "train.lr_g is 0.0; expected a number above 0"),
    ({"beta1": 1.0}, ValueError, "train.beta1 is 1.0; expected 0 or more and less than 1"),
    ({"ema_decay": 2.0}, ValueError, "train.ema_decay is 2.0"),
    ({"evaluation": {"splits": 6, "samples": 10}}, ValueError, "splits is 6; expected at most half of eval.samples"),
    ({"evaluation": {"splits": 0}}, ValueError, "eval.splits is 0; expected at least 1"),
])
def test_bad_options(arguments, error, said):
    with pytest.raises(error, match=said):
        make_task(**arguments)


def test_a_missing_inception_file_stops_before_the_first_step(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        make_task(evaluation={"inception": str(tmp_path / "no.pth")}).begin_training()


def test_a_model_that_generates_nothing():
    with pytest.raises(ValueError, match="model.name is eanet_tiny, which is not for generation; expected one of "
                                         "ea_sagan_tiny, ea_sagan_"):
        Generation(model={"name": "eanet_tiny"}, data={"name": "plain_shapes"})


def test_another_number_of_classes():
    with pytest.raises(DataError, match="has 6 classes, the model 3; set model.num_classes"):
        make_task(model={"num_classes": 3}).dataset("val")


def test_missing_inception_weights(tmp_path):
    task = make_task(evaluation={"inception": str(tmp_path / "no.pth")})
    with pytest.raises(CheckpointError, match="no such file"):
        task.evaluate(tmp_path, progress=False).values


@pytest.mark.slow
def test_fid_with_inception(tmp_path):
    """The whole road with a file of random weights: the keys say FID, and a split against itself has none."""
    jt.set_global_seed(0)
    jea.save_weights(jea.create_model("inception_fid"), tmp_path / "inception.pth")
    task = make_task(evaluation={"inception": str(tmp_path / "inception.pth")})
    result = task.evaluate(tmp_path / "out", progress=False).values
    assert list(result) == ["score", "fid", "inception_score", "samples"] and result["score"] == -result["fid"]
    real = np.stack([task.dataset("val").load(i)[0] for i in range(12)])
    reference = task.reference("val", progress=False)
    own = frechet_distance(Gaussian.of(task.features(real)[0]), reference)
    assert own < 1e-3 * np.trace(reference.covariance) and 1 <= result["inception_score"] <= 1008
