"""Train a model: `python train.py` trains the demo, `python train.py --help` shows the rest (jea/commands/train.py)."""
try:
    from jea.commands.train import main
except KeyboardInterrupt:  # Ctrl-C in the first moments; later jea/commands/common/console.py sees to it
    raise SystemExit(130) from None

if __name__ == "__main__":  # worker processes import this file
    raise SystemExit(main())
