"""`jea inspect --scan FILE|FOLDER`: whether unpickling could do harm. The work is in jea/checkpoint/scan.py."""
from __future__ import annotations

import json
import os

from jea.checkpoint.scan import CLEAN, DANGEROUS, UNREADABLE, WORDS, scan_all
from jea.errors import printable


def run(arguments) -> int:
    """Print a line for each file and what was found in it; return the worst verdict: 1 dangerous, 2 not readable, 0."""
    is_folder, seen, skipped, status = os.path.isdir(arguments.file), 0, 0, CLEAN
    for verdict in scan_all(arguments.file):
        if is_folder and not verdict.is_checkpoint and not verdict.findings:
            skipped += 1
            continue
        seen += 1
        status = _worse(status, verdict.status)
        if arguments.json:
            print(json.dumps({"path": verdict.path, "verdict": WORDS[verdict.status], "formats": verdict.formats,
                              "globals": verdict.names, "findings": verdict.findings, "problems": verdict.problems}))
        else:
            _print(verdict)
    if is_folder and not arguments.json:
        print(f"{printable(arguments.file)}: {seen} files looked into, {skipped} of other kinds: {WORDS[status]}")
    if is_folder and not seen:
        return UNREADABLE
    return status


def _worse(one, other):
    return DANGEROUS if DANGEROUS in (one, other) else max(one, other)


def _print(verdict):
    kind = f" ({', '.join(verdict.formats)})" if verdict.formats else ""
    print(f"{printable(verdict.path)}: {WORDS[verdict.status]}{kind}")
    for text in (*verdict.findings, *verdict.problems[:20]):
        print(f"  {text}")
    listed = sorted(name for name, allowed in verdict.names.items() if allowed)
    if listed:
        more = f" and {len(listed) - 30} more" if len(listed) > 30 else ""
        print(f"  names {', '.join(listed[:30])}{more}")
