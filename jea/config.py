"""YAML -> checked blocks. Every mistake is reported at once, with the nearest valid name.

A config has the keys task, model, data, train and eval. The `name` of a block is looked up in one literal dict
(MODELS, DATASETS); every other key is a keyword of that constructor. train and eval are the fields of the task's
Train and Eval dataclasses. Nothing is inherited, interpolated or taken from the environment.
"""
from __future__ import annotations

import collections.abc
import dataclasses
import inspect
import math
import re
import types
import typing
from pathlib import Path

import yaml

from jea.errors import ConfigError, nearest
from jea.files import shared_folder
from jea.reading import parse_yaml, read_yaml

BLOCKS = ("model", "data", "train", "eval")


def load(path, overrides=()) -> dict:
    """Read a config and check it.

    Args:
        path: YAML file.
        overrides: "block.key=value" strings; the value is YAML.
    Returns:
        {"task": str, "model": dict, "data": dict, "train": dict, "eval": dict}, as written, overrides applied.
    Raises:
        ConfigError: all mistakes together.
    """
    path = Path(path)
    if not path.exists():
        there = sorted(p.stem for p in shared_folder("configs").glob("*.yaml"))
        raise ConfigError(f"{path}: no such config{nearest(path.stem, there)}; there are: {', '.join(there)}")
    config = read_yaml(path, what="config")
    if not isinstance(config, dict):
        raise ConfigError(f"{path}: holds {type(config).__name__}; expected a mapping with task, {', '.join(BLOCKS)}")
    problems = _apply(config, overrides)
    problems += check(config)
    if problems:
        raise ConfigError("\n".join(f"{path}: {problem}" for problem in problems))
    for block in ("train", "eval"):
        config.setdefault(block, {})
    return config


def _apply(config: dict, overrides) -> list:
    problems = []
    for override in overrides:
        key, separator, text = override.partition("=")
        parts = key.split(".")
        if not separator or not all(parts) or len(parts) > 2:
            problems.append(f"override {override!r}: expected block.key=value, such as train.lr=0.01")
            continue
        try:
            value = parse_yaml(text, f"override {override!r}")
        except ConfigError as error:
            problems.append(str(error))
            continue
        target = config
        if len(parts) == 2:
            target = config.setdefault(parts[0], {})
            if not isinstance(target, dict):
                problems.append(f"override {override!r}: {parts[0]} is not a block")
                continue
        target[parts[-1]] = value
        # "epochs" and "steps" exclude each other: the one given on the command line replaces the config's.
        if parts[0] == "train" and parts[-1] in ("epochs", "steps"):
            target.pop({"epochs": "steps", "steps": "epochs"}[parts[-1]], None)
    return problems


def check(config: dict) -> list:
    """The mistakes of a config, as strings; [] when there are none."""
    from jea.data import DATASETS
    from jea.tasks import TASKS

    known = ("task", *BLOCKS)
    problems = [f"{key}: unknown; a config has {', '.join(known)}{nearest(key, known)}"
                for key in config if key not in known]
    task_name = config.get("task")
    if not isinstance(task_name, str) or task_name not in TASKS:
        said = "missing" if task_name is None else f"unknown task {task_name!r}"
        return problems + [f"task: {said}; there are {', '.join(TASKS)}{nearest(task_name, TASKS)}"]
    from jea.tasks.options import task_options
    train_options, eval_options, datasets = task_options(task_name)
    blocks = {}
    for block in BLOCKS:
        blocks[block] = config.get(block, {} if block in ("train", "eval") else None)
        if not isinstance(blocks[block], dict):
            said = "missing" if blocks[block] is None else f"is {blocks[block]!r}"
            problems.append(f"{block}: {said}; expected a block of key: value lines")
            blocks[block] = None
    if blocks["model"] is not None:
        problems += _check_named("model", blocks["model"], _model_names(), _model_arguments)
    if blocks["data"] is not None:
        problems += _check_named("data", blocks["data"], datasets or list(DATASETS), _dataset_arguments)
    for block, schema in (("train", train_options), ("eval", eval_options)):
        if blocks[block] is not None:
            problems += _check_values(block, blocks[block], _arguments(schema), f"{task_name} {block}")
    train = blocks["train"]
    if train and train.get("steps") is not None and train.get("epochs") is not None:
        problems.append("train: both steps and epochs are given; expected exactly one")
    if train and train.get("steps") is None and train.get("epochs") is None:
        problems.append("train: neither steps nor epochs is given; expected exactly one")
    return problems


def _model_names():
    from jea.models import list_models
    return list_models()


def _model_arguments(name: str) -> dict:
    from jea.models import model_arguments
    return model_arguments(name)


def _dataset_arguments(name: str) -> dict:
    from jea.data import DATASETS
    return DATASETS[name].arguments()


def _arguments(cls) -> dict:
    """The keywords that a class takes: name -> inspect.Parameter, its annotation resolved."""
    hints = typing.get_type_hints(cls if dataclasses.is_dataclass(cls) else cls.__init__)
    return {key: p.replace(annotation=hints.get(key, p.empty)) for key, p in inspect.signature(cls).parameters.items()}


def _check_named(block: str, values: dict, names, arguments_of) -> list:
    name = values.get("name")
    if not isinstance(name, str) or name not in names:
        said = "missing" if name is None else f"unknown {name!r}"
        return [f"{block}.name: {said}; there are {', '.join(names)}{nearest(name, names)}"]
    allowed = arguments_of(name)
    problems = _check_values(block, {k: v for k, v in values.items() if k != "name"}, allowed, name)
    for key, parameter in allowed.items():
        if parameter.default is inspect.Parameter.empty and key not in values:
            problems.append(f"{block}.{key}: missing; {name} needs it")
    return problems


def _check_values(block: str, values: dict, allowed: dict, owner: str) -> list:
    problems = []
    for key, value in values.items():
        if key not in allowed:
            problems.append(f"{block}.{key}: unknown; {owner} takes {', '.join(allowed)}{nearest(key, allowed)}")
            continue
        problem = _type_problem(value, allowed[key].annotation, allowed[key].default)
        if problem:
            problems.append(f"{block}.{key}: {problem}")
    return problems


_UNIONS = (typing.Union, getattr(types, "UnionType", typing.Union))  # Python 3.9 has no X | Y
_KINDS = {bool: (bool, "true or false"), int: (int, "an integer"), float: ((int, float), "a number"),
          str: (str, "text"), Path: (str, "text"), collections.abc.Sequence: ((list, tuple), "a list")}


def _type_problem(value, wanted, default=inspect.Parameter.empty):
    """What is wrong with a value, judged by the argument's type, or by its default where it has none written down."""
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value):
        mantissa, exponent = re.split("[eE]", value)
        fixed = f"{mantissa if '.' in mantissa else mantissa + '.0'}e{exponent if exponent[0] in '+-' else '+' + exponent}"
        return f"{value!r} is read by YAML as text, not as a number: write {fixed}"
    if isinstance(value, float) and not math.isfinite(value):
        return f"is {value}; expected a finite number"
    if wanted is inspect.Parameter.empty:
        wanted = typing.Any if default is None or default is wanted else type(default)
    choices = typing.get_args(wanted) if typing.get_origin(wanted) in _UNIONS else (wanted,)
    optional = type(None) in choices
    kinds = [typing.get_origin(choice) or choice for choice in choices if choice is not type(None)]
    kinds = [collections.abc.Sequence if kind in (list, tuple) else kind for kind in kinds]
    if value is None and optional or any(kind not in _KINDS for kind in kinds):
        return None
    if not any(isinstance(value, _KINDS[kind][0]) and (kind is bool or not isinstance(value, bool)) for kind in kinds):
        example = "" if default is None or default is inspect.Parameter.empty else f", such as {_as_yaml(default)}"
        said = " or ".join(dict.fromkeys(_KINDS[kind][1] for kind in kinds)) + (" or null" if optional else "")
        return f"is {'null' if value is None else repr(value)}; expected {said}{example}"
    if isinstance(value, (list, tuple)):
        kinds = [kind for choice in choices for kind in typing.get_args(choice)]
        entry_type = kinds[0] if kinds else inspect.Parameter.empty
        for entry in value:
            problem = _type_problem(entry, entry_type)
            if problem:
                return f"an entry {problem}"
    return None


def _as_yaml(value) -> str:
    return yaml.safe_dump(list(value) if isinstance(value, tuple) else value, default_flow_style=True).split("\n")[0]
