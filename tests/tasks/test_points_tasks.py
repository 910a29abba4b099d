"""The point-cloud tasks: loss, learning, resuming, votes, evaluation and the user's own clouds."""
import json
from pathlib import Path

import numpy as np
import pytest

from jea._jittor import jt
from jea.checkpoint import load_npz
from jea.config import load
from jea.data import DataError
from jea.data.views.clouds import scaled
from jea.tasks.outputs import predict_files
from jea.tasks.part_segmentation import PartSegmentation
from jea.tasks.point_classification import PointClassification
from jea.tasks.point_clouds import MULTI_SCALE, smoothed_cross_entropy
from jea.training.log import LOG
from jea.training.loop import train
from jea.training.state import BEST, LAST

CONFIGS = Path(__file__).parent.parent.parent / "configs"
TASKS = {
    "point_classification": (PointClassification, {"name": "ea_pct_tiny_cls", "num_classes": 10, "dropout": 0.0},
                             "solids"),
    "part_segmentation": (PartSegmentation, {"name": "ea_pct_tiny_partseg", "num_classes": 15, "num_categories": 6,
                                             "dropout": 0.0}, "solid_parts"),
}


def make_task(name, *, eval=None, data=None, model=None, **train):
    cls, defaults, dataset = TASKS[name]
    options = {"steps": 6, "batch_size": 8, "num_workers": 0, "log_every": 1, "eval_every": 0, "save_every": 3, **train}
    return cls(model={**defaults, **(model or {})},
               data={"name": dataset, "num_points": 128, "num_train": 24, "num_val": 10, **(data or {})}, train=options,
               eval={"split": "val", "num_workers": 0, "pictures": 0, **(eval or {})})


def losses_in(out):
    return [e["loss"] for e in map(json.loads, (out / LOG).read_text().splitlines()) if "loss" in e]


# -- loss and optimizers ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize("shape", [(6, 5), (2, 5, 7)])
def test_the_loss_is_dgcnns(shape):
    random = np.random.default_rng(0)
    logits = (random.standard_normal(shape) * 3).astype(np.float32)
    labels = random.integers(0, 5, shape[:1] + shape[2:]).astype(np.int32)
    got = smoothed_cross_entropy(jt.array(logits), jt.array(labels), 0.2).item()
    rows = np.moveaxis(logits, 1, -1).reshape(-1, 5).astype(np.float64)
    log_p = rows - np.log(np.exp(rows).sum(1, keepdims=True))
    wanted = -np.mean([0.8 * row[y] + 0.2 / 4 * (row.sum() - row[y]) for row, y in zip(log_p, labels.reshape(-1))])
    assert got == pytest.approx(wanted, rel=1e-6)
    plain = smoothed_cross_entropy(jt.array(logits), jt.array(labels), 0.0).item()
    assert plain == pytest.approx(-log_p[np.arange(len(rows)), labels.reshape(-1)].mean(), rel=1e-6)


def test_all_parameters_and_no_statistics_are_trained():
    task = make_task("point_classification")
    phase, = task.phases(100)
    group, = phase.optimizer.param_groups
    state = task.model.state_dict()
    wanted = {id(v) for k, v in state.items() if "running_" not in k}
    assert {id(v) for v in group["params"]} == wanted and len(group["params"]) == len(wanted) < len(state)
    assert phase.set_rates(0) == pytest.approx(0.01) and phase.set_rates(50) == pytest.approx((0.01 + 1e-4) / 2)
    assert phase.set_rates(100) == pytest.approx(1e-4)
    assert type(make_task("point_classification", optimizer="adam").phases(1)[0].optimizer).__name__ == "AdamOfJittor"


@pytest.mark.parametrize("options, said", [({"optimizer": "adamw"}, "is 'adamw'; expected sgd or adam"),
                                           ({"eval": {"votes": 0}}, "eval.votes is 0"),
                                           ({"eval": {"scales": []}}, "eval.scales"),
                                           ({"eval": {"scales": [0.0]}}, r"eval.scales is \[0.0\]; expected one"),
                                           ({"eval": {"scales": [1000.0]}}, "above 0, at most 16"),
                                           ({"eval": {"pictures": -1}}, "eval.pictures is -1; expected 0 or more"),
                                           ({"lr": 0.0}, "train.lr is 0.0; expected a number above 0"),
                                           ({"momentum": 1.0}, "train.momentum is 1.0; expected 0 or more and less"),
                                           ({"label_smoothing": 5.0}, "train.label_smoothing is 5.0; expected 0 to 1")])
def test_impossible_options(options, said):
    with pytest.raises(ValueError, match=said):
        make_task("point_classification", **options)


@pytest.mark.parametrize("task, model", [(PointClassification, "ea_pct_tiny_partseg"),
                                         (PartSegmentation, "ea_pct_tiny_cls"), (PointClassification, "eanet_tiny")])
def test_a_model_of_another_task(task, model):
    with pytest.raises(ValueError,
                       match=f"model.name is {model}, which is not for {task.name}; expected one of ea_pct"):
        task(model={"name": model}, data={"name": "solids"})


def test_clouds_of_fewer_points_than_the_model_samples():
    with pytest.raises(DataError, match="clouds of 100 points; the model samples 128: set data.num_points to 128"):
        make_task("point_classification", data={"num_points": 100}).dataset()


# -- training --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", TASKS)
def test_it_learns_a_few_clouds_by_heart(name, tmp_path):
    task = make_task(name, steps=60, batch_size=10, lr=0.05, label_smoothing=0.0, data={"num_train": 10},
                     eval={"split": "train", "pictures": 2})
    result = train(task, tmp_path, progress=False)
    losses = losses_in(tmp_path)
    assert losses[-1] < 0.25 * losses[0]
    first = next(iter(result))
    assert first == {"point_classification": "OA", "part_segmentation": "instance_mIoU"}[name]
    assert result[first] >= 0.8 and result["clouds"] == 10
    assert sorted(p.name for p in (tmp_path / "val" / "pictures").iterdir()) == ["train_0000.png", "train_0001.png"]
    assert load_npz(tmp_path / BEST)[1]["task"] == name


@pytest.mark.parametrize("name, options", [("point_classification", {}), ("part_segmentation", {"optimizer": "adam"})])
def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit(name, options, tmp_path):
    options = {**options, "data": {"dropout": 0.5, "scale": [0.8, 1.2], "jitter": 0.01}, "model": {"dropout": 0.5}}
    train(make_task(name, **options), tmp_path / "a", progress=False)
    train(make_task(name, **options), tmp_path / "b", stop_after=4, progress=False)  # in the second epoch
    train(make_task(name, **options), tmp_path / "b", resume=True, progress=False)
    assert losses_in(tmp_path / "a") == losses_in(tmp_path / "b") and len(losses_in(tmp_path / "a")) == 6
    ours, theirs = (load_npz(tmp_path / run / LAST)[0] for run in "ab")
    assert ours.keys() == theirs.keys() and any(key.startswith("optimizer/") for key in ours)
    for key in ours:
        assert np.array_equal(ours[key], theirs[key]), key


# -- evaluation ------------------------------------------------------------------------------------------------------

def one_cloud(task):
    return task.dataset("val").test_sample(1)


def softmax(logits):
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    return exponentials / exponentials.sum(1, keepdims=True)


def test_votes_are_the_mean_over_scales_and_stretches():
    task = make_task("point_classification", eval={"scales": [0.8, 1.3], "votes": 2})
    points = one_cloud(task)["points"][None]
    stretched = scaled(points[0].T, np.random.Generator(np.random.PCG64((5, 1))), 2 / 3, 3 / 2).T[None]
    task.model.eval()
    wanted = np.mean([softmax(task.model(jt.array(np.float32(x * np.float32(scale)))).numpy().astype(np.float64))
                      for x in (points, stretched) for scale in (0.8, 1.3)], axis=0)
    got = task.probabilities(points, np.array([1]), [5])
    assert got == pytest.approx(wanted, abs=1e-7) and got.sum() == pytest.approx(1)
    assert not np.allclose(got, task.probabilities(points, np.array([1]), [6]), atol=1e-6)
    task.multi_scale()
    assert task.eval.scales == MULTI_SCALE == pytest.approx(np.arange(7, 15) / 10)


def test_a_clouds_votes_do_not_depend_on_its_batch():
    tasks = [make_task("part_segmentation", eval={"votes": 2, "batch_size": size}) for size in (1, 4)]
    results = [task.evaluate("unused", progress=False).values for task in tasks]
    for key in ("instance_mIoU", "category_mIoU", "accuracy"):
        assert results[0][key] == pytest.approx(results[1][key], abs=2e-3)


def test_parts_of_the_category_only():
    task = make_task("part_segmentation")
    parts = ((0, 1), (2, 3))
    found = np.array([[0.1, 0.3], [0.2, 0.1], [0.6, 0.1], [0.1, 0.5]])  # of two points
    assert task.prediction(found, 0, parts).tolist() == [2, 3]
    task.eval.within_category = True
    assert task.prediction(found, 0, parts).tolist() == [1, 0] and task.prediction(found, 1, parts).tolist() == [2, 3]


def test_the_network_is_told_the_category():
    task = make_task("part_segmentation")
    assert task.one_hot(np.array([2, 0])).tolist() == [[0, 0, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0]]
    points = np.repeat(one_cloud(task)["points"][None], 2, axis=0)
    found = task.probabilities(points, np.array([0, 3]), [0, 0])
    assert found.shape == (2, 15, 128) and not np.allclose(found[0], found[1], atol=1e-6)


def test_scores_of_a_known_prediction(monkeypatch, tmp_path):
    task = make_task("point_classification")  # 10 clouds of 10 classes
    monkeypatch.setattr(task, "probabilities", lambda points, categories, seeds: np.eye(10)[np.where(
        np.array(seeds) < 8, categories, 0)])
    result = task.evaluate(tmp_path, progress=False).values
    assert list(result)[:2] == ["OA", "mAcc"] and result["OA"] == result["mAcc"] == pytest.approx(0.8)
    assert result["accuracy"]["bowl"] == 0 and result["accuracy"]["ball"] == 1 and result["clouds"] == 10
    assert task.evaluate(tmp_path, progress=False, limit=8).values["OA"] == 1
    task = make_task("part_segmentation")
    monkeypatch.setattr(task, "probabilities", lambda points, categories, seeds: np.stack([
        np.eye(15)[np.zeros(128, int)].T for _ in categories]))
    result = task.evaluate(tmp_path, progress=False).values  # always part 0: right for the table's top alone
    assert list(result)[:2] == ["instance_mIoU", "category_mIoU"] and result["mIoU"]["chair"] == 0
    assert 0 < result["mIoU"]["table"] < 0.5


@pytest.mark.parametrize("name, change, said", [
    ("point_classification", {"num_classes": 9}, "has 10 classes, the model 9; set model.num_classes"),
    ("part_segmentation", {"num_classes": 14}, "has 6 categories and 15 parts, the model 6 and 14"),
    ("part_segmentation", {"num_categories": 16}, "the model 16 and 15"),
])
def test_a_model_that_does_not_fit_the_data(name, change, said):
    with pytest.raises(DataError, match=said):
        make_task(name, model=change).dataset()


def test_part_segmentation_needs_parts():
    with pytest.raises(DataError, match="has no parts"):
        make_task("part_segmentation", data={"name": "solids"}).dataset()


# -- the user's own clouds -------------------------------------------------------------------------------------------

def test_own_clouds(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    cloud = np.random.default_rng(0).uniform(100, 200, (300, 3))
    np.savetxt(folder / "a.txt", cloud, fmt="%.9f")
    np.save(folder / "a.npy", cloud[:90].astype(np.float32))  # fewer than the 128 points of the training
    task = make_task("point_classification")
    result = predict_files(task, folder, tmp_path / "out", progress=False)
    assert [entry["prediction"] for entry in result["files"]] == [str(tmp_path / "out" / name)
                                                                   for name in ("a.png", "a.txt.png")]
    shares = result["files"][0]["classes"]
    assert len(shares) == 5 and list(shares.values()) == sorted(shares.values(), reverse=True) and "files" in result
    again = predict_files(task, folder / "a.npy", tmp_path / "out", progress=False)
    assert again["files"][0]["classes"] == shares

    task = make_task("part_segmentation", eval={"category": "lamp"})
    result = predict_files(task, folder, tmp_path / "parts", progress=False)
    assert sum(result["files"][1]["classes"].values()) == pytest.approx(1, abs=1e-3)
    table = np.loadtxt(tmp_path / "parts" / "a.txt_parts.txt")
    assert table.shape == (300, 4) and np.abs(table[:, :3] - cloud).max() < 1e-6  # the user's coordinates and order
    assert set(table[:, 3]) <= set(range(15))
    assert len(np.loadtxt(tmp_path / "parts" / "a_parts.txt")) == 90
    assert (tmp_path / "parts" / "a.txt.png").read_bytes().startswith(b"\x89PNG")


def test_every_point_gets_the_part_that_its_group_found(tmp_path, monkeypatch):
    """With a network that says the part from x alone, all points must have the right one, whatever their group."""
    task = make_task("part_segmentation", eval={"category": "table"})
    monkeypatch.setattr(task, "run", lambda points, label: np.stack([points[:, 0] < 0, points[:, 0] >= 0], 1) * 1.0)
    cloud = np.random.default_rng(1).standard_normal((500, 3))
    np.save(tmp_path / "a.npy", cloud)
    predict_files(task, tmp_path / "a.npy", tmp_path, progress=False)
    table = np.loadtxt(tmp_path / "a_parts.txt")
    assert np.array_equal(table[:, 3] == 1, cloud[:, 0] >= cloud[:, 0].mean())


def test_the_category_is_guessed_from_the_networks_certainty(monkeypatch):
    task = make_task("part_segmentation")
    found = np.full((6, 15, 128), 0.01)
    found[2, 7] = 0.9  # told "lamp", it is sure of a part of lamps
    found[4, 3] = 0.99  # told "rocket", it is sure of a part of chairs
    monkeypatch.setattr(task, "run", lambda points, label: found)
    assert task._category(np.zeros((128, 3), np.float32), task.dataset().parts) == 2


@pytest.mark.parametrize("cloud, said", [(np.zeros((100, 3)), "all 100 points are the same"),
                                         (np.eye(3), "cloud has 3 points; expected at least 32, and best 128 or more"),
                                         (np.full((50, 3), np.nan), "not a finite place")])
def test_own_clouds_that_tell_nothing(tmp_path, cloud, said):
    np.save(tmp_path / "a.npy", cloud)
    with pytest.raises(DataError, match=f"a.npy.*{said}"):
        predict_files(make_task("point_classification"), tmp_path / "a.npy", tmp_path, progress=False)
    with pytest.raises(DataError, match="eval.category is 'sofa'; there are table, chair"):
        np.save(tmp_path / "b.npy", np.random.default_rng(0).standard_normal((100, 3)))
        task = make_task("part_segmentation", eval={"category": "sofa"})
        predict_files(task, tmp_path / "b.npy", tmp_path, progress=False)


def test_the_configs_make_tasks_that_fit_their_data():
    for path in ("point_classification_ea_pct_tiny_solids", "part_segmentation_ea_pct_tiny_solids"):
        config = load(CONFIGS / f"{path}.yaml")
        task = TASKS[config.pop("task")][0](**config)
        assert len(task.dataset()) == 4000 and len(task.dataset(task.eval.split)) == 400
    for path, names in (("point_classification_ea_pct_cls_modelnet40", ("num_classes", "class_names")),
                        ("part_segmentation_ea_pct_partseg_shapenet_part", ("num_categories", "class_names"))):
        config = load(CONFIGS / f"{path}.yaml")
        task = TASKS[config.pop("task")][0](**config)
        count = getattr(task.model, names[0])
        assert "airplane" in task.names(names[1], count) and task.names(names[1], 7)[3] == "class 3"
    assert len(set(task.names("part_names", task.model.num_classes))) == 50
