"""`jea test`: evaluate the model of a config, or run it on your own files."""
from __future__ import annotations

import json
from pathlib import Path

from jea.commands.common import console, session
from jea.commands.common.session import load_config, positive, run_parser
from jea.environment import mpi
from jea.errors import ConfigError
from jea.files import weights_for


def main(argv=None) -> int:
    """Run the command; returns its exit status."""
    parser = run_parser("test", "Evaluate the model of a config, or run it on pictures (--input). Without arguments: "
                        "the demo network.", "example: python test.py --config "
                        "configs/segmentation_eanet_resnet101_voc.yaml --weights eanet.pth --data VOCdevkit --split "
                        "val --multi-scale")
    parser.add_argument("--weights", help="checkpoint: .pth, .safetensors, .npz or .pkl (default: the config's entry "
                        "in weights/index.yaml)")
    parser.add_argument("--split", help="part of the data set (default: eval.split); test writes the VOC submission")
    parser.add_argument("--input", metavar="PATH", help="a picture or a point cloud, or a folder of them; or a "
                        "video, where ffmpeg is installed")
    parser.add_argument("--out", help="folder for pictures and predictions (default: results/<config>)")
    parser.add_argument("--multi-scale", action="store_true", help="6 scales x mirrored, as for the published results")
    parser.add_argument("--attention", action="store_true",
                        help="also draw what the memories of the external attention look at in each picture")
    parser.add_argument("--limit", type=positive, metavar="N", help="only the first N pictures of the split")
    parser.add_argument("--no-fuse", action="store_true", help="run the model as it was trained, BatchNorm not folded")
    parser.add_argument("--precision", choices=("float32", "float16", "bfloat16"), default="float32",
                        help="of activations and products; sums and logits stay float32 (float16 needs CUDA)")
    parser.add_argument("--json", action="store_true", help="print the results as one JSON object")
    arguments = parser.parse_intermixed_args(argv)
    return console.run("test", _test, arguments)


def _test(arguments) -> int:
    device = session.choose_device(arguments)
    from jea.data.files import video
    if arguments.no_fuse and arguments.precision != "float32":
        raise ConfigError(f"--precision {arguments.precision} is the fused network's: leave --no-fuse out")
    config, stem = load_config(arguments)
    weights = arguments.weights or weights_for(stem, needed="" if arguments.dry_run else "--weights FILE")
    session.check_paths(arguments, config, arguments.weights)
    if arguments.input and video.is_video(arguments.input):
        video.find_ffmpeg()
    device = session.start(arguments, device)
    from jea.tasks import create_task
    task = create_task(config, draw=False)
    if arguments.multi_scale:
        task.multi_scale()
    if arguments.attention:
        task.show_attention()
    out = Path(arguments.out or Path("results") / stem)
    session.say(f"{session.describe(config, task)}; device {device}; weights {weights}; output {out}")
    if arguments.dry_run:
        state = session.weights_state(task, weights) if weights else "once there are weights"
        session.say(f"dry run: would test {state}; data: {session.data_state(task)}")
        return 0
    session.say(task.load(weights, ema=not arguments.no_ema, strict=not arguments.no_strict))
    if not arguments.no_fuse:
        task.fuse(arguments.precision)
    from jea import ranks
    from jea.commands.common import report
    from jea.metrics.attention import mean_numbers
    from jea.tasks.outputs import predict_files
    from jea.training.log import plain
    from jea.training.state import evaluate
    defaults = report.task_defaults(task)
    found = None
    if arguments.input:
        result = ranks.on_first(lambda: predict_files(task, arguments.input, out))
    else:
        found = evaluate(task, out, split=arguments.split, limit=arguments.limit)
        drawn = [entry.attention.numbers for entry in found.shown + found.charts if entry.attention]
        if drawn:
            found.values["attention"] = mean_numbers(drawn)
        result = found.values
    if mpi.rank():
        return 0
    if found:
        report.write_report(out / report.REPORT, found, title=stem, lead=f"{weights}, split "
                            f"{arguments.split or task.eval.split}", config=config, defaults=defaults,
                            command=report.command_line())
    if arguments.json:
        print(json.dumps(plain(result)))
    else:
        session.print_result(result)
        print(f"output: {out}" + f"; report: {out / report.REPORT}" * bool(found))
    return 1 if result.get("failed") else 0


if __name__ == "__main__":
    raise SystemExit(main())
