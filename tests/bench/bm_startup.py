"""How long `python test.py` takes to its first picture (warm caches), and as a whole from empty caches (--cold).

    python tests/bench/bm_startup.py --cold
    python tests/bench/bm_startup.py --kernels         a kernel's compilation with and without its precompiled header
    python tests/bench/bm_startup.py --operators       what an operator costs beside its kernel: 100,000 tiny ones

JEA_PRECOMPILED=0 measures what it would be without jea's precompiled headers.
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


KERNELS = """
import json, random, statistics, time
from jea._jittor import jt

x = jt.ones(4)
x.sync()

def seconds(source):
    result = jt.code((4,), "float32", [x], cpu_src=source)
    started = time.perf_counter()
    result.sync()
    return time.perf_counter() - started

times = [seconds(f"for (int i = 0; i < 4; i++) @out(i) = @in0(i) * {random.random()}f;") for _ in range(12)]
print(json.dumps(round(statistics.median(times), 3)))
"""

OPERATORS = """
import json, statistics, time
from jea._jittor import jt

def microseconds(operators=1000):
    x = jt.ones(4)
    x.sync()
    started = time.perf_counter()
    for _ in range(operators):
        x = jt.maximum(x, 0.5)
        x.sync()
    return (time.perf_counter() - started) / operators * 1e6

microseconds()
print(json.dumps(round(statistics.median(microseconds() for _ in range(100)), 3)))
"""


def measured(code, **variables):
    return json.loads(subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=dict(os.environ, **variables),
                                     check=True, stdout=subprocess.PIPE).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cold", action="store_true", help="also from empty caches of Jittor and jea: minutes")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--kernels", action="store_true", help="only how long one kernel compiles")
    parser.add_argument("--operators", action="store_true", help="only what calling one operator costs")
    arguments = parser.parse_args()
    result = {"cpu cores": len(os.sched_getaffinity(0)), "python": platform.python_version()}
    if arguments.kernels:
        result["one kernel, s (median of 12)"] = {"with a precompiled header": measured(KERNELS),
                                                  "without": measured(KERNELS, JEA_PRECOMPILED="0")}
    if arguments.operators:
        result["one operator, µs (median of 100 x 1,000)"] = measured(OPERATORS)
    if arguments.kernels or arguments.operators:
        print(json.dumps(result, indent=1, ensure_ascii=False))
        return
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
