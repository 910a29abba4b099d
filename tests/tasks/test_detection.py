"""The tasks of detection: training, evaluation, files; on a few synthetic scenes."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pycocotools")

from jea.checkpoint import load_npz  # noqa: E402
from jea.data import write_image  # noqa: E402
from jea.data.detection.scenes import make_scenes  # noqa: E402
from jea.errors import ConfigError, DataError  # noqa: E402
from jea.results.pictures import listed  # noqa: E402
from jea.tasks.detection import Detection, InstanceSegmentation, entries  # noqa: E402
from jea.tasks.outputs import predict_files  # noqa: E402
from jea.training.loop import train  # noqa: E402

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return make_scenes(tmp_path_factory.mktemp("data") / "scenes", counts={"train": 8, "val": 4})


def blocks(scenes, *, model=None, data=None, train=None, eval=None):
    return {
        "model": {"name": "ea_maskrcnn_tiny", "num_classes": 6, "style": "mmdet", "rpn_pre_nms": [100, 60],
                  "rpn_post_nms": [40, 20], "rpn_samples": 64, "roi_samples": 16, **(model or {})},
        "data": {"name": "coco_json", "root": str(scenes), "split": "train", "min_size": 160, "max_size": 160,
                 **(data or {})},
        "train": {"steps": 4, "batch_size": 2, "lr": 0.005, "warmup_steps": 2, "milestones": [1.5], "num_workers": 0,
                  "eval_every": 0, "grad_clip": 10.0, **(train or {})},
        "eval": {"num_workers": 0, "pictures": 2, **(eval or {})}}


@pytest.fixture(scope="module")
def run(scenes, tmp_path_factory):
    """A short run and its folder."""
    out = tmp_path_factory.mktemp("run")
    task = InstanceSegmentation(**blocks(scenes))
    values = train(task, out, progress=False)
    return task, out, values


def test_a_run_trains_judges_and_draws(run):
    task, out, values = run
    assert {"box AP", "mask AP", "box AP50", "mask AR100", "box AP by class"} <= set(values)
    assert list(values)[:2] == ["box AP", "mask AP"] and values["images"] == 4
    entries_of_log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert any("masks_loss" in entry for entry in entries_of_log)
    assert (out / "best.npz").is_file()
    assert len(list((out / "val" / "pictures").glob("*.png"))) == 2
    results = json.loads((out / "val" / "detections.json").read_text())
    assert isinstance(results, list)
    for result in results:
        assert set(result) == {"image_id", "category_id", "bbox", "score", "segmentation"}
        assert 1 <= result["image_id"] <= 4 and result["category_id"] in (1, 3, 5, 7, 9, 11)


def test_a_resumed_run_is_the_unbroken_one(run, scenes, tmp_path):
    _, whole, _ = run
    train(InstanceSegmentation(**blocks(scenes)), tmp_path, progress=False, stop_after=2)
    train(InstanceSegmentation(**blocks(scenes)), tmp_path, progress=False, resume=True)
    one, other = (load_npz(folder / "last.npz")[0] for folder in (whole, tmp_path))
    assert set(one) == set(other)
    for key in one:
        assert np.array_equal(one[key], other[key]), key


def test_the_rate_rises_and_falls(scenes):
    task = InstanceSegmentation(**blocks(scenes))
    phase, = task.phases(8)
    assert task.batches_per_epoch == 4
    rates = [phase.set_rates(step) for step in range(8)]
    assert rates[0] == pytest.approx(0.005 * 0.001) and rates[1] < rates[2] == 0.005
    assert rates[5] == 0.005 and rates[6] == pytest.approx(0.0005)  # after one and a half epochs


def test_all_that_trains_is_in_the_optimizer(scenes):
    task = Detection(**blocks(scenes))
    count = len(task.phases(1)[0].optimizer.param_groups[0]["params"])
    names = [key for key in task.model.state_dict() if not key.endswith(("running_mean", "running_var"))]
    assert count == len(names)


def test_files_of_ones_own(run, scenes, tmp_path):
    task = run[0]
    rng = np.random.default_rng(0)
    for name, shape in (("a.png", (90, 130, 3)), ("b.png", (160, 160, 3))):
        write_image(tmp_path / name, rng.integers(0, 255, shape).astype(np.uint8))
    (tmp_path / "c.png").write_bytes(b"no picture")
    task.eval.min_score = 0.0
    found = predict_files(task, tmp_path, tmp_path / "out", progress=False)
    task.eval.min_score = 0.5
    assert found["images"] == 2 and len(found["failed"]) == 1
    assert (tmp_path / "out" / "a.png").is_file() and (tmp_path / "out" / "detections.json").is_file()
    for file in found["files"]:
        assert all(set(thing) == {"class", "score", "box"} for thing in file["objects"])
        assert sorted(file["scores"].values()) == sorted(thing["score"] for thing in file["objects"])


def test_pictures_need_no_data_set(scenes, monkeypatch):
    """Names and sizes are known without COCO's files; pictures of one size run together."""
    task = InstanceSegmentation(**blocks(scenes, model={"num_classes": 80}, data={"name": "coco_detection",
                                                                                  "root": "nowhere"}))
    one = {"boxes": np.array([[1, 2, 30, 40]], np.float32), "scores": np.array([0.9], np.float32),
           "labels": np.array([16]), "masks": np.zeros((1, 90, 130), bool)}
    seen = []

    def detect_together(multiple, images, originals):
        seen.append([multiple, *(image.shape for image in images), *originals])
        return [one] * len(images)
    monkeypatch.setattr(task, "detect_together", detect_together)
    task.prepare_prediction()
    pictures = [np.zeros(shape, np.uint8) for shape in ((90, 130, 3), (60, 60, 3), (90, 130, 3))]
    found = task.predict([task.takes.input(picture) for picture in pictures])
    assert seen == [[32, (3, 110, 160), (3, 110, 160), (90, 130), (90, 130)], [32, (3, 160, 160), (60, 60)]]
    assert [result.image.shape for result in found] == [picture.shape for picture in pictures]
    assert found[0].objects == [{"class": "dog", "score": 0.9, "box": [1.0, 2.0, 30.0, 40.0]}]
    task.num_classes = 5  # a head of one's own
    assert task.class_names() == ("class 0", "class 1", "class 2", "class 3", "class 4")


def test_a_split_without_answers(run, scenes, tmp_path):
    task = run[0]
    content = json.loads((scenes / "annotations" / "val.json").read_text())
    del content["annotations"]
    (scenes / "annotations" / "hidden.json").write_text(json.dumps(content))
    (scenes / "hidden").symlink_to(scenes / "val")
    found = task.evaluate(tmp_path, split="hidden", limit=2, progress=False)
    assert found.score is None and "box AP" not in found.values
    assert (tmp_path / "detections.json").is_file()


def test_nothing_found_scores_zero(run, scenes, tmp_path, monkeypatch):
    task = run[0]
    none = {"boxes": np.zeros((0, 4), np.float32), "scores": np.zeros(0, np.float32), "labels": np.zeros(0, np.int64),
            "masks": np.zeros((0, 160, 160), bool)}
    monkeypatch.setattr(task, "detect", lambda *a: none)
    found = task.evaluate(tmp_path, split="val", progress=False)
    assert found.score == 0 and found.values["box AP"] == 0 and found.values["box AR100"] == 0


def test_perfect_answers_score_one(run, scenes, tmp_path, monkeypatch):
    task = run[0]
    dataset = task.dataset("val")
    answers = iter(range(4))

    def detect(*_):
        index = next(answers)
        rows = dataset.objects(index)
        return {"boxes": dataset.corners(rows, (160, 160)), "scores": np.linspace(0.9, 0.6, len(rows)),
                "labels": dataset._label[dataset.instances.classes[rows]],
                "masks": np.stack([dataset.instances.mask(n, 160, 160) for n in rows])}
    monkeypatch.setattr(task, "detect", detect)
    found = task.evaluate(tmp_path, split="val", progress=False)
    assert found.score > 0.999 and found.values["box AP"] > 0.999


def test_the_fused_forms_find_what_the_model_finds(scenes, tmp_path):
    """The demo's weights, which find most objects, on four pictures."""
    from jea.nn.precision import unavailable
    model = {"rpn_pre_nms": [600, 300], "rpn_post_nms": [200, 100]}
    found = {}
    for precision in ("plain", "float32", *["bfloat16"] * (not unavailable("bfloat16"))):
        task = InstanceSegmentation(**blocks(scenes, model=model, eval={"pictures": 0}), draw=False)
        task.load(ROOT / "weights" / "ea_maskrcnn_tiny_shape_scenes.npz")
        if precision != "plain":
            task.fuse(precision)
        found[precision] = task.evaluate(tmp_path / precision, split="val", progress=False).values
    plain = found.pop("plain")
    assert plain["box AP"] > 0.5 and plain["mask AP"] > 0.5
    for precision, values in found.items():
        for name in ("box AP", "mask AP"):
            assert abs(values[name] - plain[name]) < (1e-3 if precision == "float32" else 0.05), (precision, name)


def test_objects_are_listed_by_name():
    assert listed([{"class": "a", "score": 0.9}, {"class": "b", "score": 0.8}, {"class": "a", "score": 0.7}]) == {
        "a": 0.9, "b": 0.8, "a (2)": 0.7}


def test_labels_of_no_class_are_no_results():
    found = {"boxes": np.zeros((2, 4), np.float32), "scores": np.ones(2), "labels": np.array([-1, 0])}
    assert [entry["category_id"] for entry in entries(found, 0, (7,))] == [7]


def test_what_does_not_fit_is_said(scenes):
    with pytest.raises(ConfigError, match="makes no masks"):
        InstanceSegmentation(**blocks(scenes, model={"name": "ea_fasterrcnn_tiny"}))
    with pytest.raises(DataError, match="has 6 classes, the model 5"):
        Detection(**blocks(scenes, model={"num_classes": 5})).loader


@pytest.mark.slow
def test_a_killed_run_goes_on_as_the_unbroken_one(scenes, tmp_path):
    """kill -9 at some moment of training that saves after each step."""
    options = ["data.name=coco_json", "data.min_size=160", "data.max_size=160", "train.steps=400", "train.batch_size=2",
               "train.lr=0.001", "train.warmup_steps=2", "train.num_workers=1", "train.eval_every=0",
               "train.save_every=1", "train.log_every=1", "model.roi_samples=16"]
    command = [sys.executable, "train.py", "--config", "instance_segmentation_ea_maskrcnn_tiny_shapes",
               "--data", str(scenes), *options]
    killed = tmp_path / "killed"
    process = subprocess.Popen([*command, "--out", str(killed)], cwd=ROOT, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.time() + 400
    while time.time() < deadline and process.poll() is None:
        if (killed / "log.jsonl").exists() and len((killed / "log.jsonl").read_text().splitlines()) >= 4:
            break
        time.sleep(0.05)
    time.sleep(np.random.default_rng(3).random())
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    step = load_npz(killed / "last.npz")[1]["step"]
    assert step >= 3
    for out, more in ((killed, ["--resume"]), (tmp_path / "whole", [])):
        done = subprocess.run([*command, "--out", str(out), "--stop-after", str(step + 2), *more], cwd=ROOT,
                              capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stderr
    one, other = (load_npz(tmp_path / name / "last.npz")[0] for name in ("killed", "whole"))
    assert one.keys() == other.keys() and load_npz(killed / "last.npz")[1]["step"] == step + 2
    for key in one:
        assert np.array_equal(one[key], other[key]), key


@pytest.mark.slow
@pytest.mark.parametrize("kind, boxes, masks", (("maskrcnn", 0.999, 0.999), ("cascade_maskrcnn", 0.95, 0.9)))
def test_four_pictures_are_learned_by_heart(scenes, tmp_path, kind, boxes, masks):
    """An AP of 1 prints as 1.0 and is 0.9999999999999998: COCO's precisions have a smallest number in them."""
    content = json.loads((scenes / "annotations" / "train.json").read_text())
    content["images"] = content["images"][:4]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept and not a["iscrowd"]]
    (scenes / "annotations" / "four.json").write_text(json.dumps(content))
    if not (scenes / "four").exists():
        (scenes / "four").symlink_to(scenes / "train")
    task = InstanceSegmentation(**blocks(
        scenes, model={"name": f"ea_{kind}_tiny", "zero_attention": True, "rpn_post_nms": [100, 50],
                       "roi_samples": 64},
        data={"split": "four", "flip": 0.0}, eval={"split": "four"},
        train={"steps": 1200, "batch_size": 4, "lr": 0.02, "warmup_steps": 30, "milestones": [800, 1100]}))
    values = train(task, tmp_path, progress=False)
    assert values["box AP"] > boxes and values["mask AP"] > masks, values
