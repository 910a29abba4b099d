"""Importing jea looks at nothing; the first use of Jittor does, and leaves Python as it was."""
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jea import environment
from jea.environment.decisions import Decisions
from jea.errors import SetupError

ROOT = Path(__file__).parent.parent.parent


def test_device_cuda_without_a_gpu_is_an_error_that_says_why(monkeypatch):
    monkeypatch.setattr(environment, "_decisions", Decisions(device_reason="no NVIDIA driver"))
    with pytest.raises(SetupError, match="--device cuda: no NVIDIA driver"):
        environment.choose_device("cuda")
    assert environment.choose_device("auto") == "cpu" == environment.choose_device("cpu")


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
def test_importing_jea_asks_no_driver_and_runs_no_nvcc(tmp_path, script):
    """A driver and an nvcc that write down that they were asked."""
    (tmp_path / "cuda.c").write_text("""
        #include <stdio.h>
        #include <stdlib.h>
        static void note(void) { FILE* f = fopen(getenv("NOTES"), "a"); fputs("driver\\n", f); fclose(f); }
        int cuInit(unsigned f) { note(); return 0; } int cuDeviceGetCount(int* n) { *n = 1; return 0; }
        int cuDeviceGet(int* d, int i) { *d = i; return 0; } int cuDriverGetVersion(int* v) { *v = 13000; return 0; }
        int cuDeviceGetAttribute(int* v, int a, int d) { *v = a == 75 ? 9 : 0; return 0; }
        """)
    subprocess.run(["gcc", "-shared", "-fPIC", tmp_path / "cuda.c", "-o", tmp_path / "libcuda.so.1"], check=True)
    script(tmp_path / "nvcc", 'echo nvcc >>"$NOTES"; echo "release 13.0, V13.0.88"')
    notes = tmp_path / "notes"
    here = str(tmp_path)
    variables = dict(os.environ, NOTES=str(notes), LD_LIBRARY_PATH=here, HOME=here, JEA_HOME=here,
                     PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    variables.pop("nvcc_path", None)

    def asked(code):
        notes.unlink(missing_ok=True)
        subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=variables, capture_output=True)
        return notes.read_text().splitlines() if notes.exists() else []
    assert asked("import jea, jea.config, jea.data, jea.checkpoint, jea.commands.cli") == []
    said = asked("import jea; print(jea.environment.prepare())")
    assert said.count("driver") == 1 and "nvcc" in said
    # Whoever imports Jittor: importing jea before is enough. (Here Jittor's place is taken by an empty module.)
    (tmp_path / "jittor.py").touch()
    assert asked(f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import jea, jittor").count("driver") == 1


def test_the_home_folder_in_jea_home(tmp_path):
    """JEA_HOME=~/jea once made a folder named "~" for the CUDA home."""
    code = "import jea.environment.cuda as cuda; print(cuda.jea_home())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True,
                          env=dict(os.environ, JEA_HOME="~/jea", HOME=str(tmp_path), PYTHONPATH=str(ROOT)))
    assert done.stdout.strip() == str(tmp_path / "jea") and not (tmp_path / "~").exists()


def test_importing_jittor_leaves_python_as_it_was():
    """Jittor alone lifts the recursion limit, turns certificate checks off, and exits when a child is killed."""
    code = """
import ssl, subprocess, sys, signal, os
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job inherits that it is ignored
context = ssl._create_default_https_context
from jea._jittor import jt
assert sys.getrecursionlimit() <= 10_000 and ssl._create_default_https_context is context
assert "JPY_PARENT_PID" not in os.environ and signal.getsignal(signal.SIGINT) is signal.default_int_handler
child = subprocess.Popen(["sleep", "60"]); child.kill(); child.wait()
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip().endswith("interrupted") and done.returncode == 0, done.stdout + done.stderr


IMPORTS = {
    "a command": ("from jea.commands.common import console\n"
                  "def work(arguments):\n    begin()\n    import jea._jittor, time\n    time.sleep(60)\n"
                  "sys.exit(console.run('train', work, None))"),
    "a program": ("begin()\n"
                  "try:\n    import jea._jittor, time\n    time.sleep(60)\n"
                  "except KeyboardInterrupt:\n    print('jea train: interrupted', file=sys.stderr)\n    os._exit(130)"),
}


def interrupted(command, seconds, **variables):
    """Start a command that says when it has begun, send Ctrl-C to it and its children after a while; (exit status, what
    it wrote to stderr)."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
                               start_new_session=True, env=dict(os.environ, **variables))
    assert process.stdout.readline() == "begun\n"
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGINT)  # the whole group, as a terminal does
    try:
        _, err = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, err


@pytest.mark.parametrize("seconds", [0.4, 0.8, 1.2, 1.6, 2.0])
@pytest.mark.parametrize("code", IMPORTS.values(), ids=IMPORTS)
def test_ctrl_c_while_jittor_is_imported(code, seconds):
    start = ("import os, signal, sys\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
             "begin = lambda: print('begun', flush=True)\n")
    status, err = interrupted([sys.executable, "-c", start + code], seconds)
    assert status == 130 and err.splitlines()[-1] == "jea train: interrupted" and "Caught" not in err, err
    if "console" in code:
        assert err == "jea train: interrupted\n"


@pytest.mark.parametrize("seconds", [0.1, 0.5, 1.0, 1.5, 2.0, 3.0])
def test_ctrl_c_after_the_start_of_a_training(seconds, tmp_path):
    """Whatever it is doing then, it ends with 130 and says so in a line, if it has come so far."""
    code = ("import runpy, signal, sys\nsys.argv[:] = ['train.py', *sys.argv[1:]]\n"
            "signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job inherits that it is ignored\n"
            "print('begun', flush=True)\n"
            "runpy.run_path('train.py', run_name='__main__')")
    command = [sys.executable, "-c", code, "--out", str(tmp_path), "--device", "cpu"]
    status, err = interrupted(command, seconds, JEA_HOME=str(tmp_path / "home"))
    assert status == 130 and "Caught" not in err and "Traceback" not in err, err
