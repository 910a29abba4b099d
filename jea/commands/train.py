"""`jea train`: train the model of a config."""
from __future__ import annotations

from pathlib import Path

from jea.commands.common import console, session
from jea.commands.common.session import load_config, positive, run_parser
from jea.environment import mpi


def main(argv=None) -> int:
    """Run the command; returns its exit status."""
    parser = run_parser("train", "Train the model of a config. Without arguments: the small demo network on synthetic "
                        "pictures.", "example: python train.py --config configs/segmentation_eanet_resnet101_voc.yaml "
                        "--data VOCdevkit train.batch_size=8")
    parser.add_argument("--out", help="folder for checkpoints, log and curves (default: runs/<config>)")
    parser.add_argument("--resume", action="store_true", help="go on from OUT/last.npz")
    parser.add_argument("--weights", help="start from this checkpoint, whole or backbone only (train.init_weights)")
    parser.add_argument("--stop-after", type=positive, metavar="STEP", help="save and stop before this step, for time "
                                                                            "limits")
    arguments = parser.parse_intermixed_args(argv)
    return console.run("train", _train, arguments)


def _train(arguments) -> int:
    device = session.choose_device(arguments)
    config, stem = load_config(arguments)
    if arguments.weights:
        config["train"]["init_weights"] = arguments.weights
    session.check_paths(arguments, config, None if arguments.resume else config["train"].get("init_weights"))
    device = session.start(arguments, device)
    from jea.commands.common import report
    from jea.tasks import create_task
    from jea.training.log import CURVES
    from jea.training.loop import train
    from jea.training.state import BEST, LAST
    task = create_task(config)
    out = Path(arguments.out or Path("runs") / stem)
    session.say(f"{session.describe(config, task)}; device {device}; output {out}")
    init = config["train"].get("init_weights")
    if arguments.dry_run:
        start = f"on from {session.readable(out / LAST)}" if arguments.resume else \
            f"from {session.weights_state(task, init)}" if init else "from random weights"
        session.say(f"dry run: would train {start}; data: {session.data_state(task)}")
        return 0
    defaults = report.task_defaults(task)

    def write_report(found) -> None:
        report.write_report(out / report.REPORT, found, title=stem, lead=f"training in {out}", config=config,
                            defaults=defaults, command=report.command_line(), curves=out / CURVES)
    try:
        task.dataset(task.eval.split)  # fail now, not at the first evaluation
        result = train(task, out, resume=arguments.resume, stop_after=arguments.stop_after, ema=not arguments.no_ema,
                       strict=not arguments.no_strict, report=write_report)
    finally:
        task.close()
    if mpi.rank():
        return 0
    if result:
        session.print_result(result)
        print(f"weights: {out / BEST} (best), {out / LAST} (to resume); curves: {out / CURVES}; "
              f"report: {out / report.REPORT}")
    elif arguments.stop_after:
        session.say(f"stopped before the end; {out / LAST} is saved, --resume goes on from it")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
