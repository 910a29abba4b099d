"""jea doctor: right numbers here, and plain words for each way of failing."""
import json
import subprocess
import sys
from pathlib import Path

import pytest

from jea import environment
from jea.commands import cli, doctor
from jea.environment.decisions import Decisions

ROOT = Path(__file__).parent.parent.parent


def test_everything_is_right_on_the_cpu():
    done = subprocess.run([sys.executable, "-m", "jea", "doctor", "--device", "cpu", "--json"], capture_output=True,
                          text=True, cwd=ROOT)
    report = json.loads(done.stdout)
    assert done.returncode == 0 and report["device"] == "cpu" and list(report["checks"]) == list(doctor.CHECKS)
    assert all(check["ok"] and check["error"] <= doctor.LIMIT for check in report["checks"].values())
    # compared, not copied
    assert all(0 < report["checks"][name]["error"] for name in ("kernel", "convolution", "matmul"))


@pytest.mark.cuda
def test_everything_is_right_on_the_gpu(device):
    if device == "cuda":
        assert all(result["ok"] for result in doctor.examine("cuda").values())


def fake(monkeypatch, lines, status=0, err=""):
    monkeypatch.setattr(doctor.subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, status, lines, err))
    return doctor.examine("cuda")


GOOD = "".join(json.dumps({"check": name, "seconds": 1.0, "error": 0.0}) + "\n" for name in doctor.CHECKS)


def test_a_process_that_dies_in_a_check(monkeypatch, capsys):
    lines = GOOD[:GOOD.index('{"check": "convolution"')] + '{"check": "convolution"}\n'
    results = fake(monkeypatch, lines, -6, "first\n\nerror: libcudnn.so.9 is too new\n")
    assert results["kernel"]["ok"] and not results["convolution"]["ok"]
    assert results["convolution"]["said"] == "the process ended (SIGABRT)"
    assert results["matmul"]["said"] == "not reached" and not results["matmul"]["ok"]
    doctor._print(results)
    shown = capsys.readouterr().out
    assert "convolution (3x3, with gradients): FAILED: the process ended (SIGABRT)" in shown
    assert "libcudnn.so.9 is too new" in shown and "cuDNN fails" in shown and "kernel (" in shown


def test_wrong_numbers_and_tf32(monkeypatch):
    results = fake(monkeypatch, GOOD.replace('"matmul", "seconds": 1.0, "error": 0.0', '"matmul", "seconds": 1, '
                                                                                       '"error": 4e-4'))
    assert not results["matmul"]["ok"] and "TF32" in results["matmul"]["advice"]
    results = fake(monkeypatch, GOOD.replace('"kernel", "seconds": 1.0, "error": 0.0', '"kernel", "seconds": 1, '
                                                                                       '"error": 0.5'))
    assert "computes something wrong" in results["kernel"]["advice"] and results["matmul"]["ok"]


def test_a_check_that_raises_is_reported_and_the_next_one_runs(monkeypatch, capsys):
    def broken(device):
        raise RuntimeError("no such instruction\nmore")
    monkeypatch.setattr(doctor, "CHECKS",
                        {"import": lambda device: 0.0, "kernel": broken, "matmul": lambda device: 0.0})
    doctor._run_checks("cpu")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["check"] for line in lines] == ["import", "import", "kernel", "kernel", "matmul", "matmul"]
    assert lines[3]["said"] == "RuntimeError: no such instruction" and lines[5]["error"] == 0.0
    for device in ("cpu", "cuda"):
        assert set(doctor.checks_of(device)) <= set(doctor.WHAT)
    assert all(doctor.advice(name, "cpu", "said") for name in doctor.WHAT if name not in doctor.ON_CUDA)
    assert all(doctor.advice(name, "cuda", "said") for name in doctor.WHAT)


def test_the_verdict_on_cudnns_graphs(monkeypatch):
    from jea.ops.convolution.cudnn import check
    monkeypatch.setattr(check, "missing", lambda dtype="float32": "")
    monkeypatch.setattr(check, "_run_check", lambda name, *_: check.last_error.update({name: 3e-7}) or check.RIGHT)
    assert doctor.check_graphs("cuda") == 3e-7
    monkeypatch.setattr(check, "_run_check",
                        lambda name, *_: "wrong on this card" if "dilated" in name else check.RIGHT)
    with pytest.raises(RuntimeError, match="^float32.* 3x3 dilated: wrong on this card$"):
        doctor.check_graphs("cuda")
    assert "slower and right" in doctor.advice("graphs", "cuda", "said")


def test_status_and_device(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "examine", lambda device: {"kernel": {"ok": False, "said": "x", "advice": "do this"}})
    assert cli.main(["doctor", "--device", "cpu"]) == 1 and "do this" in capsys.readouterr().out
    monkeypatch.setattr(environment, "_decisions", Decisions(device_reason="no NVIDIA driver"))
    assert cli.main(["doctor", "--device", "cuda"]) == 2
    assert "jea doctor: error: --device cuda: no NVIDIA driver" in capsys.readouterr().err
