"""`python -m jea` is the console script `jea`."""
from jea.commands.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
