"""Evaluate a model: `python test.py` runs the demo, `python test.py --help` shows the rest (jea/commands/cli.py)."""
from jea.commands.cli import test_main

if __name__ == "__main__":  # worker processes import this file
    raise SystemExit(test_main())
