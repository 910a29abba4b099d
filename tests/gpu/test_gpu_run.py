"""The parts of run.sh that can go wrong without a GPU: the queue of tests, the compiler that is shared, caches put
together."""
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
sys.path[:0] = [str(FOLDER / "machine"), str(FOLDER / "measure")]
import kernels_by_time  # noqa: E402
import merge_caches  # noqa: E402

TESTS = """
import pytest

@pytest.mark.parametrize("i", range(6))
def test_each(i):
    assert i != 4

def test_late():
    pytest.skip("not here")
"""


def test_two_processes_share_one_queue(tmp_path):
    (tmp_path / "test_it.py").write_text(TESTS)
    queue = tmp_path / "queue"
    queue.mkdir()
    (queue / "first.txt").write_text("test_late\n")
    environment = dict(os.environ, JEA_QUEUE=str(queue), PYTHONPATH=str(FOLDER / "machine"))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "shared_queue", "-p", "no:cacheprovider", "--rootdir", ".",
               "test_it.py"]
    processes = [subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE) for _ in range(2)]
    for process in processes:
        process.communicate(timeout=120)
    lines = [json.loads(line) for line in (queue / "tests.jsonl").read_text().splitlines()]
    begun = [line["test"] for line in lines if "begun" in line]
    assert any(test.endswith("test_late") for test in begun[:2]) and len(begun) == len(set(begun)) == 7
    outcomes = {line["test"].split("::")[1]: line for line in lines if "outcome" in line}
    assert [outcomes[f"test_each[{i}]"]["outcome"] for i in range(6)] == ["passed"] * 4 + ["failed", "passed"]
    assert "assert 4 != 4" in outcomes["test_each[4]"]["said"] and outcomes["test_late"]["outcome"] == "skipped"
    assert sorted(process.returncode for process in processes)[-1] == 1

    environment["JEA_QUEUE_UNTIL"] = "0"
    (queue / "next").unlink()
    subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True)
    assert len((queue / "tests.jsonl").read_text().splitlines()) == len(lines)  # the time is over: none is begun


needs_tools = pytest.mark.skipif(shutil.which("sha256sum") is None or shutil.which("flock") is None,
                                 reason="sha256sum or flock is not installed")


@needs_tools
def test_a_lock_dies_with_its_process(tmp_path):
    """As at a time limit: the one that compiles is killed while its compiler, and others, go on."""
    (tmp_path / "jit").mkdir()
    kernel = tmp_path / "jit" / "a_op.cc"
    kernel.write_text("kernel")
    nvcc, real, store = tmp_path / "nvcc", tmp_path / "nvcc.real", tmp_path / "store"
    store.mkdir()
    shutil.copy(FOLDER / "machine" / "shared_nvcc.sh", nvcc)
    real.write_text(f'#!/bin/bash\necho $$ >>{tmp_path}/begun\n[ ! -e {tmp_path}/slow ] || sleep 60\nprintf made '
                    f'>"${{@: -1}}"\n')
    real.chmod(0o755)

    def start(name, **environment):
        return subprocess.Popen(["bash", str(nvcc), str(kernel), "-o", str(tmp_path / "out.so")],
                                env=dict(os.environ, JEA_GPU_STORE=str(store), **environment))

    def wait_for(count):
        limit = time.time() + 60
        while not (tmp_path / "begun").exists() or len((tmp_path / "begun").read_text().split()) < count:
            assert time.time() < limit
            time.sleep(0.05)
    (tmp_path / "slow").touch()
    holder = start("holder")
    wait_for(1)
    started = time.time()
    waiting = start("waiting", JEA_GPU_WAIT="120")
    time.sleep(0.5)
    assert len((tmp_path / "begun").read_text().split()) == 1  # it waits
    (tmp_path / "slow").unlink()
    holder.kill()
    holder.wait()
    assert waiting.wait(timeout=30) == 0 and (tmp_path / "out.so").read_text() == "made" and time.time() - started < 30
    for made in store.glob("*.so"):
        made.unlink()
    (tmp_path / "slow").touch()
    holder = start("holder")
    wait_for(3)
    (tmp_path / "slow").unlink()
    assert start("impatient", JEA_GPU_WAIT="1").wait(timeout=30) == 0  # and does not wait for ever
    holder.kill()
    holder.wait()
    for number in (tmp_path / "begun").read_text().split():  # the compilers that sleep
        try:
            os.kill(int(number), signal.SIGKILL)
        except ProcessLookupError:
            pass


@pytest.mark.parametrize("warm", ([], ["--warm", "1/2"]), ids=("times", "warm"))
def test_bandwidth_has_no_errors(tmp_path, warm):
    script = str(FOLDER / "measure" / "bandwidth.py")
    done = subprocess.run([sys.executable, script, str(tmp_path / "out.json"), "--device", "cpu",
                           "--runs", "1", *warm], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads((tmp_path / "out.json").read_text())
    assert "error" not in json.dumps(results) and "error" not in done.stdout
    assert warm or (len(results) >= 6 and all(row["microseconds"] > 0 for row in results.values()))


@needs_tools
def test_a_kernel_is_compiled_once_for_all(tmp_path):
    store, calls = tmp_path / "store", tmp_path / "calls"
    store.mkdir()
    nvcc = tmp_path / "nvcc"
    shutil.copy(FOLDER / "machine" / "shared_nvcc.sh", nvcc)
    real = tmp_path / "nvcc.real"
    real.write_text(f'#!/bin/bash\nsleep 0.2\necho "$1" >>{calls}\n[ "$2" != fail ] || exit 3\nprintf "made of %s" '
                    f'"$(cat $1)" >"${{@: -1}}"\n')
    real.chmod(0o755)
    (tmp_path / "jit").mkdir()
    kernel, other = tmp_path / "jit" / "a_op.cc", tmp_path / "core.cc"
    kernel.write_text("kernel")
    other.write_text("core")
    environment = dict(os.environ, JEA_GPU_STORE=str(store))

    def compile_it(source, *arguments, env=environment):
        return subprocess.Popen(["bash", str(nvcc), str(source), *arguments, "-o", str(tmp_path / "out.so")], env=env)
    for process in [compile_it(kernel) for _ in range(3)]:
        assert process.wait(timeout=60) == 0
    assert calls.read_text().count("a_op.cc") == 1 and (tmp_path / "out.so").read_text() == "made of kernel"
    assert compile_it(kernel, "-O3").wait(timeout=60) == 0 and calls.read_text().count("a_op.cc") == 2
    kernel.write_text("another")
    assert compile_it(kernel).wait(timeout=60) == 0 and (tmp_path / "out.so").read_text() == "made of another"
    for _ in range(2):  # what failed is tried again, and what is no kernel is not kept
        assert compile_it(kernel, "fail").wait(timeout=60) == 3
        assert compile_it(other).wait(timeout=60) == 0
    assert calls.read_text().count("core.cc") == 2 and len(list(store.glob("*.so"))) == 3
    assert compile_it(kernel, env={**environment, "JEA_GPU_STORE": ""}).wait(timeout=60) == 0
    assert calls.read_text().count("a_op.cc") == 6


def test_caches_are_put_together(tmp_path):
    home, copy = tmp_path / "home", tmp_path / "copy"
    for folder, kernels, engines in ((home, ("a",), {"x": {"engine": 1}}),
                                     (copy, ("a", "b"), {"x": {"engine": 2}, "y": {"engine": 3}})):
        (folder / "jit").mkdir(parents=True)
        for name in kernels:
            (folder / "jit" / f"{name}.so").write_text(folder.name)
        (folder / "engines.json").write_text(json.dumps(engines))
    (copy / "verdicts.json").write_text('{"jea 1": {"3x3": "right"}}')
    (copy / "jit" / "link").symlink_to("nowhere")
    assert merge_caches.merge(home, copy) == 3
    assert (home / "jit" / "a.so").read_text() == "home" and (home / "jit" / "b.so").read_text() == "copy"
    assert json.loads((home / "engines.json").read_text()) == {"x": {"engine": 1}, "y": {"engine": 3}}
    assert (home / "verdicts.json").is_file() and os.readlink(home / "jit" / "link") == "nowhere"
    assert merge_caches.merged({"a": {"k": 1}}, {"a": {"k": 2, "l": 3}}) == {"a": {"k": 1, "l": 3}}


def test_kernels_that_run_on_the_host_are_marked():
    code = ("code\u00abIN_SIZE:2\u00abin0_type:float32\u00abHEADER:namespace jea { void other(); }\u00abCODE:const "
            "jea::Sizes sizes{1}; jea::double_norm_forward(sizes, in0_p);\u00abJIT:1\u00abJIT_cuda:1")
    joined = "\u00abopkey0:array\u00abT:int32\u00abopkey1:reduce\u00abTx:float32\u00abOP:add\u00abJIT_cpu:1"
    report = [["Name", "FileName", "Count", "TotalTime"], [code, "a.cc", "10", "5000000"],
              [joined, "b.cc", "5", "9000000"]]
    assert kernels_by_time.rows(report, 5) == [
        {"kernel": "array reduce add float32/int32", "ms": 1.8, "calls": 1.0, "on_cpu": True},
        {"kernel": "jea double_norm_forward float32", "ms": 1.0, "calls": 2.0, "on_cpu": False}]
