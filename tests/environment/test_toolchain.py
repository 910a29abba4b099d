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
    done = subprocess.run([sys.executable, "-m", "jea", "train", "--dry-run", "--device", "cpu"], cwd=ROOT, capture_output=True,
                          text=True, env=dict(os.environ, PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}"))
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert re.search("jea train: error: " + said, done.stderr) and len(done.stderr.splitlines()) == 1


def test_the_supported_versions_pass(monkeypatch):
    toolchain.check_versions()
    monkeypatch.setattr(toolchain, "version", {"numpy": "1.22.0", "jittor": ""}.get)  # a checkout on the path has no record
    toolchain.check_versions()
