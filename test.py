"""Evaluate a model: `python test.py` runs the demo, `python test.py --help` shows the rest (jea/commands/test.py)."""
from jea.commands.test import main

if __name__ == "__main__":  # worker processes import this file
    raise SystemExit(main())
