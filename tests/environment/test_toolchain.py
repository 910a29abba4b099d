"""Jittor, numpy, the compiler and Python's headers: what is said where one is missing or of the wrong version."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jea.environment import toolchain
from jea.errors import SetupError

ROOT = Path(__file__).parent.parent.parent


def test_missing_compiler_and_headers_name_the_remedy(fresh, monkeypatch, script):
    toolchain.find_python_config()
    toolchain.check()
    monkeypatch.setenv("cc_path", "no-such-compiler")
    with pytest.raises(SetupError, match="no C\\+\\+ compiler \\(no-such-compiler\\).*apt install g\\+\\+"):
        toolchain.check()
    monkeypatch.delenv("cc_path")
    monkeypatch.setenv("python_config_path", script(fresh / "python-config", "echo -I/nowhere"))
    with pytest.raises(SetupError, match="Python.h not found.*apt install python3"):
        toolchain.check()
    monkeypatch.setattr(toolchain, "python_configs", lambda: [])
    with pytest.raises(SetupError, match="-config not found"):
        toolchain.check()


def test_missing_jittor_is_named(fresh, monkeypatch):
    monkeypatch.setattr(toolchain.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SetupError, match="Jittor is not installed.*pip install"):
        toolchain.check()


def test_python_config_of_the_interpreter_is_found(fresh, monkeypatch, script):
    name = f"python3.{sys.version_info.minor}-config"
    script(fresh / name, "")
    monkeypatch.setattr(toolchain, "python_configs", lambda: [""])
    monkeypatch.setattr(toolchain.sysconfig, "get_config_var", lambda key: str(fresh))
    toolchain.find_python_config()
    assert os.environ["python_config_path"] == str(fresh / name)


@pytest.mark.parametrize("package, version, said", [
    ("numpy", "2.3.1", r"numpy 2\.3\.1: Jittor 1\.3\.11\.0 knows numpy 1 only.*pip install 'numpy<2'"),
    ("jittor", "1.3.10.0", r"Jittor 1\.3\.10\.0: jea is made for 1\.3\.11\.0.*pip install jittor==1\.3\.11\.0"),
])
def test_versions_that_came_in_later(tmp_path, package, version, said):
    """As pip leaves them: looked at before Jittor is imported, and one line for whoever runs a command."""
    import re
    record = tmp_path / f"{package}-{version}.dist-info" / "METADATA"
    record.parent.mkdir()
    record.write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    command = [sys.executable, "-m", "jea", "train", "--dry-run", "--device", "cpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True,
                          env=dict(os.environ, PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}"))
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert re.search("jea train: error: " + said, done.stderr) and len(done.stderr.splitlines()) == 1


def test_the_supported_versions_pass(monkeypatch):
    toolchain.check_versions()
    # a checkout on the path has no record
    monkeypatch.setattr(toolchain, "version", {"numpy": "1.22.0", "jittor": ""}.get)
    toolchain.check_versions()


@pytest.mark.parametrize("version, status", [((3, 13), 0), ((3, 14), 1), ((3, 15), 1)])
def test_a_python_that_is_too_new_says_what_to_do(version, status):
    code = f"""
import runpy, setuptools, sys
class Version(tuple):
    major, minor = property(lambda self: self[0]), property(lambda self: self[1])
sys.version_info, sys.argv = Version(({version[0]}, {version[1]}, 0, "final", 0)), ["setup.py", "--version"]
try:
    runpy.run_path("setup.py", run_name="__main__")
except SystemExit as end:
    print(end, file=sys.stderr)
    sys.exit(1)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    if "No module named 'setuptools'" in done.stderr:
        pytest.skip("setuptools is not installed")
    assert done.returncode == status, done.stderr
    if status:
        assert f"Python 3.{version[1]} is too new for Jittor. Put Python 3.13 beside it: `uv venv" in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_modules_among_a_functions_local_names():
    """What Python 3.13 wants for Jittor: exec("import NAME") writes no function's locals there."""
    code = """
import builtins, sys
from jea import _jittor
import jittor.compiler, jittor_utils
assert builtins.locals is not _jittor._locals
if sys.version_info >= (3, 13):
    assert jittor.compiler.locals is jittor_utils.locals is _jittor._locals
def late():
    own = 5
    exec("import json.tool")
    found = _jittor._locals()
    return found["own"], found["json.tool"], "nothing" in found
assert late() == (5, sys.modules["json.tool"], False)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
