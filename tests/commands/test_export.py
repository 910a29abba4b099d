"""`jea export` through the command line."""
import numpy as np
import pytest

from jea.commands import cli

pytest.importorskip("onnx")


def test_the_demo_as_an_onnx_file(tmp_path, capsys):
    runtime = pytest.importorskip("onnxruntime")
    target = tmp_path / "demo.onnx"
    assert cli.main(["export", "segmentation_eanet_tiny_shapes", str(target), "--size", "97", "97", "--dynamic"]) == 0
    said = capsys.readouterr().out
    assert "image ('batch', 3, 'height', 'width') -> logits" in said and "largest difference to the model" in said
    session = runtime.InferenceSession(str(target), providers=["CPUExecutionProvider"])
    logits, = session.run(["logits"], {"image": np.zeros((1, 3, 65, 49), np.float32)})
    assert logits.shape == (1, 7, 65, 49)


def test_what_is_wrong_is_told(tmp_path, capsys):
    assert cli.main(["export", "segmentation_eanet_tiny_shapes", str(tmp_path / "a.pth")]) == 2
    assert "ends in .onnx" in capsys.readouterr().err
    assert cli.main(["export", "segmentation_eanet_resnet50_voc", str(tmp_path / "a.onnx")]) == 2
    assert "--weights" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
