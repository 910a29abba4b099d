"""Photographs that come with scikit-learn as `--input`: of no class that the demos know, but of a camera's size and
colours."""
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jea.commands import test

FOUND = importlib.util.find_spec("sklearn")  # not imported, which takes seconds
FOLDER = Path(FOUND.origin).parent / "datasets" / "images" if FOUND else Path("nowhere")
pytestmark = pytest.mark.skipif(not (FOLDER / "china.jpg").is_file(), reason="scikit-learn is not installed")


@pytest.mark.parametrize("config", ["segmentation_eanet_tiny_shapes", "classification_eamlp_tiny_shapes",
                                    "instance_segmentation_ea_maskrcnn_tiny_shapes"])
def test_photographs(config, tmp_path, capsys):
    assert test.main(["--config", config, "--input", str(FOLDER), "--out", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [Path(file["input"]).name for file in found["files"]] == ["china.jpg", "flower.jpg"] and found["images"] == 2
    for file in found["files"]:
        stem = Path(file["input"]).stem
        if config.startswith("segmentation"):
            assert np.array(Image.open(tmp_path / f"{stem}.png")).shape == (427, 640)
            assert sum(file["classes"].values()) == pytest.approx(1, abs=1e-3)
        elif config.startswith("classification"):
            assert len(file["classes"]) == 5 and sum(file["classes"].values()) <= 1.001
        else:
            assert max(Image.open(tmp_path / f"{stem}.png").size) >= 640 and "objects" in file
