"""The classification task: evaluation and the command line."""
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import jea
from jea._jittor import jt
from jea.checkpoint import load_npz, save_npz
from jea.commands import test as test_command
from jea.commands import train as train_command
from jea.data import DataError, ShapeClasses
from jea.models.network import Network
from jea.tasks import task as task_module
from jea.tasks.classification import Classification, read_class_list

TINY = {"name": "eamlp_tiny", "num_classes": 10, "img_size": 32}
DATA = {"name": "shape_classes", "size": 32, "num_train": 40, "num_val": 20}


def make_task(*, model=TINY, data=DATA, evaluate=None, **train):
    options = {"steps": 8, "batch_size": 8, "num_workers": 0, "log_every": 1, "eval_every": 0, "save_every": 4,
               "seed": 3, "warmup_epochs": 0.5, **train}
    evaluation = {"num_workers": 0, "batch_size": 8, **(evaluate or {})}
    return Classification(model=model, data=data, train=options, eval=evaluation)


def softmax(x):
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


# -- evaluation

class Known(Network):
    """Logits that say the label, but for every class-2 picture, which is taken for class 7."""

    solves, num_classes, img_size = "classification", 10, 32

    def __init__(self):
        self.weight, self.asked, self.key_maps = jt.zeros(1), [], ()

    def execute(self, x):
        start, count = sum(self.asked), x.shape[0]
        self.asked.append(count)
        labels = np.arange(start, start + count) % 10
        scores = np.eye(10, dtype=np.float32)[np.where(labels == 2, 7, labels)]
        scores[labels == 2, 2] = 0.5  # the second best
        return jt.array(scores)


def test_evaluation(monkeypatch, tmp_path):
    monkeypatch.setattr(task_module, "create_model", lambda name, **kwargs: Known())
    task = make_task(evaluate={"worst": 2})
    result = task.evaluate(tmp_path, progress=False).values
    assert task.model.asked == [8, 8, 4] and result["images"] == 20 and result["images_per_second"] > 0
    assert list(result)[:3] == ["top1", "top5", "mean_class"]
    assert result["top1"] == 0.9 and result["top5"] == 1.0 and result["mean_class"] == pytest.approx(0.9)
    assert result["worst_classes"] == [
        {"class": "barred disk", "accuracy": 0.0, "taken_for": {"checked cross": 1.0}},
        {"class": "plain disk", "accuracy": 1.0, "taken_for": {}}]
    rows = (tmp_path / "confusion.csv").read_text().splitlines()
    assert rows[0].startswith('label,"plain disk","plain cross"') and rows[3] == '"barred disk",0,0,0,0,0,0,0,2,0,0'
    task.model.asked.clear()
    result = task.evaluate(tmp_path, limit=3, progress=False).values
    assert result["top1"] == pytest.approx(2 / 3) and task.model.asked == [3]


def test_class_lists(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("n01440764 tench, Tinca tinca\nn02012849 crane\n\nn03126707 crane\n")
    assert read_class_list(path, 3) == ("tench, Tinca tinca", "crane", "crane")
    with pytest.raises(DataError, match="classes.txt: 3 classes in the list, the model has 10"):
        read_class_list(path, 10)
    with pytest.raises(DataError, match="none.txt: class list does not exist"):
        read_class_list(tmp_path / "none.txt", 3)
    task = make_task(model={**TINY, "num_classes": 3}, evaluate={"class_list": str(path)})
    assert task.class_names() == ("tench, Tinca tinca", "crane (1)", "crane (2)")
    task = make_task(model={**TINY, "num_classes": 3})  # the data set has 10 classes, so its names are not the model's
    assert task.class_names() == ("class 0", "class 1", "class 2")
    with pytest.raises(DataError, match="memory: has 10 classes, the model 3; set model.num_classes"):
        task.dataset()


# -- the command line

@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "w.npz"
    jea.save_weights(jea.create_model("eamlp_tiny", num_classes=10, img_size=32), path)
    return path


def run_test(*arguments):
    return test_command.main(["--config", "classification_eamlp_tiny_shapes", *map(str, arguments)])


def test_test_py_on_the_data_set(weights, tmp_path, capsys):
    out = tmp_path / "out"
    assert run_test("--weights", weights, "--out", out, "--limit", 12, "eval.worst=3") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:6]] == ["top1", "top5", "mean_class", "images", "images_per_second",
                                                         "worst classes"]
    assert len(lines) == 10 and "accuracy" in lines[6] and lines[-1] == f"output: {out}; report: {out / 'report.html'}"
    assert (out / "confusion.csv").is_file()
    assert run_test("--weights", weights, "--out", out, "--limit", 4, "--json") == 0
    assert set(json.loads(capsys.readouterr().out)) >= {"top1", "top5", "worst_classes"}


def test_averaged_weights_are_preferred_unless_told_otherwise(weights, tmp_path, capsys):
    state = load_npz(weights)[0]
    path = tmp_path / "timm.pth"
    both = {f"{group}/{key}": value * (1 if group == "state_dict" else 0) for group in ("state_dict", "state_dict_ema")
            for key, value in state.items()}
    save_npz(path, both, {})  # the format is told by the content
    results = []
    for more in ([], ["--no-ema"], ["--weights", str(weights)]):
        chosen = more if "--weights" in more else ["--weights", str(path), *more]
        assert run_test(*chosen, "--out", tmp_path / "o", "--json", "data.num_val=40", "eval.batch_size=40") == 0
        results.append(json.loads(capsys.readouterr().out))
        results[-1].pop("images_per_second")
    assert results[1] == results[2] != results[0]
    assert results[0]["top1"] == 0.1  # zeros: all logits are equal, the first class wins


def test_test_py_on_pictures(weights, tmp_path, capsys):
    image = ShapeClasses(split="val", size=32).load(5)[0]
    (tmp_path / "in").mkdir()
    Image.fromarray(image).save(tmp_path / "in" / "a.png")
    Image.fromarray(image[:, :, 0]).resize((90, 50)).save(tmp_path / "in" / "b.jpg")
    out = tmp_path / "out"
    assert run_test("--weights", weights, "--out", out, "--input", tmp_path / "in", "eval.crop_pct=0.9") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "in/" in line]
    assert len(lines) == 2 and lines[0].strip().startswith(f"{tmp_path}/in/a.png: ") and lines[0].count("%") == 5
    found = json.loads((out / "predictions.json").read_text())
    assert [Path(entry["input"]).name for entry in found] == ["a.png", "b.jpg"]
    shares = list(found[0]["classes"].values())
    assert len(shares) == 5 and shares == sorted(shares, reverse=True) and set(found[0]["classes"]) <= set(
        ShapeClasses.class_names)
    model = jea.create_model("eamlp_tiny", num_classes=10, img_size=32)
    jea.load_weights(model, weights)
    model.eval()
    from jea.data.views.augment import eval_picture
    logits = model(jt.array(eval_picture(image, 32, 0.9)[None])).numpy()[0]
    name = max(found[0]["classes"], key=found[0]["classes"].get)
    assert name == ShapeClasses.class_names[int(logits.argmax())]
    assert shares[0] == pytest.approx(softmax(logits[None])[0].max(), abs=1e-3)


@pytest.mark.parametrize("arguments, said", [
    (["--multi-scale"], "--multi-scale: there is no such test for classification"),
    (["data.name=voc", "data.root=x"], "data.name: unknown 'voc'; there are image_folder, tiny_imagenet"),
    (["train.grad_accumulation=7"], "expected a divisor of batch_size, which is 64"),
    (["--weights", "no.pth"], "no.pth"),
    (["train.mixupp=0.1"], "did you mean mixup?"),
    (["eval.class_list=nothing.txt"], "nothing.txt: class list does not exist"),
    (["data.seed=-1"], "seed -1; expected size >= 16"),
])
def test_errors_are_one_message(weights, tmp_path, capsys, arguments, said):
    given = [] if "--weights" in arguments else ["--weights", weights]
    assert run_test(*given, "--out", tmp_path / "o", *arguments) == 2
    err = capsys.readouterr().err
    assert said in err and "Traceback" not in err


def test_training_from_the_command_line(tmp_path, capsys):
    arguments = ["--config", "classification_eamlp_tiny_shapes", "--out", str(tmp_path / "run"), "train.steps=2",
                 "train.batch_size=8", "train.eval_every=0", "data.num_val=10"]
    assert train_command.main(arguments) == 0
    said = capsys.readouterr()
    assert "top1: " in said.out and "best.npz" in said.out and "classification, eamlp_tiny" in said.err
