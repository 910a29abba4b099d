"""The arguments that commands share, and the config that they name."""
from __future__ import annotations

import argparse

DEFAULT_CONFIG = "segmentation_eanet_tiny_shapes"


def run_parser(command: str, description: str, example: str) -> argparse.ArgumentParser:
    """The parser of a command that runs a model: config, data set, device, weights."""
    parser = argparse.ArgumentParser(prog=f"jea {command}", description=description, epilog=example)
    parser.add_argument("--config", default=DEFAULT_CONFIG, help="YAML file, or its name in configs/ (default: the demo)")
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
