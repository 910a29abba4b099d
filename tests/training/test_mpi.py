"""Several processes started by mpirun do what one does."""
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jea.checkpoint import load_npz
from jea.data import make_shapes

ROOT = Path(__file__).parent.parent.parent
WORKER = str(ROOT / "tests" / "support" / "mpi_worker.py")

pytestmark = pytest.mark.skipif(not (shutil.which("mpirun") and shutil.which("mpicc")),
                                reason="Open MPI is not installed: apt install openmpi-bin libopenmpi-dev")


def run(count, *command, succeeds=True, limit=300):
    """Run Python in `count` processes, each with one thread; without mpirun where count is 1."""
    start = ["mpirun", "--oversubscribe", "--bind-to", "none", "-np", str(count)] if count > 1 else []
    environment = dict(os.environ, OMP_NUM_THREADS="1", OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
                       PYTHONPATH=str(ROOT))
    done = subprocess.run([*start, sys.executable, *map(str, command)], capture_output=True, text=True, env=environment,
                          timeout=limit)
    assert (done.returncode == 0) == succeeds, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp("data") / "shapes", num_train=24, num_val=7, num_test=3)


@pytest.fixture(scope="module")
def trained(shapes, tmp_path_factory):
    """trained[n]: the folder of what n processes trained."""
    folders = {count: tmp_path_factory.mktemp(f"ranks{count}") for count in (1, 2)}
    for count, folder in folders.items():
        run(count, WORKER, "train", shapes, folder)
    return folders


def check_same(one, two, tolerance=1e-5):
    assert one.keys() == two.keys()
    for key, wanted in one.items():
        difference = np.abs(wanted.astype(np.float64) - two[key])
        assert difference.max() <= tolerance, f"{key}: {difference.max()}, of {np.abs(wanted).max()}"


def model_of(folder):
    return {key: value for key, value in load_npz(folder / "last.npz")[0].items() if key.startswith("model/")}


def test_batch_norm_over_two_processes(trained):
    one, two = (np.load(trained[count] / "norm.npz") for count in (1, 2))
    assert len(one.files) >= 7
    check_same(dict(one), dict(two), 2e-5)


def test_one_two_and_three_processes_begin_with_the_same_weights(shapes, tmp_path):
    wanted = {}
    for count in (1, 2, 3):
        out = tmp_path / str(count)
        out.mkdir()
        run(count, WORKER, "start", shapes, out)
        for name in ("eanet", "eamlp", "gan", "points"):
            for rank in range(count):
                found = dict(np.load(out / f"{name}-{rank}.npz"))
                first = wanted.setdefault(name, found)
                assert first.keys() == found.keys() and len(found) > 20
                assert any(np.std(value) > 0.01 for value in found.values())
                for key in first:
                    assert np.array_equal(first[key], found[key]), (count, rank, name, key)


@pytest.mark.parametrize("name", ["eanet", "eamlp", "later"])
def test_two_processes_train_as_one(trained, name):
    one, two = (model_of(trained[count] / name) for count in (1, 2))
    check_same(one, two)
    losses = [[json.loads(line).get("loss") for line in (trained[count] / name / "log.jsonl").read_text().splitlines()]
              for count in (1, 2)]
    assert np.allclose(losses[0][:3], losses[1][:3], atol=1e-5) and len(losses[1]) == len(losses[0]) == 4


def test_numbers_that_are_read_later_make_no_difference(trained):
    check_same(model_of(trained[1] / "eanet"), model_of(trained[2] / "later"))


def test_all_processes_stop_where_one_asked(trained):
    for count in (1, 2):
        assert (trained[count] / "asked.txt").read_text().startswith("stopped at step 3;")


def test_one_process_resumes_what_two_began(trained, shapes):
    run(1, WORKER, "resume", shapes, trained[2])
    check_same(model_of(trained[1] / "eanet"), model_of(trained[2] / "stopped"))
    lines = (trained[2] / "stopped" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 3]


@pytest.fixture(scope="module")
def evaluations(shapes, tmp_path_factory):
    folders = {count: tmp_path_factory.mktemp(f"evaluation{count}") for count in (1, 2, 3)}
    for count, folder in folders.items():
        run(count, WORKER, "evaluate", shapes, folder)
    return folders


def test_evaluation_does_not_depend_on_the_number_of_processes(evaluations):
    results = {count: json.loads((folder / "result.json").read_text()) for count, folder in evaluations.items()}
    timing = ("seconds_per_image", "images_per_second", "peak_memory_mb")
    for count, result in results.items():
        assert result.pop("ranks") == list(range(count))
        assert result.pop("total") == [sum(range(count)) + count / 2, count * (2 ** 40 + 1)]
        for scores in (result["segmentation"], result["classification"]):
            for key in timing:
                scores.pop(key, None)
    assert results[1]["segmentation"]["images"] == 7 and results[1]["classification"]["images"] == 17
    assert 0 < results[1]["segmentation"]["pAcc"] < 1
    assert results[2] == results[1] and results[3] == results[1]
    for name in ("classification/confusion.csv", "segmentation/iou.png", "segmentation/confusion.png"):
        contents = {(folder / name).read_bytes() for folder in evaluations.values()}
        assert len(contents) == 1, name
    pictures = [sorted(p.name for p in (f / "segmentation" / "pictures").iterdir()) for f in evaluations.values()]
    assert len(pictures[0]) == 2 and pictures[0] == pictures[1] == pictures[2]


def test_submission_of_two_processes(shapes, tmp_path):
    done = run(2, "-m", "jea", "test", "--data", shapes, "--out", tmp_path, "--split", "test", "data.name=voc",
               "data.num_classes=7", "data.scales=null", "eval.pictures=0", "eval.num_workers=0")
    assert len(list((tmp_path / "results/VOC2012/Segmentation/comp6_test_cls").glob("*.png"))) == 3
    assert (tmp_path / "results.tar").is_file()
    assert done.stdout.count("images: 3") == 1 and done.stderr.count("rank 1: ") == 1


@pytest.mark.parametrize("case, said", [("error", "RuntimeError: the second rank has had enough"),
                                        ("kill", "signal 9")])
def test_a_rank_that_fails_ends_all(case, said, shapes, tmp_path):
    done = run(2, WORKER, case, shapes, tmp_path, succeeds=False, limit=100)
    assert said in done.stdout + done.stderr
    assert not (tmp_path / "last.npz").exists()


def test_a_batch_that_cannot_be_shared(shapes, tmp_path):
    done = run(2, "-m", "jea", "train", "--data", shapes, "--out", tmp_path, "data.name=voc", "data.num_classes=7",
               "train.batch_size=3", "train.num_workers=0", succeeds=False)
    assert done.stderr.count("batch_size is 3, for 2 processes") == 1
