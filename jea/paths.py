"""Where configs and bundled weights are: in the checkout, or beside an installed wheel (setup.py, data_files)."""
from __future__ import annotations

import site
import sys
from pathlib import Path

_AROUND = Path(__file__).resolve().parent.parent  # the checkout, site-packages or a --target folder


def shared_folder(name: str) -> Path:
    """The folder "configs" or "weights"."""
    if (_AROUND / "setup.py").is_file():
        return _AROUND / name
    places = [base / "share" / "jea" / name for base in (Path(sys.prefix), _AROUND, Path(site.getuserbase()))]
    return next((place for place in places if place.is_dir()), places[0])


def find_config(name: str) -> Path:
    """A config by path, or by its name in configs/ with or without .yaml."""
    path = Path(name)
    if path.is_file():
        return path
    for candidate in (shared_folder("configs") / path.name, shared_folder("configs") / f"{path.name}.yaml"):
        if candidate.is_file():
            return candidate
    return path  # config.load says that it is not there
