"""What messages show of values that others have chosen: enough to know them, never a megabyte."""
import inspect
import time

import numpy as np
import pytest
import yaml

from jea import config
from jea.checkpoint import CheckpointError, load_weights, read
from jea.checkpoint.loading import match, write
from jea.data import DATASETS, dataset_class
from jea.errors import ConfigError, UserError, nearest, quoted, shortened
from jea.models import create_model, list_models, model_arguments
from jea.named import find_class
from jea.tasks import TASKS, task_class
from jea.tasks.options import task_options

HUGE = "x" * 1_000_000
LIMIT = 6000  # characters of a message: a path has up to 4,096, a list of all models or options about 2,000


@pytest.mark.parametrize("value", ["a", 1, -2.5, None, True, [1, "b"], (1, 2), {"k": [1]}, {"k", }, b"x", "ä\n", [],
                                   {}, [1.0] * 16, 10 ** 40], ids=repr)
def test_short_values_are_shown_as_they_are(value):
    assert quoted(value) == repr(value)


@pytest.mark.parametrize("value", [HUGE, HUGE.encode(), [0] * 1_000_000, [HUGE] * 9, dict.fromkeys(range(1_000_000)),
                                   {HUGE: HUGE}, [[[["a"] * 99] * 99] * 99] * 99, 10 ** 100_000,
                                   set(range(100_000))], ids=lambda value: type(value).__name__)
def test_long_values_are_cut_and_cost_little(value):
    started = time.perf_counter()
    assert 20 < len(quoted(value)) <= 100 and len(quoted(value, 400)) <= 400
    assert time.perf_counter() - started < 1
    if isinstance(value, str):
        assert quoted(value).startswith("'xxx") and quoted(value).endswith("xxx'")


def test_shortened_keeps_both_ends():
    assert shortened("abc") == "abc" and shortened("a" * 100) == "a" * 100
    assert shortened("/data/" + HUGE + "/file.png").startswith("/data/xx") and len(shortened(HUGE)) == 100
    assert shortened("/data/" + HUGE + "/file.png").endswith("/file.png") and shortened([1, 2]) == "[1, 2]"


def test_the_nearest_name_of_a_huge_word():
    started = time.perf_counter()
    assert nearest(HUGE, ["eanet", "eamlp"]) == "" and nearest("eanett", ["eanet", "eamlp"]) == " (did you mean eanet?)"
    assert time.perf_counter() - started < 0.5


# -- configs ----------------------------------------------------------------------------------------------------------

BAD = [HUGE, [HUGE], [[HUGE]], {HUGE: 1}, list(range(1000))]


def message(function, *arguments, **options):
    with pytest.raises(UserError) as caught:
        function(*arguments, **options)
    return str(caught.value)


def test_every_option_of_every_block_with_huge_values():
    """One key at a time in a sound config: what a constructor says is bounded too where the type is right."""
    names = {"model": list_models(), "data": list(DATASETS)}
    for block, allowed_of in (("model", model_arguments), ("data", lambda n: dataset_class(n).arguments())):
        for name in names[block]:
            for key, parameter in allowed_of(name).items():
                for value in BAD:
                    found = config.check_values(block, {key: value}, allowed_of(name), name)
                    assert all(len(problem) < LIMIT for problem in found)
                    if isinstance(value, str) and "str" in str(parameter.annotation):
                        assert found, (name, key)
    for name in TASKS:
        train, evaluation, _ = task_options(name)
        for block, options in (("train", train), ("eval", evaluation)):
            parameters = inspect.signature(options).parameters
            for key in parameters:
                for value in BAD:
                    assert all(len(problem) < LIMIT for problem in
                               config.check_values(block, {key: value}, parameters, name)), (name, key)
                try:
                    options(**{key: value})
                except UserError as error:
                    assert len(str(error)) < LIMIT, (name, key)
                except (TypeError, ValueError):
                    pass  # a value of another type, which config.check_values told


@pytest.mark.parametrize("change", [
    {HUGE[:100_000]: 1}, {"task": HUGE[:100_000]}, {"model": HUGE[:100_000]}, {"model": {"name": HUGE[:100_000]}},
    {"model": {"name": "m:" + HUGE[:100_000]}}, {"data": {"name": "m:" + HUGE[:100_000]}},
    {"task": HUGE[:100_000] + ":T"}, {"data": {"name": "voc", "root": HUGE[:100_000]}},
    {"train": {HUGE[:100_000]: 1, "steps": 1}}, {"train": {"lr": "1e" + "9" * 100_000, "steps": 1}},
    {"train": {f"key{k}": "y" * 20 for k in range(3000)}}, {"eval": ["a" * 10] * 8000},
], ids=lambda change: next(iter(change))[:9])
def test_configs_with_huge_values(tmp_path, change):
    sound = {"task": "segmentation", "model": {"name": "eanet_tiny"}, "data": {"name": "voc", "root": "somewhere"},
             "train": {"steps": 1}}
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump({**sound, **change}))
    said = message(config.load, path)
    assert len(said) < 50 * LIMIT and max(map(len, said.splitlines())) < LIMIT and len(said.splitlines()) < 50


def test_overrides_and_paths_that_are_huge(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("task: segmentation\nmodel: {name: eanet_tiny}\ndata: {name: voc, root: x}\ntrain: {steps: 1}\n")
    for override in (HUGE, f"{HUGE}=1", f"train.{HUGE}=1", f"{HUGE}.a=1", f"train.lr={HUGE}", f"train.lr=[{HUGE}",
                     f"task.{HUGE}=1"):
        assert max(map(len, message(config.load, path, [override]).splitlines())) < LIMIT, override[:20]
    assert len(message(config.load, path, data_root=HUGE)) < LIMIT
    assert len(message(config.load, tmp_path / ("n" * 200 + ".yaml"))) < LIMIT


def test_what_is_looked_up_by_a_huge_name():
    for function in (create_model, model_arguments, dataset_class, task_class):
        assert len(message(function, HUGE)) < LIMIT, function
    for name in (f"{HUGE}:A", f"os:{HUGE}"):
        assert len(message(find_class, name, "k")) < LIMIT
    assert len(message(create_model, "eanet_tiny", **{HUGE: 1})) < LIMIT
    for name, options in (("eanet_tiny", {"layers": [1] * 100_000}), ("eamlp_tiny", {"attention": HUGE}),
                          ("eamlp_tiny", {"tokens": HUGE}), ("ea_pct_cls", {"position": HUGE}),
                          ("ea_sagan_cifar10", {"attention": HUGE}), ("ea_fasterrcnn_tiny", {"style": HUGE}),
                          ("ea_fasterrcnn_tiny", {"norm": HUGE}), ("ea_pct_cls", {"samples": [1] * 100_000})):
        if set(options) <= set(model_arguments(name)):
            assert len(message(create_model, name, **options)) < LIMIT, options
    for name, cls in ((name, dataset_class(name)) for name in DATASETS):
        for key in set(cls.arguments()) & {"split", "labels", "resize"}:
            root = cls.arguments().get("root")
            needed = {"root": "nowhere"} if root is not None and root.default is root.empty else {}
            try:
                cls(**{**needed, key: HUGE})
            except OSError:  # a folder of that name: the system says that it is too long, and `jea` shows little of it
                continue
            except UserError as error:
                assert len(str(error)) < LIMIT, (name, key)
            else:
                raise AssertionError((name, key))


# -- checkpoints ------------------------------------------------------------------------------------------------------

def test_checkpoints_with_huge_names(tmp_path):
    long = HUGE[:50_000]
    one = {long: np.zeros(2, np.float32), "b." + long: np.zeros(2, np.float32)}
    for suffix in (".safetensors", ".pth", ".npz"):
        path = tmp_path / f"a{suffix}"
        write(path, one)
        found = read(path)
        assert all(len(note) < LIMIT for note in found.notes)
        report = match((), {"w": ((2,), "float32")}, found)[1]
        assert len(str(report)) < LIMIT, suffix
    path = tmp_path / "w.pth"
    write(path, {"a": np.zeros(2, np.float32)}, wrapper=HUGE)  # names of a .pth are not bounded
    found = read(path)
    assert all(len(note) < LIMIT for note in found.notes)

    class Model:
        key_maps = ()

        def state_dict(self):
            return {"a": np.zeros(3, np.float32)}
    with pytest.raises(CheckpointError) as caught:
        load_weights(Model(), path)
    assert len(str(caught.value)) < LIMIT


def test_config_errors_stay_errors_of_values():
    assert issubclass(ConfigError, ValueError)
