"""`python -m jea` is the console script `jea`."""
try:
    from jea.commands.cli import main
except KeyboardInterrupt:
    raise SystemExit(130) from None

if __name__ == "__main__":
    raise SystemExit(main())
