"""What jea decides before Jittor is imported, on machines that lack this or that."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jea.commands import info
from jea.environment import runtime

ROOT = Path(__file__).parent.parent


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """An undecided runtime with a home of its own; what it writes into the environment is undone."""
    environment = dict(os.environ)
    monkeypatch.setattr(runtime, "_decisions", None)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("JITTOR_HOME", "nvcc_path", "use_mkl", "cc_path", "python_config_path"):
        monkeypatch.delenv(name, raising=False)
    yield tmp_path
    os.environ.clear()
    os.environ.update(environment)


def script(path, text):
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return str(path)


def test_device_cuda_without_a_gpu_is_an_error_that_says_why(monkeypatch):
    monkeypatch.setattr(runtime, "_decisions", runtime.Decisions(device_reason="no NVIDIA driver"))
    with pytest.raises(runtime.SetupError, match="--device cuda: no NVIDIA driver"):
        runtime.choose_device("cuda")
    assert runtime.choose_device("auto") == "cpu" == runtime.choose_device("cpu")


def test_missing_compiler_and_headers_name_the_remedy(fresh, monkeypatch):
    runtime._find_python_config()
    runtime.check_toolchain()
    monkeypatch.setenv("cc_path", "no-such-compiler")
    with pytest.raises(runtime.SetupError, match="no C\\+\\+ compiler \\(no-such-compiler\\).*apt install g\\+\\+"):
        runtime.check_toolchain()
    monkeypatch.delenv("cc_path")
    monkeypatch.setenv("python_config_path", script(fresh / "python-config", "echo -I/nowhere"))
    with pytest.raises(runtime.SetupError, match="Python.h not found.*apt install python3"):
        runtime.check_toolchain()
    monkeypatch.setattr(runtime, "_python_config_candidates", lambda: [])
    with pytest.raises(runtime.SetupError, match="-config not found"):
        runtime.check_toolchain()


def test_missing_jittor_is_named(fresh, monkeypatch):
    monkeypatch.setattr(runtime.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(runtime.SetupError, match="Jittor is not installed.*pip install"):
        runtime.check_toolchain()


def test_python_config_of_the_interpreter_is_found(fresh, monkeypatch):
    name = f"python3.{sys.version_info.minor}-config"
    script(fresh / name, "")
    monkeypatch.setattr(runtime, "_python_config_candidates", lambda: [""])
    monkeypatch.setattr(runtime.sysconfig, "get_config_var", lambda key: str(fresh))
    runtime._find_python_config()
    assert os.environ["python_config_path"] == str(fresh / name)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"JITTOR_HOME": "/other", "more": 1}'])
def test_jittors_record_of_its_home_is_mended(fresh, monkeypatch, content):
    record = fresh / ".cache" / "jittor" / "config.json"
    record.parent.mkdir(parents=True)
    record.write_text(content)
    monkeypatch.setenv("JITTOR_HOME", str(fresh / "jh"))
    runtime._mend_home_record()
    assert json.loads(record.read_text())["JITTOR_HOME"] == str(fresh / "jh")
    assert runtime.jittor_home() == fresh / "jh"


def test_without_onednn_the_user_is_told(fresh, monkeypatch):
    monkeypatch.setattr(runtime, "ONEDNN_PACKAGES", ("no-such-package",))
    found = runtime.Decisions()
    runtime._set_up_onednn(found)
    assert os.environ["use_mkl"] == "0" and not found.onednn
    assert "130 times slower" in found.onednn_reason and "pip install" in found.onednn_reason


@pytest.mark.skipif(runtime._installed_onednn()[1] is None, reason="oneDNN's wheels are not installed")
def test_several_processes_link_onednn_at_once(tmp_path):
    environment = dict(os.environ, HOME=str(tmp_path), JITTOR_HOME=str(tmp_path / "jh"))
    environment.pop("use_mkl", None)
    code = "import jea; d = jea.environment.runtime.prepare(); print(d.onednn, d.onednn_reason)"
    started = [subprocess.Popen([sys.executable, "-c", code], env=environment, cwd=ROOT, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, text=True) for _ in range(6)]
    for process in started:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0 and out.startswith(runtime.ONEDNN_VERSION), out + err
    folder = tmp_path / "jh" / ".cache" / "jittor" / "mkl" / runtime.ONEDNN_FOLDER
    assert (folder / "lib" / "libmkldnn.so").resolve().is_file() and (folder / "include" / "dnnl.hpp").is_file()
    assert not [name for name in os.listdir(folder / "lib") if name.startswith(".")]


def test_info(capsys):
    assert info.main(["--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    for key in ("jea", "python", "jittor", "device", "oneDNN", "compiler", "nvcc", "jittor cache", "operators"):
        assert shown[key], key
    from jea import ops
    helpers = {"can_block", "conv_nhwc_unavailable", "pack_conv"}
    assert set(shown["operators"]) == set(ops.__all__) - helpers
    done = subprocess.run([sys.executable, "-m", "jea.commands.info"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and "oneDNN" in done.stdout and "operators:" in done.stdout


def test_importing_jittor_leaves_python_as_it_was():
    """Jittor alone lifts the recursion limit, turns certificate checks off, and exits when a child is killed."""
    code = """
import ssl, subprocess, sys, signal, os
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job inherits that it is ignored
context = ssl._create_default_https_context
from jea._jittor import jt
assert sys.getrecursionlimit() <= 10_000 and ssl._create_default_https_context is context
child = subprocess.Popen(["sleep", "60"]); child.kill(); child.wait()
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip().endswith("interrupted") and done.returncode == 0, done.stdout + done.stderr
