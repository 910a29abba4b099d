"""Train a model: `python train.py` trains the demo, `python train.py --help` shows the rest (jea/commands/cli.py)."""
from jea.commands.cli import train_main

if __name__ == "__main__":  # worker processes import this file
    raise SystemExit(train_main())
