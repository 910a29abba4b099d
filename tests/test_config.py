"""Configs: those of the repository are valid, and mistakes are reported together, with the nearest name."""
import inspect
import os
import subprocess
import sys
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
    (changed(train={"steps": 2.5, "epochs": None}), "train.steps: is 2.5; expected an integer or null"),
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


@pytest.mark.parametrize("annotation, good, bad", [
    ("int | None", [3, None], [2.5, "x", True, [1]]),
    ("Optional[int]", [3, None], [2.5, "x", True]),
    ("typing.Optional[int]", [3, None], [2.5]),
    ("Union[int, str, None]", [3, "x", None], [2.5]),
    ("None | float", [3, 0.5, None], ["x", True]),
    ("'int | None'", [3, None], ["x"]),
    ("bool", [True], [1, None]),
    ("str", ["x"], [None, 2012]),
    ("Path", ["x"], [5]),
    ("Sequence[float]", [[1, 2.5], []], [1.0, None, [True], ["a"]]),
    ("list[int] | None", [[1], None], [[2.5], 1]),
    ("tuple[float, float] | None", [[1.0, 2.0], None], [["a", "b"], "x"]),
    ("float | Sequence[float]", [1, [1.0]], ["x", ["x"]]),
    ("dict[str, int]", [5, "anything", None], []),
    ("Literal['a', 'b']", ["a", 5], []),
    ("not a type!", [5], []),
])
def test_types_as_they_are_written(annotation, good, bad):
    """Annotations are never evaluated: Python 3.9 cannot evaluate int | None."""
    assert [value for value in good if config._type_problem(value, annotation)] == []
    assert [value for value in bad if not config._type_problem(value, annotation)] == []


def test_every_parameter_of_every_constructor_has_a_type_that_is_checked():
    """Save for those that are known to take something else than YAML's plain values."""
    from jea.data import DATASETS
    from jea.models import MODELS, model_arguments
    from jea.models.signatures import text_of
    from jea.tasks.options import TASKS, task_options
    owners = {**{name: model_arguments(name) for name in MODELS},
              **{name: cls.arguments() for name, cls in DATASETS.items()},
              **{f"{task} {part.__name__}": dict(inspect.signature(part).parameters)
                 for task in TASKS for part in task_options(task)[:2]}}
    unchecked = {(name, key) for name, parameters in owners.items() for key, parameter in parameters.items()
                 if not any(config._type_problem(value, text_of(parameter.annotation), parameter.default)
                            for value in ("x", 2.5, True, [True], 7))}
    assert {key for _, key in unchecked} <= {"discriminator_width", "generator_attention"}


def test_signatures_read_from_the_source_are_those_of_the_classes():
    from jea import models
    from jea.models.signatures import text_of
    for name in models.MODELS:
        cls, fixed = models._entry(name)
        real = {key: p for key, p in inspect.signature(cls).parameters.items() if key not in fixed}
        read = models.model_arguments(name)
        assert list(read) == list(real), name
        for key, parameter in real.items():
            assert read[key].default == parameter.default, (name, key)
            assert read[key].annotation == parameter.annotation or text_of(parameter.annotation) == "", (name, key)


def test_null_steps_keep_the_epochs(tmp_path):
    path = write(tmp_path, {**GOOD, "train": {"epochs": 3}})
    assert config.load(path, ["train.steps=null"])["train"] == {"epochs": 3, "steps": None}
    assert config.load(path, ["train.steps=5"])["train"] == {"steps": 5}


@pytest.mark.parametrize("root", ["/mnt/disk #2", "2012", "null", "a: b", "[x", "1e3", "true"])
def test_a_path_is_not_yaml(tmp_path, root):
    assert config.load(write(tmp_path, GOOD), data_root=root)["data"]["root"] == root


def test_the_home_folder_in_a_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    loaded = [config.load(write(tmp_path, GOOD), data_root=root)["data"]["root"] for root in ("~", "~/VOC", "a~")]
    assert loaded == [str(tmp_path), str(tmp_path / "VOC"), "a~"]


OWN = """
from jea._jittor import nn
class Net(nn.Module):
    def __init__(self, *, num_classes: int = 3, width: int | None = None, root_of=None):
        pass
class Open(nn.Module):
    def __init__(self, **keywords):
        pass
class Child(Net):
    pass
"""


def test_a_model_of_ones_own_is_read_and_not_imported(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "own_networks.py").write_text(OWN)
    (tmp_path / "own_data.py").write_text("from jea.data import Dataset\nclass Mine(Dataset):\n"
                                          "    def __init__(self, root: str, *, split: str = 'train', size: int = 3):\n"
                                          "        pass\n")
    own = {"task": "segmentation", "model": {"name": "own_networks:Child", "width": 5},
           "data": {"name": "own_data:Mine", "root": "x"}, "train": {"steps": 1}}
    assert config.load(write(tmp_path, own))["model"] == {"name": "own_networks:Child", "width": 5}
    assert "own_networks" not in sys.modules
    own["model"].update(width=2.5, widht=1)
    own["data"]["sise"] = 3
    lines = problems_of(tmp_path, own)
    assert [line.partition("x.yaml: ")[2].split(";")[0] for line in lines] == [
        "model.widht: unknown", "model.width: is 2.5", "data.sise: unknown"]
    own.update(model={"name": "own_networks:Open", "anything": 1}, data={"name": "own_data:Mein", "root": "x"})
    assert len(lines := problems_of(tmp_path, own)) == 1 and "has no class 'Mein' (did you mean Mine?)" in lines[0]
    own["data"]["name"] = "no_such_module:Mine"
    assert "there is no module no_such_module in the config's folder" in problems_of(tmp_path, own)[0]


LINES = {
    "config": "import jea.config; jea.config.load('configs/segmentation_eanet_tiny_shapes.yaml')",
    "every config": "import glob, jea.config; [jea.config.load(path) for path in glob.glob('configs/*.yaml')]",
    "typo": "from jea.commands import cli; assert cli.main(['train', 'train.lrr=1']) == 2",
    "typo in test": "from jea.commands import cli; assert cli.main(['test', 'model.nam=1']) == 2",
    "no such config": "from jea.commands import cli; assert cli.main(['train', '--config', 'nothing']) == 2",
    "dry run, no such data": "from jea.commands import cli; "
                             "assert cli.main(['train', '--dry-run', '--data', '/nowhere', 'data.name=voc']) == 2",
    "dry run, no such weights": "from jea.commands import cli; "
                                "assert cli.main(['test', '--dry-run', '--weights', '/nowhere.pth']) == 2",
    "inspect": "from jea.commands import cli; assert cli.main(['inspect', 'weights/eamlp_tiny_shapes.npz']) == 0",
    "info": "from jea.commands import cli; assert cli.main(['info']) == 0",
    "data check": "from jea.commands import cli; assert cli.main(['data', 'check', "
                  "'classification_eamlp_tiny_shapes', '--num-workers', '0', '--split', 'val']) == 0",
    "help": "from jea.commands import cli; assert cli.main(['--help']) == 0",
    **{f"help of {name}": "from jea.commands import cli\n"
                          f"try: cli.main([{name!r}, '--help'])\nexcept SystemExit as end: assert not end.code"
       for name in ("train", "test", "convert", "inspect", "data", "info", "doctor", "bench")},
}


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
def test_what_does_not_import_jittor(line, demo_home):
    code = f"{line}\nimport sys; assert 'jittor' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=CONFIGS.parent, capture_output=True, text=True,
                          env=dict(os.environ, JEA_HOME=str(demo_home)))
    assert done.returncode == 0, done.stdout + done.stderr
