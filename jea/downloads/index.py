"""Which published files there are, and what is known of each: the part `downloads` of weights/index.yaml."""
from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Callable
from urllib.parse import urlsplit

from jea.errors import ConfigError, SetupError, nearest, quoted, shortened
from jea.files import jea_home, shared_folder, write_bytes
from jea.reading import check_regular, read_file, read_yaml

LOCAL = ("localhost", "127.0.0.1", "::1")
CHECKSUMS = {"sha256": 64, "sha1": 40, "git_blob": 40}  # hexadecimal digits
_SHORTEST = 8  # digits of a checksum that is published only in part, as in the names of torchvision's files
_KEYS = {"what": str, "file": str, "source": str, "url": str, "size": int, "megabytes": float, "largest_mb": int,
         **dict.fromkeys(CHECKSUMS, str), "use": str, "by_hand": str}
_NEEDED = ("what", "file", "source", "use")
_MAX_RECORDS = 1024 * 1024  # bytes of downloads.json


@dataclass(frozen=True)
class Published:
    """A file that somebody has published.

    what: in words. file: its name in the folder of weights. source: the page that names it. use: the command that takes
    it, "{file}" being its path.
    url: where a program can fetch it; "" where it cannot, and then by_hand says what to do.
    size: its bytes, where they are published; megabytes: or these, of 2^20 bytes, to three digits. most: no more bytes
    are read. checksum: (kind, digits) with a kind of CHECKSUMS, of sha256 perhaps the first digits alone; or None.
    """

    name: str
    what: str
    file: str
    source: str
    use: str
    url: str = ""
    by_hand: str = ""
    size: int | None = None
    megabytes: float | None = None
    most: int = 0
    checksum: tuple[str, str] | None = None

    def fits(self, size: int) -> bool:
        """Whether a file of this many bytes can be it."""
        if self.size is not None:
            return size == self.size
        if self.megabytes is not None:
            return abs(size / 2 ** 20 - self.megabytes) < 0.001
        return 0 < size <= (self.most or size)

    @property
    def size_text(self) -> str:
        if self.size is not None:
            return f"{self.size / 2 ** 20:.1f} MB"
        return f"{self.megabytes:.1f} MB" if self.megabytes is not None else "?"

    def hand_work(self, target: Path) -> str:
        """What a person can do where the program cannot fetch it."""
        do = self.by_hand or f"fetch {self.url} with a browser (it is named at {self.source})"
        return f"By hand: {do}, and put it at {target}; `jea download {self.name}` then checks it"

    def command(self, target: Path) -> str:
        return self.use.replace("{file}", str(target))


def read_index(path: Path | None = None) -> dict[str, Published]:
    """The published files by name. path: default weights/index.yaml."""
    path = shared_folder("weights") / "index.yaml" if path is None else path
    content = read_yaml(path, what="index of weights")
    entries = content.get("downloads") if isinstance(content, dict) else None
    if not isinstance(entries, dict):
        raise ConfigError(f"{path}: has no part `downloads`; is it weights/index.yaml of this version?")
    return {name: _published(name, entry, f"{path}: downloads.{shortened(name)}") for name, entry in entries.items()}


def _published(name: str, entry: dict, where: str) -> Published:
    if not isinstance(entry, dict) or not isinstance(name, str) or not re.fullmatch(r"[\w.-]+", name):
        raise ConfigError(f"{where}: expected a name of letters, digits, - and _ with a block of key: value lines")
    for key, value in entry.items():
        kind = _KEYS.get(key)
        if kind is None:
            raise ConfigError(f"{where}: unknown key {quoted(key)}{nearest(key, _KEYS)}")
        if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind):
            raise ConfigError(f"{where}.{key}: is {quoted(value)}; expected {kind.__name__}")
    missing = [key for key in _NEEDED if not entry.get(key)] + ["url or by_hand"] * (
        not entry.get("url") and not entry.get("by_hand"))
    if missing:
        raise ConfigError(f"{where}: lacks {', '.join(missing)}")
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", entry["file"]):
        raise ConfigError(f"{where}.file: is {quoted(entry['file'])}; expected the name of a file, without a folder")
    if entry.get("url"):
        parts = urlsplit(entry["url"])
        if not (parts.scheme == "https" or parts.scheme == "http" and parts.hostname in LOCAL) or not parts.hostname:
            raise ConfigError(f"{where}.url: is {quoted(entry['url'])}; expected https://...")
    found = [(kind, entry[kind].lower()) for kind in CHECKSUMS if kind in entry]
    for kind, digits in found:
        shortest = _SHORTEST if kind == "sha256" else CHECKSUMS[kind]
        if not re.fullmatch(r"[0-9a-f]+", digits) or not shortest <= len(digits) <= CHECKSUMS[kind]:
            raise ConfigError(f"{where}.{kind}: is {quoted(digits)}; expected {CHECKSUMS[kind]} hexadecimal digits")
    size, megabytes, largest = (entry.get(key) for key in ("size", "megabytes", "largest_mb"))
    most = size or (int((megabytes + 0.001) * 2 ** 20) if megabytes else (largest or 0) * 2 ** 20)
    if entry.get("url") and most <= 0:
        raise ConfigError(f"{where}: lacks size, megabytes or largest_mb: how much is read at most")
    return Published(name, entry["what"], entry["file"], entry["source"], entry["use"], entry.get("url", ""),
                     entry.get("by_hand", ""), size, megabytes, most, found[0] if found else None)


def find(index: dict[str, Published], name: str) -> Published:
    """An entry by its name or by the name of its file."""
    by_file = {item.file: item for item in index.values()}
    if name not in index and name not in by_file:
        raise ConfigError(f"{shortened(name)}: no such download{nearest(name, index)}; there are {', '.join(index)} "
                          "(`jea download --list`)")
    return index.get(name) or by_file[name]


def weights_folder() -> Path:
    """Where downloads go: weights/ of a checkout, else weights in jea_home()."""
    folder = shared_folder("weights")
    return folder if (folder.parent / "setup.py").is_file() and os.access(folder, os.W_OK) else jea_home() / "weights"


# -- checksums --------------------------------------------------------------------------------------------------------

def digests(path: Path) -> dict[str, str]:
    """The checksums of a file, of all kinds, read once."""
    size = check_regular(path, error=SetupError, what="download")
    found = {"sha256": hashlib.sha256(), "sha1": hashlib.sha1(), "git_blob": hashlib.sha1(b"blob %d\0" % size)}
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            for digest in found.values():
                digest.update(block)
    return {kind: digest.hexdigest() for kind, digest in found.items()}


def verify(item: Published, path: Path, check: Callable[[Path], None] | None = None) -> str:
    """How a file was recognised, in words. SetupError where it is another one than what was published, or, where no
    checksum is, than what was fetched first; that one is recorded, unless `check`, given the file, raises something."""
    size = check_regular(path, error=SetupError, what="download")
    if not item.fits(size):
        expected = f"{item.size:,} bytes" if item.size is not None else \
            f"{item.megabytes} MB" if item.megabytes is not None else f"at most {item.most:,} bytes"
        raise SetupError(f"{path}: has {size:,} bytes; {item.name} has {expected}")
    found = digests(path)
    if item.checksum:
        kind, wanted = item.checksum
        if not found[kind].startswith(wanted):
            raise SetupError(f"{path}: its {kind} is {found[kind]}; expected {wanted}{' ...' * (len(wanted) < 40)}, as "
                             f"published: it is not {item.name}")
        if check:
            check(path)
        return f"its {kind} is the published one" if len(wanted) == CHECKSUMS[kind] else \
            f"the first {len(wanted)} digits of its {kind} are the published ones"
    records = _records()
    before = records.get(item.name)
    if before is None:
        if check:
            check(path)
        _write_records({**records, item.name: {"sha256": found["sha256"], "size": size, "url": item.url}})
        return (f"no checksum is published; its sha256, {found['sha256']}, is recorded in {_record_file()} and "
                "compared from now on")
    if before.get("sha256") != found["sha256"]:
        raise SetupError(f"{path}: its sha256 is {found['sha256']}, and was {shortened(before.get('sha256'))} at the "
                         f"first download: it was published anew, or is not the file. To take it, remove {item.name} "
                         f"from {_record_file()}")
    if check:
        check(path)
    return "no checksum is published; its sha256 is that of the first download"


def _record_file() -> Path:
    return jea_home() / "downloads.json"


def _records() -> dict:
    """name -> what was recorded of its first download; a file that cannot be read holds none."""
    try:
        found = json.loads(read_file(_record_file(), limit=_MAX_RECORDS, error=ValueError))
    except (ValueError, RecursionError):
        return {}
    return {name: entry for name, entry in found.items() if isinstance(entry, dict)} if isinstance(found, dict) else {}


def _write_records(records: dict) -> None:
    path = _record_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, (json.dumps(records, indent=1, sort_keys=True) + "\n").encode())
