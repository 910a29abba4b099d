"""What all results share: a picture in a notebook, one line as text, files on the disk."""
from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Callable

import numpy as np
from PIL import Image

from jea.data.files.inputs import Input
from jea.data.files.pictures import WRITTEN, write_image
from jea.errors import ConfigError, DataError, SetupError, printable
from jea.files import identity, write_bytes


class Result:
    """What a task found in one input. A subclass has `entry`, `picture`, `write_files` and `words`.

    Class attributes: suffixes: the ends of the names of the files that `test.py --input` makes of an input. list_name:
    the file in which it lists all inputs, or None. writers: {suffix: name of the method that makes the bytes of such a
    file}, beside pictures and .json.
    """

    suffixes: tuple = (".png",)
    list_name: str | None = None
    writers: dict = {}

    def __init__(self, input: Input):
        self.source, self.name = input.source, input.name

    def entry(self) -> dict:
        """What was found, as lists of results and JSON have it."""
        raise NotImplementedError

    def picture(self) -> np.ndarray:
        """A picture of what was found, (h, w, 3) uint8; notebooks show it."""
        raise NotImplementedError

    def write_files(self, path: Callable[[str], Path]) -> dict:
        """Write what `test.py --input` writes, to path(suffix) for each of `suffixes`; returns what the list says."""
        write_image(path(".png"), self.picture())
        return {"prediction": str(path(".png")), **self.entry()}

    def words(self) -> str:
        """What was found in a few words, for `print`."""
        raise NotImplementedError

    def save(self, path) -> Path:
        """Write the result; the suffix says as what. Returns the path.

            .png, .jpg, ...  the picture
            .json            what was found, in numbers and names
            others           as the class says in its first lines
            a folder         what `test.py --input` writes, under the input's name; it is made

        UserError: another suffix, a place that cannot be written, the input itself.
        """
        path = Path(path).expanduser()
        suffix = "" if path.is_dir() else path.suffix.lower()
        try:
            if not suffix:
                self._save_folder(path)
                return path
            self._spare(path)
            if suffix == ".json":
                write_bytes(path, json.dumps({"input": self.name, **self.entry()}, indent=1).encode())
            elif suffix in self.writers:
                write_bytes(path, getattr(self, self.writers[suffix])())
            elif suffix in WRITTEN:
                write_image(path, self.picture())
            else:
                expected = ", ".join((*WRITTEN, ".json", *self.writers))
                raise ConfigError(f"{path}: a result is not written as {suffix}; expected {expected}, or a folder")
        except OSError as error:
            raise SetupError(f"{path}: cannot be written: {error.strerror or error}") from None
        return path

    def _save_folder(self, folder: Path) -> None:
        stem = self.source.stem if self.source else self.name.replace(" ", "-")
        files = {suffix: folder / f"{stem}{suffix}" for suffix in (*self.suffixes, ".json")}
        for file in files.values():
            self._spare(file)
        folder.mkdir(parents=True, exist_ok=True)
        found = self.write_files(files.__getitem__)
        write_bytes(files[".json"], json.dumps({"input": self.name, **found}, indent=1).encode())

    def _spare(self, target: Path) -> None:
        if self.source is not None and identity(target) == identity(self.source):
            raise DataError(f"{target}: is the input of this result and is not written over; choose another name")

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(self.picture()).save(buffer, "PNG")
        return buffer.getvalue()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({printable(self.source.name if self.source else self.name)}: {self.words()})"


def shares_text(shares: dict, digits: int = 1) -> str:
    """{"cat": 0.9} -> "cat 90.0%"."""
    return ", ".join(f"{name} {share:.{digits}%}" for name, share in shares.items())
