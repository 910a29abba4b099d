"""What a task finds in each frame of a video, drawn over it."""
from __future__ import annotations

from pathlib import Path
from typing import Callable

from jea.data.files.inputs import Input
from jea.data.files.video import look_at, read_frames, writing
from jea.data.loader import batched
from jea.progress import progress as progress_bar

_PIXELS = 2 ** 20  # of the frames that run together, at most; a larger frame runs alone
_TOGETHER = 8


def overlays(predict: Callable, path: Path, target: Path, *, progress: bool = True) -> int:
    """Write a video with what `predict` finds in each frame, the results' `overlay()`; returns the number of frames.

    predict: takes a list of Inputs, gives their results. A few frames are in memory at one time.
    """
    video = look_at(path)
    together = max(1, min(_TOGETHER, _PIXELS // (video.width * video.height)))
    count = 0
    with writing(target, video) as writer, \
            progress_bar(total=video.frames, title="frames", unit="frame", shown=progress) as bar:
        for batch in batched(read_frames(path, video), together):
            for result in predict([Input(frame, f"{path}, frame {count + k}") for k, frame in enumerate(batch)]):
                writer.write(result.overlay())
            count += len(batch)
            bar.update(len(batch))
    return count
