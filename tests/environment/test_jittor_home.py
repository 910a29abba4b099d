"""Jittor's home, as it is recorded and found, and oneDNN linked into it."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jea.environment import jittor_home, onednn
from jea.environment.decisions import Decisions

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("content", ["", "{", "[]", '{"JITTOR_HOME": "/other", "more": 1}'])
def test_jittors_record_of_its_home_is_mended(fresh, monkeypatch, content):
    record = fresh / ".cache" / "jittor" / "config.json"
    record.parent.mkdir(parents=True)
    record.write_text(content)
    monkeypatch.setenv("JITTOR_HOME", str(fresh / "jh"))
    jittor_home.mend_record()
    assert json.loads(record.read_text())["JITTOR_HOME"] == str(fresh / "jh")
    assert jittor_home.jittor_home() == fresh / "jh"


def test_without_onednn_the_user_is_told(fresh, monkeypatch):
    monkeypatch.setattr(onednn, "ONEDNN_PACKAGES", ("no-such-package",))
    found = Decisions()
    onednn.set_up(found)
    assert os.environ["use_mkl"] == "0" and not found.onednn
    assert "130 times slower" in found.onednn_reason and "pip install" in found.onednn_reason


@pytest.mark.parametrize("machine, words", [
    ("aarch64", "use_mkl=1 lets Jittor download it from its own server"), ("riscv64", "x86-64 processor")])
def test_processors_without_a_wheel_of_onednn(fresh, monkeypatch, machine, words):
    """Jittor's import would end with a traceback of its download."""
    monkeypatch.setattr(onednn.platform, "machine", lambda: machine)
    found = Decisions()
    onednn.set_up(found)
    assert os.environ["use_mkl"] == "0" and not found.onednn
    assert f"no wheel for {machine}: convolutions are about 130 times slower" in found.onednn_reason
    assert words in found.onednn_reason
    library = jittor_home.jittor_cache() / "mkl" / f"dnnl_lnx_2.2.0_cpu_gomp_{machine}" / "lib" / "libmkldnn.so"

    def ask():
        os.environ["use_mkl"] = "1"

    def download():
        del os.environ["use_mkl"]
        library.parent.mkdir(parents=True)
        library.touch()
    for prepare in (ask, download):
        prepare()
        found = Decisions()
        onednn.set_up(found)
        assert found.onednn == "jittor's own download" and os.environ.get("use_mkl") != "0"


@pytest.mark.skipif(onednn.installed()[1] is None, reason="oneDNN's wheels are not installed")
def test_several_processes_link_onednn_at_once(tmp_path):
    environment = dict(os.environ, HOME=str(tmp_path), JITTOR_HOME=str(tmp_path / "jh"))
    environment.pop("use_mkl", None)
    code = "import jea; d = jea.environment.prepare(); print(d.onednn, d.onednn_reason)"
    started = [subprocess.Popen([sys.executable, "-c", code], env=environment, cwd=ROOT, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, text=True) for _ in range(6)]
    for process in started:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0 and out.startswith(onednn.ONEDNN_VERSION), out + err
    folder = tmp_path / "jh" / ".cache" / "jittor" / "mkl" / onednn.ONEDNN_FOLDER
    assert (folder / "lib" / "libmkldnn.so").resolve().is_file() and (folder / "include" / "dnnl.hpp").is_file()
    assert not [name for name in os.listdir(folder / "lib") if name.startswith(".")]
