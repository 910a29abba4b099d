"""Train a model: `python train.py` trains the demo, `python train.py --help` shows the rest (jea/commands/train.py)."""
from jea.commands.train import main

if __name__ == "__main__":  # worker processes import this file
    raise SystemExit(main())
