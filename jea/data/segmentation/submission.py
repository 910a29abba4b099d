"""Predictions as files, in the form that a benchmark's server takes."""
from __future__ import annotations

import io
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Sequence

import numpy as np

from jea.data.files.labels import encode_index_png
from jea.files import write_bytes


@dataclass(frozen=True)
class Submission:
    """Where predictions of pictures without labels go, and in which values.

    folder: below the output folder; holds <id>.png.
    archive: name of a .tar or .zip beside it with all of them, or None.
    inside: folder of the files inside of the archive; "" for none.
    values: value in the file of each class; None: the class's index. Then the files are grey instead of coloured.
    """

    folder: str = "predictions"
    archive: str | None = None
    inside: str = ""
    values: tuple[int, ...] | None = None

    def write(self, out_dir: Path, id: str, prediction: np.ndarray, palette: np.ndarray) -> Path:
        """Write one prediction, (H, W) class indices; returns the file."""
        path = Path(out_dir) / self.folder / f"{id}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.values is not None:
            prediction = np.array(self.values, np.uint8)[prediction]
        write_bytes(path, encode_index_png(prediction, palette, grey=self.values is not None))
        return path

    def pack(self, out_dir: Path, ids: Sequence[str]) -> Path:
        """Write the archive; returns it, or the folder where the server takes none. Equal content, equal archive."""
        out_dir, folder = Path(out_dir), Path(out_dir) / self.folder
        if self.archive is None:
            return folder
        files = [(f"{self.inside}/{id}.png".lstrip("/"), (folder / f"{id}.png").read_bytes()) for id in ids]
        stream = io.BytesIO()
        if self.archive.endswith(".tar"):
            with tarfile.open(fileobj=stream, mode="w") as tar:
                for name, data in files:
                    member = tarfile.TarInfo(name)  # no time, no user
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
        else:
            with zipfile.ZipFile(stream, "w") as archive:  # PNGs do not shrink further
                for name, data in files:
                    archive.writestr(zipfile.ZipInfo(name), data)
        write_bytes(out_dir / self.archive, stream.getvalue())
        return out_dir / self.archive
