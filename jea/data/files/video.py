"""Videos as frames and back, through the program ffmpeg; no more than a frame is held at one time.

ffmpeg is told to open files and nothing else: a playlist that calls itself .mp4 does not reach the network.
"""
from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Iterator

import numpy as np

from jea.data.files.pictures import MAX_PIXELS
from jea.errors import DataError, SetupError, printable
from jea.files import replacing

SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp", ".ogv")
_RATES = (1, 240)  # frames a second; what a broken header says beyond that is taken for the usual 25
_HEADER = 256  # bytes at most


@dataclass
class Video:
    """width, height: of the frames, upright. rate: frames a second. frames: about how many; None: unknown."""
    width: int
    height: int
    rate: Fraction
    frames: int | None


def is_video(path) -> bool:
    """Whether a path is a file that is called as videos are."""
    path = Path(path).expanduser()
    return path.suffix.lower() in SUFFIXES and path.is_file()


def look_at(path: str | Path) -> Video:
    """Size and rate of a video, from its first frame. DataError: not a video that ffmpeg reads."""
    command = [*_reading(path, "info"), "-map", "0:v:0", "-frames:v", "1", "-pix_fmt", "yuv420p", "-f", "yuv4mpegpipe",
               "-"]
    with _running(command, stdout=subprocess.PIPE) as (process, said):
        # "YUV4MPEG2 W640 H480 F30000:1001 ...": the size after rotation, and the rate of an even output.
        header = process.stdout.readline(_HEADER).decode("ascii", "replace")
        while process.stdout.read(1 << 20):
            pass
        process.wait()
        words, lines = {word[:1]: word[1:] for word in header.split()[1:]}, said()
    try:
        width, height = int(words["W"]), int(words["H"])
        rate = Fraction(*(int(part) for part in words["F"].split(":")))
    except (KeyError, ValueError, TypeError, ZeroDivisionError):
        raise DataError(f"{path}: ffmpeg finds no video in it{_reason(lines, path)}") from None
    if width * height > MAX_PIXELS or width < 1 or height < 1:
        raise DataError(f"{path}: video of {width} x {height} pixels is over the limit of {MAX_PIXELS} pixels; make it "
                        "smaller first")
    if not _RATES[0] <= rate <= _RATES[1]:
        rate = Fraction(25)
    duration = re.search(r"Duration: (\d+):(\d+):(\d+\.?\d*)", "\n".join(lines))
    frames = None
    if duration:
        hours, minutes, seconds = (float(part) for part in duration.groups())
        frames = max(1, round((3600 * hours + 60 * minutes + seconds) * float(rate)))
    return Video(width, height, rate, frames)


def read_frames(path: str | Path, video: Video) -> Iterator[np.ndarray]:
    """The frames, (height, width, 3) uint8 RGB, `video.rate` of them for each second.

    DataError: ffmpeg cannot go on, or there is no frame at all. What of a broken file can be read comes first.
    """
    size = video.width * video.height * 3
    command = [*_reading(path, "error"), "-map", "0:v:0", "-vf",
               f"fps={video.rate},scale={video.width}:{video.height}:flags=bicubic", "-pix_fmt", "rgb24", "-f",
               "rawvideo", "-"]
    with _running(command, stdout=subprocess.PIPE, bufsize=size) as (process, said):
        count = 0
        while True:
            data = process.stdout.read(size)
            if len(data) < size:
                break
            count += 1
            yield np.frombuffer(data, np.uint8).reshape(video.height, video.width, 3)
        status = process.wait()
        if status or not count or data:
            raise DataError(f"{path}: ffmpeg cannot read the video beyond frame {count}{_reason(said(), path)}; "
                            "fetch it again")


class Writer:
    """Writes frames into a video: see `writing`."""

    def __init__(self, process, said):
        self._process, self._said = process, said

    def write(self, frame: np.ndarray) -> None:
        """Add a frame, (height, width, 3) uint8 RGB."""
        try:
            self._process.stdin.write(np.ascontiguousarray(frame).data)
        except BrokenPipeError:
            self._fail()

    def finish(self) -> None:
        """Wait for the last frame to be written."""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        if self._process.wait():
            self._fail()

    def _fail(self):
        self._process.wait()
        raise SetupError(f"ffmpeg cannot write the video{_reason(self._said())}")


@contextlib.contextmanager
def writing(path: str | Path, video: Video) -> Iterator[Writer]:
    """A Writer of an MP4 file without sound, which appears whole at the end of the block or not at all."""
    with replacing(path) as file:
        # Encoders want even sizes: a row or column of black is added. Which encoder, ffmpeg's build decides.
        command = [find_ffmpeg(), "-v", "error", "-nostdin", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s",
                   f"{video.width}x{video.height}", "-r", str(video.rate), "-i", "pipe:0", "-vf",
                   "pad=ceil(iw/2)*2:ceil(ih/2)*2", "-pix_fmt", "yuv420p", "-movflags", "+faststart", "-f", "mp4",
                   f"file:{file.name}"]
        with _running(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as (process, said):
            writer = Writer(process, said)
            yield writer
            writer.finish()


def find_ffmpeg() -> str:
    """The program's path; SetupError where it is not on the PATH."""
    found = shutil.which("ffmpeg")
    if found is None:
        raise SetupError("videos are read and written by ffmpeg, which is not on the PATH: apt install ffmpeg")
    return found


def _reading(path, level: str) -> list:
    return [find_ffmpeg(), "-hide_banner", "-v", level, "-nostats", "-nostdin", "-protocol_whitelist", "file", "-i",
            f"file:{Path(path).absolute()}"]


@contextlib.contextmanager
def _running(command: list, **pipes):
    """(process, function that gives the lines of its stderr once it has ended); it does not outlive the block."""
    with tempfile.TemporaryFile() as errors:
        def said() -> list:
            errors.seek(0)
            return errors.read().decode("utf-8", "replace").splitlines()
        process = subprocess.Popen(command, stderr=errors, **{"stdin": subprocess.DEVNULL, **pipes})
        try:
            yield process, said
        finally:
            process.kill()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
            process.wait()


def _reason(lines: list, path: str | Path = "") -> str:
    """": what ffmpeg said last", or ""; without the path, which the message has, and without its advice on options."""
    lines = [line.strip() for line in lines if line.strip() and not line.startswith("To ignore this")]
    return ": " + printable(lines[-1].replace(f"file:{Path(path).absolute()}: ", "")[-200:]) if lines else ""
