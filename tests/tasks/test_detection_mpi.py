"""Two processes train a detector as one does."""
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pycocotools")

from jea.checkpoint import load_npz  # noqa: E402
from jea.data.detection.scenes import make_scenes  # noqa: E402

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(not (shutil.which("mpirun") and shutil.which("mpicc")),
                                reason="Open MPI is not installed: apt install openmpi-bin libopenmpi-dev")


def test_two_processes_do_what_one_does(tmp_path):
    scenes = make_scenes(tmp_path / "scenes", counts={"train": 8, "val": 4})
    options = ["data.name=coco_json", "data.min_size=160", "data.max_size=160", "train.steps=3", "train.batch_size=2",
               "train.lr=0.005", "train.warmup_steps=2", "train.milestones=[5]", "train.num_workers=0",
               "train.eval_every=0", "eval.num_workers=0", "eval.pictures=0", "model.roi_samples=16"]
    environment = dict(os.environ, OMP_NUM_THREADS="1", OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
                       PYTHONPATH=str(ROOT))
    for count in (1, 2):
        start = ["mpirun", "--oversubscribe", "--bind-to", "none", "-np", "2"] if count == 2 else []
        done = subprocess.run(
            [*start, sys.executable, str(ROOT / "train.py"), "--config",
             str(ROOT / "configs" / "instance_segmentation_ea_maskrcnn_tiny_shapes.yaml"), "--data", str(scenes),
             "--out", str(tmp_path / str(count)), *options],
            capture_output=True, text=True, env=environment, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
    one, two = (load_npz(tmp_path / str(count) / "last.npz")[0] for count in (1, 2))
    assert one.keys() == two.keys()
    for key, wanted in one.items():
        assert np.abs(wanted.astype(np.float64) - two[key]).max() <= 1e-4 * max(np.abs(wanted).max(), 1e-6), key
    logs = [[json.loads(line) for line in (tmp_path / str(count) / "log.jsonl").read_text().splitlines()]
            for count in (1, 2)]
    terms = [[entry for entry in log if "masks_loss" in entry] for log in logs]
    assert terms[0]
    for a, b in zip(*terms):
        for name in a:
            if name.endswith("loss"):
                assert abs(a[name] - b[name]) <= 1e-5 * abs(a[name]), name
    scores = [[entry["evaluation"] for entry in log if "evaluation" in entry][-1] for log in logs]
    assert scores[0]["images"] == scores[1]["images"] == 4
