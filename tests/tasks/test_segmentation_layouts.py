"""The synthetic data set in the layouts of ADE20K and Cityscapes trains and tests through those configs, few steps."""
import json
import zipfile

import numpy as np
import pytest
from PIL import Image
from segmentation_trees import CITYSCAPES_IDS, make_ade20k, make_cityscapes

from jea.commands import test, train

# The configs' own settings, with a small network and small crops
SMALL = ["model.name=eanet_tiny", "data.crop_size=65", "train.steps=2", "train.batch_size=2", "train.num_workers=1",
         "train.eval_every=0", "train.init_weights=null", "eval.num_workers=0", "eval.pictures=1"]


@pytest.mark.parametrize("config, make, root, overrides", [
    ("segmentation_eanet_resnet101_ade20k", make_ade20k, "ADEChallengeData2016",
     ["data.fit=[200,64]", "eval.fit=[200,64]"]),
    ("segmentation_eanet_jseg_resnet50_cityscapes", make_cityscapes, "",
     ["data.fit=[180,90]", "eval.window=65", "eval.window_stride=43", "train.ohem_min_kept=500",
      "model.auxiliary=true"]),
])
def test_trains_and_tests(config, make, root, overrides, tmp_path, capsys):
    labels = make(tmp_path / "data")
    shared = ["--config", config, "--data", str(tmp_path / "data" / root), *SMALL, *overrides]
    assert train.main([*shared, "--out", str(tmp_path / "run")]) == 0
    log = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    first = log[0]
    assert {"loss", "main_loss", "auxiliary_loss", "lr"} <= set(first)
    assert first["loss"] == pytest.approx(first["main_loss"] + 0.4 * first["auxiliary_loss"], rel=1e-5)
    capsys.readouterr()
    arguments = [*shared, "--weights", str(tmp_path / "run/best.npz")]
    assert test.main([*arguments, "--out", str(tmp_path / "out"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["images"] == 2 and 0 <= result["mIoU"] <= 1 and result["peak_memory_mb"] > 50
    assert result["mIoU"] == pytest.approx(log[-1]["evaluation"]["mIoU"], abs=0.02)
    for name in ("iou.png", "confusion.png"):
        assert Image.open(tmp_path / "out" / name).size[0] > 300
    assert len(list((tmp_path / "out/pictures").glob("*.png"))) == 1

    assert test.main([*arguments, "--out", str(tmp_path / "server"), "--split", "test", "--json"]) == 0
    archive = json.loads(capsys.readouterr().out)["submission"]
    with zipfile.ZipFile(archive) as opened:
        name, = opened.namelist()
        stored = np.array(Image.open(opened.open(name)))
    if make is make_cityscapes:
        assert name == "berlin_000000_000019.png" and set(np.unique(stored)) <= set(CITYSCAPES_IDS)
        assert stored.shape == next(v.shape for k, v in labels.items() if k.startswith("berlin"))
    else:
        assert name == "ADE_test_00000001.png" and 1 <= stored.min() <= stored.max() <= 150
    # one's own picture, with the data set's names and colours
    picture = next((tmp_path / "data").rglob("*test*/**/*.[jp][pn]g"))
    assert test.main([*arguments, "--input", str(picture), "--out", str(tmp_path / "own"), "--json"]) == 0
    classes = json.loads(capsys.readouterr().out)["files"][0]["classes"]
    assert sum(classes.values()) == pytest.approx(1, abs=1e-3)
    assert not any(name.startswith("class ") for name in classes)
