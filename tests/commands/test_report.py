"""report.html as `jea test` and `jea train` write it."""
import re

import pytest

from jea.commands import cli
from jea.commands.common import report
from jea.tasks.task import Evaluation, Shown


def test_what_differs_from_the_defaults_is_marked():
    config = {"task": "segmentation", "model": {"name": "eanet_tiny", "num_classes": 7},
              "data": {"name": "shapes", "scales": [1.0]}, "train": {"lr": 0.1, "steps": 10}, "eval": {}}
    defaults = {"model": {"num_classes": 21}, "data": {"scales": (1.0,)}, "train": {"lr": 0.1, "steps": None},
                "eval": {}}
    text, changed = report.config_text(config, defaults)
    assert text.splitlines()[:3] == ["task: segmentation", "model:", "  name: eanet_tiny"]
    assert changed == {"  num_classes: 7", "  steps: 10"}


def test_the_worst_picture_comes_first(tmp_path):
    from PIL import Image
    shown = []
    for name, score in (("good", 0.9), ("bad", 0.1), ("unknown", None)):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{name}.png")
        shown.append(Shown(tmp_path / f"{name}.png", f"{name} one", score))
    report.write_report(tmp_path / "r.html", Evaluation(0.5, {"mIoU": 0.5, "IoU": {"a": 0.4, "b": 0.6}}, shown),
                        title="t", lead="", config={"task": "x"}, defaults={},
                        command=["python", "test.py", "--out", "a b"])
    text = (tmp_path / "r.html").read_text()
    assert re.findall(r"<figcaption>(\w+) one", text) == ["bad", "good", "unknown"]
    assert "python test.py --out &#x27;a b&#x27;" in text and "<h2>Classes</h2>" in text


@pytest.mark.parametrize("config, pictures", [
    ("segmentation_eanet_tiny_shapes", r"mIoU \d\.\d\d"), ("classification_eamlp_tiny_shapes", "taken for|probability"),
    ("point_classification_ea_pct_tiny_solids", "probability of the label"),
    ("part_segmentation_ea_pct_tiny_solids", r"mIoU \d\.\d\d")])
def test_every_evaluation_writes_one(config, pictures, demo_home, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("JEA_HOME", str(demo_home))
    assert cli.main(["test", "--config", config, "--limit", "16", "--out", str(tmp_path)]) == 0
    text = (tmp_path / "report.html").read_text()
    captions = re.findall(r"<figcaption>([^<]*)", text)
    assert len(captions) >= 5 and any(re.search(pictures, caption) for caption in captions)
    assert config in text and "report.html" in capsys.readouterr().out


def test_training_writes_one_at_each_evaluation(demo_home, monkeypatch, tmp_path):
    monkeypatch.setenv("JEA_HOME", str(demo_home))
    assert cli.main(["train", "--config", "point_classification_ea_pct_tiny_solids", "--out", str(tmp_path),
                     "train.epochs=null", "train.steps=2", "train.num_workers=0", "data.num_train=64",
                     "data.num_val=16"]) == 0
    text = (tmp_path / "report.html").read_text()
    assert "Curves of the run" in text and "OA" in text and "<mark>  steps: 2</mark>" in text


def test_names_among_the_scores(tmp_path):
    """Of classes without a label, for example: they stand as text."""
    values = {"mIoU": 0.5, "absent_classes": ["ring", "cross"]}
    report.write_report(tmp_path / "r.html", Evaluation(0.5, values, []), title="t", lead="l",
                        config={"task": "segmentation"}, defaults={}, command=["test.py"])
    assert "ring, cross" in (tmp_path / "r.html").read_text()
