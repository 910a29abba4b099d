"""The console script `jea COMMAND ...`: which module runs which command."""
from __future__ import annotations

import importlib
import sys

from jea.errors import quoted

# command -> (module with a `main(argv)`, what it does). A module is imported when its command runs.
COMMANDS = {
    "train": ("jea.commands.train", "train a model from a config"),
    "test": ("jea.commands.test", "evaluate a model, or run it on your own pictures"),
    "warm": ("jea.commands.warm", "warm CONFIG: compile beforehand what training and testing need"),
    "convert": ("jea.commands.convert", "convert a checkpoint between PyTorch, Jittor and jea"),
    "inspect": ("jea.commands.inspect", "show what a checkpoint holds"),
    "download": ("jea.commands.download", "fetch published weights, check them, and say how to use them"),
    "export": ("jea.commands.export", "write a trained network as an ONNX file"),
    "data": ("jea.commands.data_check", "data check CONFIG: read a data set once and list all that is wrong with it"),
    "info": ("jea.commands.info", "show versions, device, oneDNN, compilers and caches"),
    "bench": ("jea.commands.bench", "measure external attention on this machine"),
    "doctor": ("jea.commands.doctor", "compile and run a kernel, a convolution and a matrix product, and compare them "
               "with numpy"),
}


def main(argv=None) -> int:
    """Run a command; returns the exit status (jea/commands/common/console.py). `python -m jea` is the same."""
    argv = list(sys.argv[1:] if argv is None else argv)
    from jea import __version__
    if not argv or argv[0] in ("-h", "--help"):
        print(f"jea {__version__}: External Attention in Jittor\n\nusage: jea COMMAND ...   (jea COMMAND --help)\n")
        for name, (_, text) in COMMANDS.items():
            print(f"  {name:9}{text}")
        print("\nexample: jea test --input photo.jpg")
        return 0 if argv else 2
    if argv[0] == "--version":
        print(__version__)
        return 0
    if argv[0] not in COMMANDS:
        print(f"jea: unknown command {quoted(argv[0])}; there are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    module, _ = COMMANDS[argv[0]]
    return importlib.import_module(module).main(argv[1:])


if __name__ == "__main__":
    raise SystemExit(main())
