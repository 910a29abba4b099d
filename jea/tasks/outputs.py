"""What a run over a user's own files writes: nothing over anything else, nothing lost to one bad file."""
from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Iterator, Sequence

from jea.data.files.inputs import PICTURES
from jea.data.files.video import is_video
from jea.errors import DataError
from jea.files import identity, write_bytes
from jea.progress import progress as progress_bar
from jea.results.video import overlays

_REST = 20  # the list is written again after this many times as long as writing it took


def predict_files(task, path, folder, *, progress: bool = True) -> dict:
    """Run a task on a file or a folder of files (`jea test --input`); returns what was found, see Outputs.result."""
    if is_video(path) and task.takes is not None:
        return overlay_video(task, Path(path).expanduser(), folder, progress=progress)
    inputs = task.list_inputs(path)
    return task.predict_files(inputs, Outputs(folder, inputs), progress=progress)


def overlay_video(task, path: Path, folder, *, progress: bool = True) -> dict:
    """Run a task on the frames of a video and write <name>_overlay.mp4: the frames with what was found in each."""
    if task.takes is not PICTURES:
        raise DataError(f"{path}: is a video; {task.name} takes a {task.takes.unit}")
    outputs = Outputs(folder, [path])
    task.prepare_prediction()
    for item in outputs.each(("_overlay.mp4",), unit="video", progress=False):
        with item:
            frames = overlays(task.predict, path, item.path("_overlay.mp4"), progress=progress)
            item.found(prediction=str(item.path("_overlay.mp4")))
    return {"videos": 1, "frames": frames, "files": outputs.entries}


class Outputs:
    """The files that are made of some inputs, in one folder.

        for item in outputs.each((".png", "_overlay.png"), unit="picture"):
            with item:                              # a DataError in here is noted, and the next input comes
                picture = read_image(item.input)
                write_image(item.path(".png"), ...)
                item.found(prediction=..., classes=...)
        return outputs.result("images")

    Args:
        folder: where to write; it is made.
        inputs: the files to read, none of which is written over. Where there is only one, what is wrong with it is
        raised.
    """

    def __init__(self, folder, inputs: Sequence):
        self.folder, self.inputs = Path(folder), [Path(path) for path in inputs]
        self.entries: list[dict] = []
        self.failed: list[dict] = []
        self.list: Path | None = None
        self._write_next = 0.0

    def keep_as(self, name: str) -> None:
        """Also write all that was found to a JSON file of this name, as it comes."""
        self.list = self.folder / name

    def each(self, suffixes: Sequence[str], *, unit: str, progress: bool = True) -> Iterator[Item]:
        """Go through the inputs. `suffixes`: the ends of the names of the files that each of them becomes.

        DataError, before anything is written, where a file would be written over an input.
        """
        stems = self._stems(suffixes)
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            for path, stem in progress_bar(list(zip(self.inputs, stems)), title=f"{unit}s", unit=unit, shown=progress):
                yield Item(self, path, stem)
        finally:
            if self.list and self.entries:
                self._write_list()

    def result(self, what: str) -> dict:
        """{what: number of inputs that succeeded, "files": [...], and where some failed "failed": [{input,
        reason}]}."""
        return {what: len(self.entries), "files": self.entries, **({"failed": self.failed} if self.failed else {})}

    def _stems(self, suffixes: Sequence[str]) -> list[str]:
        """A name for each input, none of whose outputs is another's: a, or a.jpg beside a.png, or a.jpg-2."""
        inputs = {identity(path): path for path in self.inputs}
        taken: set[str] = set() if self.list is None else {self.list.name.casefold()}
        stems = []
        for path in self.inputs:
            names = (path.stem, path.name, *(f"{path.name}-{k}" for k in range(2, len(self.inputs) + 2)))
            stem = next(name for name in names
                        if taken.isdisjoint(f"{name}{suffix}".casefold() for suffix in suffixes))
            taken.update(f"{stem}{suffix}".casefold() for suffix in suffixes)
            stems.append(stem)
            for suffix in suffixes:
                self._spare(inputs, self.folder / f"{stem}{suffix}", path)
        if self.list:
            self._spare(inputs, self.list, None)
        return stems

    @staticmethod
    def _spare(inputs: dict, target: Path, source: Path | None) -> None:
        if identity(target) in inputs:
            said = f"{source}: its prediction" if source else "the list of results"
            raise DataError(f"{said} would overwrite the input {inputs[identity(target)]}; choose another --out")

    def _write_list(self) -> None:
        started = time.monotonic()
        write_bytes(self.list, json.dumps(self.entries, indent=1).encode())
        ended = time.monotonic()
        self._write_next = ended + _REST * (ended - started)

    def _add(self, entry: dict) -> None:
        self.entries.append(entry)
        if self.list and time.monotonic() >= self._write_next:
            self._write_list()

    def _failed(self, path: Path, error: DataError) -> bool:
        """Note what is wrong with an input; whether to go on."""
        reason, name = str(error), str(path)
        self.failed.append({"input": name,
                            "reason": reason[len(name):].lstrip(":, ") if reason.startswith(name) else reason})
        return len(self.inputs) > 1


class Item:
    """One input and the names of its outputs. In a `with` block a DataError belongs to the input."""

    def __init__(self, outputs: Outputs, path: Path, stem: str):
        self.outputs, self.input, self.stem = outputs, path, stem

    def path(self, suffix: str) -> Path:
        """The output with one of the suffixes."""
        return self.outputs.folder / f"{self.stem}{suffix}"

    def found(self, **values) -> None:
        """Keep what was found: texts (files that were written), numbers, and {name: share}."""
        self.outputs._add({"input": str(self.input), **values})

    def __enter__(self) -> Item:
        return self

    def __exit__(self, kind, error, trace) -> bool:
        return isinstance(error, DataError) and self.outputs._failed(self.input, error)
