"""The command line: `jea train | test | convert | inspect | info | doctor ...`. train.py and test.py call the first two."""
from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from jea import __version__, environment
from jea.commands import console
from jea.environment import mpi

DEFAULT_CONFIG = "segmentation_eanet_tiny_shapes"

_COMMANDS = {
    "train": "train a model from a config",
    "test": "evaluate a model, or run it on your own pictures",
    "convert": "convert a checkpoint between PyTorch, Jittor and jea",
    "inspect": "show what a checkpoint holds",
    "data": "data check CONFIG: read a data set once and list all that is wrong with it",
    "info": "show versions, device, oneDNN, compilers and caches",
    "bench": "measure external attention on this machine",
    "doctor": "compile and run a kernel, a convolution and a matrix product, and compare them with numpy",
}


def main(argv=None) -> int:
    """The console script `jea` and `python -m jea`."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(f"jea {__version__}: External Attention in Jittor\n\nusage: jea COMMAND ...   (jea COMMAND --help)\n")
        for name, text in _COMMANDS.items():
            print(f"  {name:9}{text}")
        print("\nexample: jea test --input photo.jpg")
        return 0 if argv else 2
    if argv[0] == "--version":
        print(__version__)
        return 0
    command, rest = argv[0], argv[1:]
    if command == "train":
        return train_main(rest)
    if command == "test":
        return test_main(rest)
    if command == "data":
        return data_main(rest)
    if command == "info":
        from jea.commands.info import main as info_main
        return info_main(rest)
    if command == "bench":
        from jea.commands.bench import main as bench_main
        return bench_main(rest)
    if command == "doctor":
        from jea.commands.doctor import main as doctor_main
        return doctor_main(rest)
    if command in ("convert", "inspect"):
        from jea.commands import checkpoints as cli
        return {"convert": cli.convert_main, "inspect": cli.inspect_main}[command](rest)
    print(f"jea: unknown command {command!r}; there are {', '.join(_COMMANDS)}", file=sys.stderr)
    return 2


def train_main(argv=None) -> int:
    parser = _parser("train", "Train the model of a config. Without arguments: the small demo network on synthetic "
                     "pictures.", "example: python train.py --config configs/segmentation_eanet_resnet101_voc.yaml "
                     "--data VOCdevkit train.batch_size=8")
    parser.add_argument("--out", help="folder for checkpoints, log and curves (default: runs/<config>)")
    parser.add_argument("--resume", action="store_true", help="go on from OUT/last.npz")
    parser.add_argument("--weights", help="start from this checkpoint, whole or backbone only (train.init_weights)")
    parser.add_argument("--stop-after", type=_positive, metavar="STEP", help="save and stop before this step, for time limits")
    arguments = parser.parse_intermixed_args(argv)
    return console.run("train", _train, arguments)


def _train(arguments) -> int:
    config, stem = _load_config(arguments)
    if arguments.weights:
        config["train"]["init_weights"] = arguments.weights
    device = _start(arguments)
    from jea.training.log import CURVES
    from jea.training.loop import train
    from jea.training.state import BEST, LAST
    task = _create_task(config)
    out = Path(arguments.out or Path("runs") / stem)
    _say(f"{_describe(config, task)}; device {device}; output {out}")
    init = config["train"].get("init_weights")
    if arguments.dry_run:
        start = f"on from {_readable(out / LAST)}" if arguments.resume else \
            f"from {_weights_state(task, init)}" if init else "from random weights"
        _say(f"dry run: would train {start}; data: {_data_state(task)}")
        return 0
    try:
        task.dataset(task.eval.split)  # fail now, not at the first evaluation
        result = train(task, out, resume=arguments.resume, stop_after=arguments.stop_after, ema=not arguments.no_ema,
                       strict=not arguments.no_strict)
    finally:
        task.close()
    if mpi.rank():
        return 0
    if result:
        _print_result(result)
        print(f"weights: {out / BEST} (best), {out / LAST} (to resume); curves: {out / CURVES}")
    elif arguments.stop_after:
        _say(f"stopped before the end; {out / LAST} is saved, --resume goes on from it")
    return 0


def test_main(argv=None) -> int:
    parser = _parser("test", "Evaluate the model of a config, or run it on pictures (--input). Without arguments: the "
                     "demo network.", "example: python test.py --config configs/segmentation_eanet_resnet101_voc.yaml "
                     "--weights eanet.pth --data VOCdevkit --split val --multi-scale")
    parser.add_argument("--weights", help="checkpoint: .pth, .safetensors, .npz or .pkl (default: the config's entry in "
                        "weights/index.yaml)")
    parser.add_argument("--split", help="part of the data set (default: eval.split); test writes the VOC submission")
    parser.add_argument("--input", metavar="PATH", help="a picture or a point cloud, or a folder of them")
    parser.add_argument("--out", help="folder for pictures and predictions (default: results/<config>)")
    parser.add_argument("--multi-scale", action="store_true", help="6 scales x mirrored, as for the published results")
    parser.add_argument("--limit", type=_positive, metavar="N", help="only the first N pictures of the split")
    parser.add_argument("--no-fuse", action="store_true", help="run the model as it was trained, BatchNorm not folded")
    parser.add_argument("--json", action="store_true", help="print the results as one JSON object")
    arguments = parser.parse_intermixed_args(argv)
    return console.run("test", _test, arguments)


def _test(arguments) -> int:
    from jea.config import ConfigError
    config, stem = _load_config(arguments)
    weights = arguments.weights or _bundled_weights(stem)
    if weights is None and not arguments.dry_run:
        trained = Path("runs") / stem / "best.npz"
        hint = f"; you trained {trained}" if trained.is_file() else ""
        raise ConfigError(f"{stem}: no weights are bundled for this config: say --weights FILE{hint}")
    device = _start(arguments)
    task = _create_task(config, draw=False)
    if arguments.multi_scale:
        task.multi_scale()
    out = Path(arguments.out or Path("results") / stem)
    _say(f"{_describe(config, task)}; device {device}; weights {weights}; output {out}")
    if arguments.dry_run:
        _say(f"dry run: would test {_weights_state(task, weights) if weights else 'once there are weights'}; "
             f"data: {_data_state(task)}")
        return 0
    _say(task.load(weights, ema=not arguments.no_ema, strict=not arguments.no_strict))
    if not arguments.no_fuse:
        task.fuse()
    from jea import ranks
    from jea.tasks.outputs import predict_files
    from jea.training.log import plain
    from jea.training.state import evaluate
    if arguments.input:
        result = ranks.on_first(lambda: predict_files(task, arguments.input, out))
    else:
        result = evaluate(task, out, split=arguments.split, limit=arguments.limit).values
    if mpi.rank():
        return 0
    if arguments.json:
        print(json.dumps(plain(result)))
    else:
        _print_result(result)
        print(f"output: {out}")
    return 1 if result.get("failed") else 0


def data_main(argv=None) -> int:
    """`jea data check CONFIG`: 0 when nothing is wrong, 1 when something is, 2 when it cannot be checked."""
    parser = argparse.ArgumentParser(
        prog="jea data", description="Read the data set of a config once, whole, and list all that is wrong with it: "
        "files that are missing, broken or without counterpart, sizes that differ, label values that are no class, "
        "pictures that occur twice, classes that never occur. Shows how often each class occurs.",
        epilog="example: jea data check configs/segmentation_eanet_resnet101_ade20k.yaml --data ADEChallengeData2016")
    parser.add_argument("action", choices=("check",))
    parser.add_argument("config", metavar="CONFIG", help="YAML file, or its name in configs/")
    parser.add_argument("--data", metavar="DIR", help="root of the data set (data.root)")
    parser.add_argument("--split", action="append", metavar="NAME", help="part to read, repeatable (default: data.split "
                        "and eval.split)")
    parser.add_argument("--num-workers", type=int, default=2, metavar="N", help="processes that read (default: 2)")
    parser.add_argument("overrides", nargs="*", metavar="block.key=value", help="change the config: data.num_classes=3")
    return console.run("data", _data_check, parser.parse_intermixed_args(argv))


def _data_check(arguments) -> int:
    config, _ = _load_config(arguments)
    from jea.data import DATASETS
    from jea.data.check import check_splits
    from jea.tasks.options import task_options
    block = dict(config["data"])
    dataset_class = DATASETS[block.pop("name")]
    (_, schema, _), parameters = task_options(config["task"]), dataset_class.arguments()
    splits = arguments.split or [block.get("split", parameters["split"].default),
                                 config["eval"].get("split", getattr(schema, "split", None))]
    report = check_splits(dataset_class, block, list(dict.fromkeys(filter(None, splits))),
                          num_workers=arguments.num_workers)
    print("\n".join(report.lines()))
    return 1 if report.problems else 0


# -- shared -----------------------------------------------------------------------------------------------------

def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected 1 or more")
    return number


def _parser(command: str, description: str, example: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"jea {command}", description=description, epilog=example)
    parser.add_argument("--config", default=DEFAULT_CONFIG, help="YAML file, or its name in configs/ (default: the demo)")
    parser.add_argument("--data", metavar="DIR", help="root of the data set (data.root)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--tf32", action="store_true", help="CUDA: let convolutions round to TF32 (3 digits)")
    parser.add_argument("--deterministic", action="store_true", help="CUDA: choose cuDNN's algorithms by rule, not by trial")
    parser.add_argument("--no-ema", action="store_true", help="of weights that have averaged ones too, take the others")
    parser.add_argument("--no-strict", action="store_true", help="load what fits of the weights, and list the rest")
    parser.add_argument("--dry-run", action="store_true", help="check everything but the data, then stop")
    parser.add_argument("overrides", nargs="*", metavar="block.key=value", help="change the config: train.lr=0.01")
    return parser


def _load_config(arguments) -> tuple:
    from jea import config
    from jea.files import find_config
    path = find_config(arguments.config)
    loaded = config.load(path, arguments.overrides, data_root=arguments.data)
    return loaded, path.stem


def _create_task(config, *, draw: bool = True):
    from jea.config import ConfigError
    from jea.tasks import create_task
    try:
        return create_task(config, draw=draw)
    except ValueError as error:  # a right type with a wrong value, such as output_stride: 7
        raise ConfigError(str(error)) from error


def _weights_state(task, path) -> str:
    return ", ".join(_readable(file) for _, file in task.weight_files(path))


def _readable(path) -> str:
    """"eanet.pth (torch-zip, 660 tensors)"; CheckpointError unless it is there and all of its tensors are."""
    from jea.checkpoint import outline
    checkpoint = outline(path)
    return f"{path} ({checkpoint.format}, {len(checkpoint.tensors)} tensors)"


def _start(arguments) -> str:
    """Choose the device and import Jittor; returns "cpu (reason)"."""
    device = environment.choose_device(arguments.device)
    if arguments.tf32:
        environment.allow_tf32()
    from jea._jittor import jt
    jt.flags.use_cuda = int(device == "cuda")
    if device == "cuda" and arguments.deterministic:
        from jea.ops.convolution import cudnn
        jt.cudnn.set_algorithm_cache_size(0)  # cuDNN's first choice by rule instead of the fastest of this run
        cudnn.choose_by_rule()
    from jea import ranks
    if ranks.size() > 1:
        _say("; ".join(f"rank {number}: {place}" for number, place in enumerate(ranks.places())))
    return f"{device} ({environment.prepare().device_reason})" if arguments.device == "auto" else device


def _say(text: str) -> None:
    if mpi.rank() == 0:
        print(f"jea: {text}", file=sys.stderr)


def _describe(config: dict, task) -> str:
    parameters = sum(var.numel() for module in task.modules.values() for name, var in module.state_dict().items()
                     if not name.endswith(("running_mean", "running_var", "weight_u", "weight_v")))
    return f"{config['task']}, {config['model']['name']}, {parameters:,} parameters"


def _data_state(task) -> str:
    from jea.errors import DataError
    try:
        dataset = task.dataset()
        return f"{len(dataset)} {dataset.what} in {dataset.root}"
    except DataError as error:
        return str(error)


def _bundled_weights(stem: str):
    """The weights of a config in weights/index.yaml, or None."""
    import yaml

    from jea.files import shared_folder
    folder = shared_folder("weights")
    try:
        index = yaml.safe_load((folder / "index.yaml").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    entry = index.get(stem)
    return str(folder / entry["file"]) if entry and (folder / entry["file"]).is_file() else None


def _print_result(result: dict) -> None:
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


def _entry_text(entry: dict) -> str:
    """{"input": "a.jpg", "classes": {"cat": 0.9}} -> "a.jpg: cat 90.0%"; texts, then numbers, then shares."""
    texts = [value for value in entry.values() if isinstance(value, str)]
    numbers = [f"{key} {value:.1%}" for key, value in entry.items() if isinstance(value, float)]
    shares = [(key, ", ".join(f"{name} {share:.1%}" for name, share in value.items())) for key, value in entry.items()
              if isinstance(value, dict) and value]
    # The only dict of an entry speaks for itself; beside numbers it needs its name.
    shares = [f"{key.replace('_', ' ')} {text}" if numbers else text for key, text in shares]
    return " -> ".join(texts) + ": " + "; ".join(numbers + shares)


if __name__ == "__main__":
    raise SystemExit(main())
