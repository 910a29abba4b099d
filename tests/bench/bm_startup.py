"""How long `python test.py` takes to its first picture (warm caches), and as a whole from empty caches (--cold).

    python tests/bench/bm_startup.py --cold
"""
import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def run(environment) -> tuple:
    """Seconds to the first picture and to the end of `python test.py`."""
    with tempfile.TemporaryDirectory() as folder:
        started, first = time.perf_counter(), None
        process = subprocess.Popen([sys.executable, "test.py", "--out", folder], cwd=ROOT, env=environment,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        os.set_blocking(process.stderr.fileno(), False)
        said = b""
        while process.poll() is None:
            said += process.stderr.read() or b""  # so that a full pipe never stops the process
            if first is None and any(Path(folder).glob("pictures/*.png")):
                first = time.perf_counter() - started
            time.sleep(0.02)
        if process.returncode or first is None:
            raise SystemExit(f"test.py failed ({process.returncode}):\n{said.decode()}")
        return first, time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cold", action="store_true", help="also from empty caches of Jittor and jea: minutes")
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    result = {"cpu cores": len(os.sched_getaffinity(0)), "python": platform.python_version()}
    if arguments.cold:
        with tempfile.TemporaryDirectory() as home:
            environment = dict(os.environ, HOME=home)
            for name in ("JITTOR_HOME", "JEA_HOME"):
                environment.pop(name, None)
            first, whole = run(environment)
        result["cold"] = {"first picture, s": round(first, 1), "whole test.py, s": round(whole, 1)}
    run(dict(os.environ))  # warms
    times = [run(dict(os.environ)) for _ in range(arguments.runs)]
    result["warm"] = {"first picture, s (median)": round(statistics.median(t[0] for t in times), 2),
                      "whole test.py, s (median)": round(statistics.median(t[1] for t in times), 2),
                      "runs": arguments.runs}
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
