"""`jea data check`: read a data set once and list what is wrong with it."""
from __future__ import annotations

import argparse

from jea.commands.common import console
from jea.commands.common.session import load_config
from jea.errors import ConfigError


def main(argv=None) -> int:
    """`jea data check CONFIG`: 0 when nothing is wrong, 1 when something is, 2 when it cannot be checked."""
    parser = argparse.ArgumentParser(
        prog="jea data", description="Read the data set of a config once, whole, and list all that is wrong with it: "
        "files that are missing, broken or without counterpart, sizes that differ, label values that are no class, "
        "pictures that occur twice, classes that never occur. Shows how often each class occurs.",
        epilog="example: jea data check configs/segmentation_eanet_resnet101_ade20k.yaml --data ADEChallengeData2016")
    parser.add_argument("action", choices=("check",))
    parser.add_argument("config", metavar="CONFIG", help="YAML file, or its name in configs/")
    parser.add_argument("--data", metavar="DIR", help="root of the data set (data.root)")
    parser.add_argument("--split", action="append", metavar="NAME", help="part to read, repeatable (default: "
                        "data.split and eval.split)")
    parser.add_argument("--num-workers", type=int, default=2, metavar="N", help="processes that read (default: 2)")
    parser.add_argument("overrides", nargs="*", metavar="block.key=value", help="change the config: data.num_classes=3")
    return console.run("data", _data_check, parser.parse_intermixed_args(argv))


def _data_check(arguments) -> int:
    config, _ = load_config(arguments)
    from jea.data import dataset_class
    from jea.data.check import check_splits
    from jea.tasks.options import task_options
    block = dict(config["data"])
    cls = dataset_class(block.pop("name"))
    _, options, _ = task_options(config["task"])
    splits = arguments.split or [block.get("split", cls.arguments()["split"].default),
                                 config["eval"].get("split", options.split)]
    splits = [split for split in dict.fromkeys(splits) if split is not None]
    if not splits:
        raise ConfigError("data.split and eval.split are null: there is nothing to read; name a part with --split")
    report = check_splits(cls, block, splits, num_workers=arguments.num_workers)
    print("\n".join(report.lines()))
    return 1 if report.problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
