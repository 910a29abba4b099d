"""Configs: those of the repository are valid, and mistakes are reported together, with the nearest name."""
import subprocess
from pathlib import Path

import pytest
import yaml

from jea import config
from jea.config import ConfigError

CONFIGS = Path(__file__).parent.parent / "configs"

GOOD = {
    "task": "segmentation",
    "model": {"name": "eanet_tiny", "num_classes": 7},
    "data": {"name": "voc", "root": "somewhere"},
    "train": {"steps": 10},
}


def write(tmp_path, content):
    path = tmp_path / "x.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def problems_of(tmp_path, content, overrides=()):
    with pytest.raises(ConfigError) as caught:
        config.load(write(tmp_path, content), overrides)
    lines = str(caught.value).splitlines()
    assert all("x.yaml: " in line for line in lines)
    return lines


def changed(**blocks):
    return {**GOOD, **{name: {**GOOD.get(name, {}), **block} for name, block in blocks.items()}}


def test_every_config_of_the_repository_is_valid():
    found = sorted(CONFIGS.rglob("*.yaml"))
    tracked = subprocess.run(["git", "ls-files", "configs/*.yaml"], cwd=CONFIGS.parent, capture_output=True, text=True)
    if tracked.returncode == 0:
        assert len(found) >= len(tracked.stdout.split()) >= 3
    for path in found:
        loaded = config.load(path)
        assert path.stem.startswith(loaded["task"] + "_")


def test_all_mistakes_are_reported_at_once(tmp_path):
    bad = changed(model={"num_clases": 3}, data={"crop_sise": 9}, train={"lr": "1e-3", "epochs": 3}, eval={"flip": 1})
    lines = problems_of(tmp_path, bad)
    assert len(lines) == 5
    text = "\n".join(lines)
    assert "model.num_clases: unknown; eanet_tiny takes num_classes" in text and "did you mean num_classes?" in text
    assert "did you mean crop_size?" in text
    assert "train.lr: '1e-3' is read by YAML as text, not as a number: write 1.0e-3" in text
    assert "both steps and epochs" in text
    assert "eval.flip: is 1; expected true or false" in text


@pytest.mark.parametrize("bad, said", [
    (changed(train={"batch_size": 2.5}), "train.batch_size: is 2.5; expected an integer"),
    (changed(train={"lr": True}), "train.lr: is True; expected a number"),
    (changed(eval={"scales": 1.0}), "eval.scales: is 1.0; expected a list"),
    (changed(train={"steps": None}), "neither steps nor epochs"),
    (changed(model={"name": "eanet_resnet5"}), "did you mean eanet_resnet50?"),
    (changed(model={"layers": [1]}), "model.layers: unknown"),
    (changed(data={"name": "vok"}), "did you mean voc?"),
    ({**GOOD, "data": {"name": "voc"}}, "data.root: missing; voc needs it"),
    ({**GOOD, "task": "segmentatoin"}, "did you mean segmentation?"),
    ({**GOOD, "trian": {}}, "trian: unknown"),
    ({**GOOD, "model": None}, "model: missing"),
    # Judged by the argument's type where the default is null or tells too little.
    (changed(train={"steps": "ten"}), "train.steps: is 'ten'; expected an integer or null"),
    (changed(train={"lr": float("nan")}), "train.lr: is nan; expected a finite number"),
    (changed(train={"lr": None}), "train.lr: is null; expected a number, such as 0.009"),
    (changed(train={"class_weights": 5}), "train.class_weights: is 5; expected a list or null"),
    (changed(train={"class_weights": [1.0, "a"]}), "train.class_weights: an entry is 'a'; expected a number"),
    (changed(train={"init_weights": 5}), "train.init_weights: is 5; expected text or null"),
    (changed(eval={"fit": [9, 2.5]}), "eval.fit: an entry is 2.5; expected an integer"),
    (changed(model={"num_classes": None}), "model.num_classes: is null; expected an integer"),
    (changed(data={"root": 5}), "data.root: is 5; expected text"),
    (changed(data={"scales": [float("inf")]}), "data.scales: an entry is inf; expected a finite number"),
    ("a: [", "not valid YAML in line"),
    ("just text", "expected a mapping"),
])
def test_single_mistakes(tmp_path, bad, said):
    assert any(said in line for line in problems_of(tmp_path, bad))


def test_overrides(tmp_path):
    path = write(tmp_path, GOOD)
    loaded = config.load(path, ["train.lr=0.5", "train.epochs=2", "model.num_classes=9"])
    assert loaded["train"] == {"lr": 0.5, "epochs": 2} and loaded["model"]["num_classes"] == 9
    assert any("expected block.key=value" in line for line in problems_of(tmp_path, GOOD, ["lr"]))
    assert any("did you mean lr_power?" in line for line in problems_of(tmp_path, GOOD, ["train.lr_powr=1"]))


def test_missing_file_names_the_configs_that_exist():
    with pytest.raises(ConfigError, match="no such config.*segmentation_eanet_tiny_shapes"):
        config.load("configs/segmentation_eanet_tiny_shape.yaml")
