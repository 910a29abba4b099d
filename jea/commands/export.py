"""`jea export`: write a trained network as an ONNX file."""
from __future__ import annotations

import argparse
from pathlib import Path

from jea import environment
from jea.commands.common import console
from jea.commands.common.session import load_config, positive
from jea.errors import ConfigError


def main(argv=None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="jea export", description="Write the network of a config as an ONNX file of standard operators (opset "
        "17): BatchNorm folded, inputs and outputs named for what they are, the batch free. What the file computes is "
        "compared with the network before it is written. Of a GAN the generator is written.",
        epilog="example: jea export segmentation_eanet_resnet101_voc eanet.onnx --weights eanet.pth --size 513 513")
    parser.add_argument("config", metavar="CONFIG", help="YAML file, or its name in configs/")
    parser.add_argument("target", metavar="OUT", help="the file to write, ending in .onnx")
    parser.add_argument("--weights", help="checkpoint (default: the config's entry in weights/index.yaml)")
    parser.add_argument("--size", nargs="+", type=positive, metavar="N", help="height and width of the pictures "
                        "(default: 513 513), or the number of points (1024)")
    parser.add_argument("--dynamic", action="store_true", help="leave height and width, or the number of points, free")
    parser.add_argument("--no-ema", action="store_true", help="of weights that have averaged ones too, load the raw "
                                                              "ones")
    parser.add_argument("overrides", nargs="*", metavar="block.key=value", help="change the config: "
                                                                                "model.num_classes=3")
    return console.run("export", _export, parser.parse_intermixed_args(argv))


def _export(arguments) -> int:
    from jea.files import weights_for
    config, stem = load_config(arguments)
    if Path(arguments.target).suffix != ".onnx":
        raise ConfigError(f"{arguments.target}: expected a file that ends in .onnx")
    weights = arguments.weights or weights_for(stem)
    if weights is None:
        raise ConfigError(f"{stem}: no weights are bundled for this config: say --weights FILE")
    environment.choose_device("cpu")
    from jea._jittor import jt
    jt.flags.use_cuda = 0
    from jea.export import export_onnx
    from jea.tasks import create_task
    task = create_task(config, draw=False)
    print(task.load(weights, ema=not arguments.no_ema))
    print(export_onnx(task.model, arguments.target, size=arguments.size, dynamic=arguments.dynamic))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
