"""Videos through ffmpeg: a scripted one, and the real one where it is installed."""
import shutil
from fractions import Fraction

import numpy as np
import pytest
import scripted_ffmpeg
from scripted_ffmpeg import clip

from jea.data.files import video
from jea.errors import DataError, SetupError


@pytest.fixture
def fake(tmp_path, monkeypatch):
    scripted_ffmpeg.install(tmp_path / "bin", monkeypatch)


def some_frames(count=5, height=6, width=9):
    return np.random.default_rng(0).integers(0, 255, (count, height, width, 3), np.uint8)


def test_frames_come_as_they_are_and_go_as_they_came(fake, tmp_path):
    frames = some_frames()
    path = clip(tmp_path / "a clip, with: signs.mp4", frames)
    found = video.look_at(path)
    assert found == video.Video(9, 6, Fraction(30000, 1001), 60)
    assert np.array_equal(np.stack(list(video.read_frames(path, found))), frames)
    with video.writing(tmp_path / "made.mp4", found) as writer:
        for frame in video.read_frames(path, found):
            writer.write(frame)
        assert not (tmp_path / "made.mp4").exists()
    assert (tmp_path / "made.mp4").read_bytes() == path.read_bytes().replace(b" \n", b"\n", 1)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a clip, with: signs.mp4", "bin", "made.mp4"]


@pytest.mark.parametrize("rate, wanted", [("25/1", 25), ("90000/1", 25), ("1/90", 25), ("24", 24)])
def test_rates(fake, tmp_path, rate, wanted):
    assert video.look_at(clip(tmp_path / "a.mp4", some_frames(), rate)).rate == wanted


def test_a_frame_at_a_time(fake, tmp_path):
    path = clip(tmp_path / "a.mp4", some_frames(400, 60, 90))  # more than fits into a pipe
    frames = video.read_frames(path, video.look_at(path))
    assert next(frames).shape == (60, 90, 3)
    frames.close()  # ends ffmpeg, which still has much to say


@pytest.mark.parametrize("content, said", [
    (b"no video", "ffmpeg finds no video in it: Invalid data found when processing input$"),
    (b"", "ffmpeg finds no video in it"), (b"CLIP 9 six 25", "ffmpeg finds no video"),
    (b"CLIP 9 6 25/0", "ffmpeg finds no video"),
    (b"CLIP 90000 90000 25", "video of 90000 x 90000 pixels is over the limit")])
def test_what_is_no_video(fake, tmp_path, content, said):
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(DataError, match=f"a.mp4: {said}") as caught:
        video.look_at(tmp_path / "a.mp4")
    assert "\n" not in str(caught.value)


def test_a_video_that_breaks_off(fake, tmp_path):
    frames = some_frames()
    for path, count in ((clip(tmp_path / "a.mp4", frames, more="BROKEN"), 5),
                        (clip(tmp_path / "b.mp4", frames[:0]), 0)):
        seen = []
        with pytest.raises(DataError, match=f"ffmpeg cannot read the video beyond frame {count}.*; fetch it again"):
            for frame in video.read_frames(path, video.Video(9, 6, Fraction(25), None)):
                seen.append(frame)
        assert len(seen) == count
    path = tmp_path / "c.mp4"
    path.write_bytes(clip(tmp_path / "a.mp4", frames).read_bytes()[:-7])
    with pytest.raises(DataError, match="beyond frame 4"):
        list(video.read_frames(path, video.look_at(path)))


def test_nothing_is_left_of_what_cannot_be_written(fake, tmp_path):
    with pytest.raises(SetupError, match="^ffmpeg cannot write the video: Unknown encoder$"):
        with video.writing(tmp_path / "made.mp4", video.Video(4, 4, Fraction(25), None)) as writer:
            for _ in range(100_000):
                writer.write(np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(ZeroDivisionError):
        with video.writing(tmp_path / "made.mp4", video.Video(9, 6, Fraction(25), None)) as writer:
            writer.write(some_frames()[0])
            raise ZeroDivisionError
    assert [file.name for file in tmp_path.iterdir()] == ["bin"]


def test_without_ffmpeg(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "a.mp4").write_bytes(b"anything")
    with pytest.raises(SetupError, match="ffmpeg, which is not on the PATH: apt install ffmpeg"):
        video.look_at(tmp_path / "a.mp4")
    assert video.is_video(tmp_path / "a.mp4") and not video.is_video(tmp_path / "b.mp4")
    assert not video.is_video(tmp_path)


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")
def test_the_real_ffmpeg(tmp_path):
    y, x = np.mgrid[:40, :51]
    frames = [np.stack([4 * y, 5 * x, np.full_like(x, 20 * k)], 2).astype(np.uint8) for k in range(12)]
    path, wanted = tmp_path / "-a:b.mp4", video.Video(51, 40, Fraction(30000, 1001), 12)
    with video.writing(path, wanted) as writer:
        for frame in frames:
            writer.write(frame)
    found = video.look_at(path)
    assert found == video.Video(52, 40, Fraction(30000, 1001), 12)  # even sides
    back = list(video.read_frames(path, found))
    assert len(back) == 12
    for one, other in zip(frames, back):
        assert np.abs(one.astype(int) - other[:, :51]).mean() < 6
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match="ffmpeg finds no video in it: ") as caught:
        video.look_at(path)
    assert "\n" not in str(caught.value)
