"""jea info: what was found on this machine, without Jittor."""
import json
import subprocess
import sys
from pathlib import Path

from jea.commands import info

ROOT = Path(__file__).parent.parent.parent


def test_info(capsys):
    assert info.main(["--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    for key in ("jea", "python", "jittor", "device", "oneDNN", "compiler", "nvcc", "jittor cache", "operators"):
        assert shown[key], key
    assert shown["toolchain"] == "complete"
    done = subprocess.run([sys.executable, "-m", "jea.commands.info"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and "oneDNN" in done.stdout and "operators:" in done.stdout
