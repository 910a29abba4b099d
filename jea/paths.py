"""Where configs and bundled weights are: in the checkout, or beside an installed wheel (setup.py, data_files)."""
from __future__ import annotations

import sys
from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parent.parent
_INSTALLED = Path(sys.prefix) / "share" / "jea"


def shared_folder(name: str) -> Path:
    """The folder "configs" or "weights"."""
    here = _CHECKOUT / name
    return here if here.is_dir() and (_CHECKOUT / "setup.py").is_file() else _INSTALLED / name


def find_config(name: str) -> Path:
    """A config by path, or by its name in configs/ with or without .yaml."""
    path = Path(name)
    if path.is_file():
        return path
    for candidate in (shared_folder("configs") / path.name, shared_folder("configs") / f"{path.name}.yaml"):
        if candidate.is_file():
            return candidate
    return path  # config.load says that it is not there
