"""Says whether a file could do harm when a program unpickles it (`jea inspect --scan`). Nothing is unpickled.

Looked at are all pickles in a file, whatever they are named and wherever they stand: each of the several in an old
torch file, and each entry of an archive, also where its directory, flags or checksum make other readers give up. What
a pickle may name is the exact list of jea's own readers; anything else is dangerous.
"""
from __future__ import annotations

import os
import re
from dataclasses import dataclass, field

from jea.checkpoint.errors import Malformed, open_regular, reading, shown
from jea.checkpoint.reader import NOT_CHECKPOINTS, opened
from jea.checkpoint.readers import archive_entries
from jea.checkpoint.readers.jittor import SYMBOLS
from jea.checkpoint.readers.pickle_globals import walk
from jea.checkpoint.readers.safetensors import SafeTensors
from jea.checkpoint.readers.torch import is_legacy
from jea.checkpoint.readers.torch_tensors import TorchSource
from jea.errors import CheckpointError

CLEAN, DANGEROUS, UNREADABLE = 0, 1, 2
WORDS = {CLEAN: "clean", DANGEROUS: "dangerous", UNREADABLE: "not readable"}
_GETATTR = ("__builtin__", "getattr")
_PICKLES_BY_NAME = (".pkl", ".pickle", ".p")
_PLAIN_NUMBERS = re.compile(rb"\s*\{\s*'descr':\s*'[<>|=]?[biufc?]\d*'")
_MOST = 50  # findings of one file
_MOST_PICKLES = 1_000


@dataclass
class Verdict:
    """Tells what is known about one file: `findings` are dangers, `problems` reasons why it was not looked at whole."""

    path: str
    formats: list = field(default_factory=list)
    names: dict = field(default_factory=dict)  # "module.name" -> whether it is on the list
    findings: list = field(default_factory=list)
    problems: list = field(default_factory=list)

    @property
    def status(self):
        return DANGEROUS if self.findings else UNREADABLE if self.problems else CLEAN

    @property
    def is_checkpoint(self):
        """Tell whether it is of a format that can hold weights at all."""
        return bool(self.formats)


def scan(path):
    """Return the `Verdict` on a file."""
    verdict = Verdict(os.fspath(path))
    try:
        with reading(path), open_regular(path) as file:
            _scan_file(_Scanner(verdict, file))
    except CheckpointError as error:
        verdict.problems.append(error.problem)
    return verdict


def scan_all(path):
    """Yield the `Verdict` on a file, or on each file below a folder."""
    if not os.path.isdir(path):
        yield scan(path)
        return
    for folder, folders, names in os.walk(path):  # links to folders are not followed, so nothing is seen twice
        folders.sort()
        for name in sorted(names):
            if os.path.isfile(os.path.join(folder, name)):
                yield scan(os.path.join(folder, name))


def _scan_file(scanner):
    verdict, file = scanner.verdict, scanner.file
    size = file.seek(0, 2)
    file.seek(0)
    head = file.read(512)
    if not head:
        verdict.problems.append("is empty (0 bytes)")
        return
    for start, problem in NOT_CHECKPOINTS:
        if head.startswith(start) and start != b"\x93NUMPY":
            verdict.formats.append(start.decode("latin-1").strip("\x00\x1f\x8b\x89\xbc\xaf\xfd") or "gzip")
            verdict.problems.append(problem)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size - 8:
        verdict.formats.append("safetensors")
        file.seek(0)
        try:
            SafeTensors(file, size)
        except Malformed as error:
            verdict.problems.append(str(error))
    walks = scanner.pickles(0, size)
    # A zip archive begins with the opcode P and a line, up to the first line's end in it: whatever follows is an entry.
    is_pickle = walks and (walks[0].has_header or walks[0].names_something or walks[-1].end == size)
    if is_pickle and not head.startswith(b"PK\3\4"):
        verdict.formats.append("torch-legacy" if is_legacy(head) else "pickle")
    if head.startswith(b"\x93NUMPY"):
        verdict.formats.append("npy")
        scanner.array(0, size, head)
    if head[257:262] == b"ustar":
        verdict.formats.append("tar")
        for name, begin, end in archive_entries.of_tar(file, size):
            scanner.content(name, file, begin, end)
    if archive_entries.has_zip(file, size):
        verdict.formats.append("zip")
        scanner.zip(file, size)
    if len(verdict.formats) > 1:
        verdict.findings.append(f"is {len(verdict.formats)} formats at once ({', '.join(verdict.formats)}): what one "
                                f"program checks is not what another one loads")
    if not verdict.formats:
        verdict.problems.append(f"is of no format that can be looked into (it starts with {shown(head[:16])})")
    if scanner.uses_getattr:
        _check_getattr(verdict)
    del verdict.findings[_MOST:]


def _check_getattr(verdict):
    """`__builtin__.getattr` is on the list for one use, which the readers themselves check."""
    try:
        with opened(verdict.path):
            pass
    except CheckpointError as error:
        verdict.names["__builtin__.getattr"] = False
        verdict.findings.append(f"names __builtin__.getattr, which could call anything ({shown(error.problem, 200)})")


class _Scanner:
    """Collects into a Verdict what the parts of one file name."""

    def __init__(self, verdict, file):
        self.verdict, self.file, self.uses_getattr = verdict, file, False
        self._allowed = {*TorchSource().symbols(), *SYMBOLS}

    def pickles(self, begin, end, where="", file=None, must=False):
        """Walk over the pickles in a row from `begin` on, and return what was found."""
        walks = []
        while begin < end:
            walked = walk(file or self.file, begin, end)
            if not walked.is_pickle or len(walks) >= _MOST_PICKLES:
                break
            walks.append(walked)
            self._note(walked, where)
            if walked.problem:
                self.verdict.problems.append(f"{where}a pickle is damaged: {walked.problem}")
                break
            begin = walked.end
        if len(walks) >= _MOST_PICKLES:
            self.verdict.problems.append(f"{where}has over {_MOST_PICKLES:,} pickles in a row")
        if must and not walks:
            self.verdict.problems.append(f"{where}is no pickle that can be read")
        return walks

    def _note(self, walked, where):
        if not (walked.has_header or walked.names_something):
            return  # bytes that happen to be opcodes
        if walked.numbered:
            self.verdict.findings.append(f"{where}names something by a number (an EXT opcode), which could be anything")
        for pair in walked.names:
            text = f"{shown(pair[0])}.{shown(pair[1])}"
            known, allowed = text in self.verdict.names, pair in self._allowed
            self.verdict.names[text] = allowed
            self.uses_getattr = self.uses_getattr or pair == _GETATTR
            if not allowed and not known:
                self.verdict.findings.append(f"{where}names {text}, which is not on the list of what a checkpoint may "
                                             f"use")

    def array(self, begin, end, head, where="", file=None):
        """An .npy file: of an array of objects, the content is a pickle."""
        length = int.from_bytes(head[8:10], "little") + 10 if head[6:7] == b"\1" else \
            int.from_bytes(head[8:12], "little") + 12
        if _PLAIN_NUMBERS.match(head[10 if head[6:7] == b"\1" else 12:]):
            return
        self.pickles(min(begin + length, end), end, where, file)

    def content(self, name, file, begin, end, depth=0):
        """One entry of an archive, whatever it is called."""
        where = f"{shown(name)!r}: "
        file.seek(begin)
        head = file.read(min(512, end - begin))
        if head.startswith(b"\x93NUMPY"):
            self.array(begin, end, head, where, file)
        elif head.startswith(b"PK\x03\x04") and depth < 3:
            self.zip(archive_entries.part(file, begin, end), end - begin, depth + 1)
        else:
            self.pickles(begin, end, where, file, must=name.lower().endswith(_PICKLES_BY_NAME))

    def zip(self, file, size, depth=0):
        for entry in archive_entries.of_zip(file, size, self.verdict):
            self.content(entry.name, entry.file, entry.begin, entry.end, depth)
