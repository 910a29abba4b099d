"""YAML -> checked blocks. Every mistake is reported at once, with the nearest valid name.

A config has the keys task, model, data, train and eval. The `name` of a block is looked up in one literal dict
(MODELS, DATASETS) or is "module:Class", a class of your own; every other key is a keyword of that constructor. train
and eval are the fields of the task's Train and Eval dataclasses. Nothing is inherited, interpolated or taken from the
environment.
"""
from __future__ import annotations

import ast
import inspect
import math
import os
import re
import sys
from pathlib import Path

import yaml

from jea.data import DATASETS, dataset_class
from jea.errors import ConfigError, nearest, quoted, shortened
from jea.files import shared_folder
from jea.models import list_models, model_arguments
from jea.models.signatures import text_of
from jea.reading import parse_yaml, read_yaml
from jea.tasks import TASKS
from jea.tasks.options import task_options

BLOCKS = ("model", "data", "train", "eval")
_LONGEST_TEXT = 4096  # characters of a value: as long as a path can be
_MOST_TOLD = 40  # mistakes in one message


def load(path, overrides=(), *, data_root=None) -> dict:
    """Read a config and check it. Jittor is not imported, unless a task of your own ("module:Class") does it.

    Args:
        path: YAML file. Modules of your own that it names are looked for in its folder first.
        overrides: "block.key=value" strings; the value is YAML.
        data_root: a path for data.root, taken as it is; "~" at its beginning is the home folder.
    Returns:
        {"task": str, "model": dict, "data": dict, "train": dict, "eval": dict}, as written, overrides applied.
    Raises:
        ConfigError: all mistakes together.
    """
    path = Path(path)
    config = _read(path)
    problems = apply(config, overrides)
    if data_root is not None:
        if isinstance(config.setdefault("data", {}), dict):
            config["data"]["root"] = os.path.expanduser(data_root)
    _find_own_modules(path, config)
    problems += check(config)
    if problems:
        more = len(problems) - _MOST_TOLD
        told = problems[:_MOST_TOLD] + [f"and {more} mistakes more"] * (more > 0)
        raise ConfigError("\n".join(f"{shortened(path, 400)}: {problem}" for problem in told))
    for block in ("train", "eval"):
        config.setdefault(block, {})
    return config


def _read(path: Path) -> dict:
    if not path.exists():
        there = sorted(p.stem for p in shared_folder("configs").glob("*.yaml"))
        raise ConfigError(f"{shortened(path, 400)}: no such config{nearest(path.stem, there)}; there are: "
                          f"{', '.join(there)}")
    config = read_yaml(path, what="config")
    if not isinstance(config, dict):
        raise ConfigError(f"{path}: holds {type(config).__name__}; expected a mapping with task, {', '.join(BLOCKS)}")
    return config


def apply(config: dict, overrides) -> list:
    """Change a config by "block.key=value" texts; returns what is wrong with them, as strings."""
    problems = []
    for override in overrides:
        key, separator, text = override.partition("=")
        parts = key.split(".")
        if not separator or not all(parts) or len(parts) > 2:
            problems.append(f"override {quoted(override)}: expected block.key=value, such as train.lr=0.01")
            continue
        try:
            value = parse_yaml(text, f"override {quoted(override)}")
        except ConfigError as error:
            problems.append(str(error))
            continue
        target = config
        if len(parts) == 2:
            target = config.setdefault(parts[0], {})
            if not isinstance(target, dict):
                problems.append(f"override {quoted(override)}: {shortened(parts[0])} is not a block")
                continue
        target[parts[-1]] = value
        # "epochs" and "steps" exclude each other: the one given on the command line replaces the config's.
        if parts[0] == "train" and parts[-1] in ("epochs", "steps") and value is not None:
            target.pop({"epochs": "steps", "steps": "epochs"}[parts[-1]], None)
    return problems


def _find_own_modules(path: Path, config: dict) -> None:
    """Put the config's folder on Python's path if it names a class of the user's own, "module:Class"."""
    blocks = [config.get(block) for block in ("model", "data")]
    names = [config.get("task"), *(block.get("name") for block in blocks if isinstance(block, dict))]
    folder = str(path.absolute().parent)
    if any(isinstance(name, str) and ":" in name for name in names) and folder not in sys.path:
        sys.path.insert(0, folder)


def check(config: dict) -> list:
    """The mistakes of a config, as strings; [] when there are none."""
    known = ("task", *BLOCKS)
    problems = [f"{shortened(key)}: unknown; a config has {', '.join(known)}{nearest(key, known)}"
                for key in config if key not in known]
    task = config.get("task")
    if not _is_name(task, TASKS):
        said = "missing" if task is None else f"unknown task {quoted(task)}"
        return problems + [f"task: {said}; there are {', '.join(TASKS)}{nearest(task, TASKS)}"]
    try:
        train_options, eval_options, datasets = task_options(task)
    except ConfigError as error:
        return problems + [str(error)]
    blocks = {}
    for block in BLOCKS:
        blocks[block] = config.get(block, {} if block in ("train", "eval") else None)
        if not isinstance(blocks[block], dict):
            said = "missing" if blocks[block] is None else f"is {quoted(blocks[block])}"
            problems.append(f"{block}: {said}; expected a block of key: value lines")
            blocks[block] = None
    if blocks["model"] is not None:
        problems += _check_named("model", blocks["model"], list_models(), model_arguments)
    if blocks["data"] is not None:
        problems += _check_named("data", blocks["data"], datasets or list(DATASETS),
                                 lambda name: dataset_class(name).arguments())
    for block, schema in (("train", train_options), ("eval", eval_options)):
        if blocks[block] is not None:
            problems += check_values(block, blocks[block], inspect.signature(schema).parameters, f"{task} {block}")
    train = blocks["train"]
    if train and train.get("steps") is not None and train.get("epochs") is not None:
        problems.append("train: both steps and epochs are given; expected exactly one")
    if train and train.get("steps") is None and train.get("epochs") is None:
        problems.append("train: neither steps nor epochs is given; expected exactly one")
    return problems


def _is_name(name, names) -> bool:
    """Whether a task, model or data set is one of jea's names, or looks like a class of the user's own."""
    return isinstance(name, str) and (name in names or ":" in name and len(name) <= _LONGEST_TEXT)


def _check_named(block: str, values: dict, names, arguments_of) -> list:
    name = values.get("name")
    if not _is_name(name, names):
        said = "missing" if name is None else f"unknown {quoted(name)}"
        return [f"{block}.name: {said}; there are {', '.join(names)}{nearest(name, names)}"]
    try:
        allowed = arguments_of(name)
    except ConfigError as error:
        return [str(error)]
    if allowed is None:  # a class of the user's own that takes any keywords
        return []
    problems = check_values(block, {k: v for k, v in values.items() if k != "name"}, allowed, name)
    for key, parameter in allowed.items():
        if parameter.default is inspect.Parameter.empty and key not in values:
            problems.append(f"{block}.{key}: missing; {shortened(name)} needs it")
    return problems


def check_values(block: str, values: dict, allowed: dict, owner: str) -> list:
    """The mistakes in `values`, given the parameters that `owner` takes, as strings; [] when there are none."""
    problems = []
    for key, value in values.items():
        if key not in allowed:
            problems.append(f"{block}.{shortened(key)}: unknown; {shortened(owner)} takes {', '.join(allowed)}"
                            f"{nearest(key, allowed)}")
            continue
        problem = _type_problem(value, text_of(allowed[key].annotation), allowed[key].default)
        if problem:
            problems.append(f"{block}.{key}: {problem}")
    return problems


_KINDS = {"bool": (bool, "true or false"), "int": (int, "an integer"), "float": ((int, float), "a number"),
          "str": (str, "text"), "Path": (str, "text"), "Sequence": ((list, tuple), "a list")}
_LISTS = ("Sequence", "list", "List", "tuple", "Tuple", "Iterable")


def _choices(annotation: str) -> list:
    """What a type allows, as (kind, text of a list's entries): "int | None" -> [("int", ""), ("None", "")].

    None where it is not known, which lets any value pass.
    """
    def of(node) -> list:
        if isinstance(node, ast.Constant) and node.value is None:
            return [("None", "")]
        if isinstance(node, ast.Constant) and isinstance(node.value, str):  # a type in quotation marks
            return of(ast.parse(node.value, mode="eval").body)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            return of(node.left) + of(node.right)
        inner = []
        if isinstance(node, ast.Subscript):
            inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            node = node.value
        name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
        if name == "Optional":
            return [choice for part in inner for choice in of(part)] + [("None", "")]
        if name == "Union":
            return [choice for part in inner for choice in of(part)]
        if name in _LISTS:
            return [("Sequence", ast.unparse(inner[0]) if inner else "")]
        return [("None", "")] if name == "NoneType" else [(name, "")]
    try:
        return of(ast.parse(annotation, mode="eval").body)
    except SyntaxError:
        return []


def _type_problem(value, annotation: str, default=inspect.Parameter.empty):
    """What is wrong with a value, judged by the argument's type, or by its default where it has none written down."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"is {value}; expected a finite number"
    if not annotation and default is not None and default is not inspect.Parameter.empty:
        annotation = type(default).__name__
    if isinstance(value, str) and len(value) > _LONGEST_TEXT:
        return f"is a text of {len(value):,} characters, {quoted(value)}; expected {_LONGEST_TEXT:,} at most"
    choices = _choices(annotation)
    optional = ("None", "") in choices
    kinds = [(kind, entry) for kind, entry in choices if kind != "None"]
    if isinstance(value, str) and not {"str", "Path", "PathLike"} & {kind for kind, _ in kinds} \
            and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value):
        mantissa, exponent = re.split("[eE]", value)
        mantissa += "" if "." in mantissa else ".0"
        exponent = exponent if exponent[0] in "+-" else f"+{exponent}"
        number = f"{shortened(mantissa, 40)}e{shortened(exponent, 40)}"
        return f"{quoted(value)} is read by YAML as text, not as a number: write {number}"
    if value is None and optional or not kinds or any(kind not in _KINDS for kind, _ in kinds):
        return None
    if not any(isinstance(value, _KINDS[kind][0]) and (kind == "bool") == isinstance(value, bool) for kind, _ in kinds):
        example = "" if default is None or default is inspect.Parameter.empty else f", such as {_as_yaml(default)}"
        said = " or ".join(dict.fromkeys(_KINDS[kind][1] for kind, _ in kinds)) + (" or null" if optional else "")
        return f"is {'null' if value is None else quoted(value)}; expected {said}{example}"
    if isinstance(value, (list, tuple)):
        entry_type = next((entry for kind, entry in kinds if kind == "Sequence"), "")
        for entry in value:
            problem = _type_problem(entry, entry_type)
            if problem:
                return f"an entry {problem}"
    return None


def _as_yaml(value) -> str:
    return yaml.safe_dump(list(value) if isinstance(value, tuple) else value, default_flow_style=True).split("\n")[0]
