"""What commands that run a model share: arguments, config, device, Jittor and weights; what is said and printed."""
from __future__ import annotations

import argparse
import os
import sys

from jea import environment
from jea.environment import mpi
from jea.errors import CheckpointError, DataError

DEFAULT_CONFIG = "segmentation_eanet_tiny_shapes"


# -- arguments --------------------------------------------------------------------------------------------------------

def run_parser(command: str, description: str, example: str) -> argparse.ArgumentParser:
    """The parser of a command that runs a model: config, data set, device, weights."""
    parser = argparse.ArgumentParser(prog=f"jea {command}", description=description, epilog=example)
    parser.add_argument("--config", default=DEFAULT_CONFIG, help="YAML file, or its name in configs/ (default: the "
                                                                 "demo)")
    parser.add_argument("--data", metavar="DIR", help="root of the data set (data.root)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--tf32", action="store_true", help="CUDA: let convolutions round to TF32 (3 digits)")
    parser.add_argument("--deterministic", action="store_true",
                        help="CUDA: choose cuDNN's algorithms by rule, not by trial")
    parser.add_argument("--no-ema", action="store_true",
                        help="of weights that have averaged ones too, load the raw ones")
    parser.add_argument("--no-strict", action="store_true", help="load what fits of the weights, and list the rest")
    parser.add_argument("--dry-run", action="store_true", help="check everything but the data, then stop")
    parser.add_argument("overrides", nargs="*", metavar="block.key=value", help="change the config: train.lr=0.01")
    return parser


def positive(text: str) -> int:
    """A type of argument: an integer of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected 1 or more")
    return number


def load_config(arguments) -> tuple:
    """(checked config, name of its file without .yaml) of --config, --data and the overrides. Needs no Jittor."""
    from jea import config
    from jea.files import find_config
    path = find_config(arguments.config)
    return config.load(path, arguments.overrides, data_root=getattr(arguments, "data", None)), path.stem


# -- before Jittor is imported ----------------------------------------------------------------------------------------

def choose_device(arguments) -> str:
    """"cpu" or "cuda" for --device; --tf32 is put into the environment, which CUDA's libraries read when they load."""
    device = environment.choose_device(arguments.device)
    if arguments.tf32:
        environment.allow_tf32()
    return device


def check_paths(arguments, config: dict, weights) -> None:
    """Refuse paths of the command line that are wrong, which takes no Jittor: DataError or CheckpointError.

    A dry run looks at what is there; else what is missing is enough, since the files are read in a moment anyway.
    """
    from jea.checkpoint import outline
    from jea.data import dataset_class
    if weights and not os.path.exists(weights):
        raise CheckpointError(weights, "no such file; check the path")
    if weights and arguments.dry_run and not os.path.isdir(weights):
        outline(weights)
    root = config["data"].get("root")
    if arguments.data and (arguments.dry_run or not os.path.exists(root)):
        dataset_class(config["data"]["name"])(**{key: value for key, value in config["data"].items() if key != "name"})


# -- Jittor -----------------------------------------------------------------------------------------------------------

def start(arguments, device: str) -> str:
    """Import Jittor for a device; returns "cpu (reason)"."""
    from jea._jittor import jt
    jt.flags.use_cuda = int(device == "cuda")
    if device == "cuda" and arguments.deterministic:
        from jea.ops.convolution import cudnn
        jt.cudnn.set_algorithm_cache_size(0)  # cuDNN's first choice by rule instead of the fastest of this run
        cudnn.choose_by_rule()
    from jea import ranks
    if ranks.size() > 1:
        say("; ".join(f"rank {number}: {place}" for number, place in enumerate(ranks.places())))
    return f"{device} ({environment.prepare().device_reason})" if arguments.device == "auto" else device


def weights_state(task, path) -> str:
    """The files of a checkpoint, in words."""
    return ", ".join(readable(file) for _, file in task.weight_files(path))


def readable(path) -> str:
    """"eanet.pth (torch-zip, 660 tensors)"; CheckpointError unless it is there and all of its tensors are."""
    from jea.checkpoint import outline
    checkpoint = outline(path)
    return f"{path} ({checkpoint.format}, {len(checkpoint.tensors)} tensors)"


# -- words ------------------------------------------------------------------------------------------------------------

def say(text: str) -> None:
    """A line on stderr, of the first rank alone."""
    if mpi.rank() == 0:
        print(f"jea: {text}", file=sys.stderr)


def describe(config: dict, task) -> str:
    """Task, model and its size."""
    from jea.checkpoint.keymap import BUFFERS
    parameters = sum(var.numel() for module in task.modules.values() for name, var in module.state_dict().items()
                     if not name.endswith(BUFFERS))
    return f"{config['task']}, {config['model']['name']}, {parameters:,} parameters"


def data_state(task) -> str:
    """How much there is of the data set, or what is wrong with it."""
    try:
        dataset = task.dataset()
        return f"{len(dataset)} {dataset.what} in {dataset.root}"
    except DataError as error:
        return str(error)


def print_result(result: dict) -> None:
    """A task's result as text on stdout."""
    for name, value in result.items():
        if isinstance(value, dict):
            width = max(map(len, value), default=0)
            print(f"{name} per class:")
            for key, number in value.items():
                print(f"  {key:{width}}  {number:.4f}")
        elif isinstance(value, list):
            print(f"{name.replace('_', ' ')}:")
            for entry in value:
                print(f"  {_entry_text(entry)}")
        else:
            print(f"{name}: {value:.4f}" if isinstance(value, float) else f"{name}: {value}")


def _entry_text(entry: dict | str) -> str:
    """{"input": "a.jpg", "classes": {"cat": 0.9}} -> "a.jpg: cat 90.0%"; texts, then numbers, then shares."""
    if isinstance(entry, str):
        return entry
    texts = [value for value in entry.values() if isinstance(value, str)]
    numbers = [f"{key} {value:.1%}" for key, value in entry.items() if isinstance(value, float)]
    shares = [(key, ", ".join(f"{name} {share:.1%}" for name, share in value.items())) for key, value in entry.items()
              if isinstance(value, dict) and value]
    # The only dict of an entry speaks for itself; beside numbers it needs its name.
    shares = [f"{key.replace('_', ' ')} {text}" if numbers else text for key, text in shares]
    return ": ".join(filter(None, (" -> ".join(texts), "; ".join(numbers + shares))))
