"""Evaluate a model: `python test.py` runs the demo, `python test.py --help` shows the rest (jea/commands/test.py)."""
try:
    from jea.commands.test import main
except KeyboardInterrupt:  # Ctrl-C in the first moments; later jea/commands/common/console.py sees to it
    raise SystemExit(130) from None

if __name__ == "__main__":  # worker processes import this file
    raise SystemExit(main())
