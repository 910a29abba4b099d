"""`--input clip.mp4`: every frame with what was found in it."""
import json

import numpy as np
import pytest
import scripted_ffmpeg

import jea
from jea.commands import test
from jea.data.detection.scenes import draw_scene
from jea.data.files import video
from jea.results import video as drawing


@pytest.fixture
def clip(tmp_path, monkeypatch):
    """A video of 11 frames for the scripted ffmpeg, and its frames."""
    scripted_ffmpeg.install(tmp_path / "bin", monkeypatch)
    scene = draw_scene(np.random.default_rng(0))[0]
    frames = np.stack([np.roll(scene, 3 * k, axis=1) for k in range(11)])
    return scripted_ffmpeg.clip(tmp_path / "clip.mp4", frames, "10"), frames


@pytest.mark.parametrize("name", ["segmentation_eanet_tiny_shapes", "classification_eamlp_tiny_shapes",
                                  "instance_segmentation_ea_maskrcnn_tiny_shapes"])
def test_the_frames_are_the_results_overlays(name, clip, tmp_path, capsys):
    path, frames = clip
    assert test.main(["--config", name, "--input", str(path), "--out", str(tmp_path / "out"), "--json"]) == 0
    made = tmp_path / "out" / "clip_overlay.mp4"
    assert json.loads(capsys.readouterr().out) == {"videos": 1, "frames": 11, "files": [
        {"input": str(path), "prediction": str(made)}]}
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["clip_overlay.mp4"]
    found = video.look_at(made)
    drawn = np.stack(list(video.read_frames(made, found)))
    assert found.rate == 10 and drawn.shape == frames.shape
    wanted = np.stack([result.overlay() for result in jea.Predictor(name)(frames)])
    assert (drawn == wanted).all(3).mean() > 0.995 and (drawn != frames).any(3).mean() > 0.005


def test_few_frames_are_in_memory(clip, tmp_path, monkeypatch):
    path, frames = clip
    predictor, sizes = jea.Predictor("classification_eamlp_tiny_shapes"), []

    def predict(inputs):
        sizes.append(len(inputs))
        assert inputs[0].name == f"{path}, frame {sum(sizes[:-1])}"
        return predictor.task.predict(inputs)
    assert drawing.overlays(predict, path, tmp_path / "a.mp4", progress=False) == 11 and sizes == [8, 3]
    sizes.clear()
    monkeypatch.setattr(drawing, "_PIXELS", 2 * 160 * 160)
    assert drawing.overlays(predict, path, tmp_path / "a.mp4", progress=False) == 11 and sizes == [2] * 5 + [1]


def test_what_cannot_be_done_is_said_in_one_line(clip, tmp_path, capsys, monkeypatch):
    path, _ = clip
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")

    def said(*arguments):
        assert test.main([*map(str, arguments), "--out", str(tmp_path / "out")]) == 2
        line, = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
        return line
    assert f"{broken}: ffmpeg finds no video in it: Invalid data found" in said("--input", broken)
    cloud = "point_classification_ea_pct_tiny_solids"
    assert f"{path}: is a video; point_classification takes a cloud" in said("--config", cloud, "--input", path)
    over = tmp_path / "out" / "clip_overlay.mp4"
    over.parent.mkdir(exist_ok=True)
    over.symlink_to(path)
    assert "would overwrite the input" in said("--input", path)
    over.unlink()
    monkeypatch.setattr(video.shutil, "which", lambda name: None)
    assert "ffmpeg, which is not on the PATH: apt install ffmpeg" in said("--input", path)
    assert list((tmp_path / "out").iterdir()) == []
