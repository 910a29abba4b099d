"""`jea inspect`: show what a checkpoint holds."""
from __future__ import annotations

import argparse
import json
import math
import os
from collections import Counter

from jea.checkpoint.detectors import detector_of
from jea.checkpoint.errors import shown
from jea.checkpoint.identity import KNOWN_BLOBS, git_blob_id
from jea.checkpoint.keymap import BUFFERS
from jea.checkpoint.reader import outline
from jea.checkpoint.scan import CLEAN, DANGEROUS, UNREADABLE, WORDS, scan_all
from jea.commands.common import console
from jea.errors import printable


def main(argv=None):
    """Return the exit status (commands/common/console.py) of `jea inspect FILE`: show what a checkpoint holds."""
    parser = argparse.ArgumentParser(
        prog="jea inspect", formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Show what a checkpoint holds: format, stored arguments, names, shapes and types.\n"
                    "Reads .pth, .safetensors, .npz and Jittor's .pkl; executes nothing that is in them.",
        epilog="examples:\n  jea inspect eanet_resnet101_voc.pth\n  jea inspect --scan downloads/")
    parser.add_argument("file", metavar="FILE", help="the checkpoint; with --scan also a folder")
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    parser.add_argument("--scan", action="store_true", help="say only whether unpickling it could do harm: "
                        "status 0 clean, 1 dangerous, 2 not readable")
    parser.add_argument("--no-ema", action="store_true", help="prefer the raw weights to the averaged ones")
    arguments = parser.parse_args(argv)
    return console.run("inspect", _scan if arguments.scan else _inspect, arguments)


def _inspect(arguments):
    checkpoint = outline(arguments.file, ema=not arguments.no_ema)
    rows, meta = _rows(checkpoint.tensors), as_json(checkpoint.meta)
    summary = {
        "path": checkpoint.path, "bytes": os.path.getsize(arguments.file), "format": checkpoint.format,
        "wrapper": checkpoint.wrapper, "tensors": len(rows),
        "parameters": parameter_count({key: tensor.shape for key, tensor in checkpoint.tensors.items()}),
        "git_blob": git_blob_id(arguments.file), "meta": meta, "notes": checkpoint.notes,
        "detector": detector_of({key: tensor.shape for key, tensor in checkpoint.tensors.items()}),
    }
    if arguments.json:
        print(json.dumps({**summary, "state": rows}, allow_nan=False))
        return
    counts = Counter(row["dtype"] for row in rows).most_common()
    types = ", ".join(f"{count} {dtype}" for dtype, count in counts)
    wrapper = f", under {shown(summary['wrapper'])!r}" if summary["wrapper"] else ""
    print(printable(arguments.file))
    print(f"  format      {summary['format']}{wrapper}, {summary['bytes']:,} bytes")
    print(f"  contents    {summary['tensors']:,} tensors ({types}), {summary['parameters']:,} parameters")
    if summary["detector"]:
        print(f"  detector    {summary['detector']}")
    known = KNOWN_BLOBS.get(summary["git_blob"])
    print(f"  git blob    {summary['git_blob']}{known and f': {known}' or ''}")
    for key, value in checkpoint.meta.items():
        print(f"  {shown(str(key), 40):<11} {shown(value if isinstance(value, str) else repr(value), 400)}")
    for note in checkpoint.notes:
        print(f"  note        {note}")
    width = min(60, max(len(row["key"]) for row in rows))
    print()
    for row in rows:
        strided = "" if row["contiguous"] else "strided"
        shared = f"shares memory with {shown(row['shared'], 60)}" if row["shared"] else ""
        remarks = "  ".join(filter(None, (strided, shared)))
        shape = "x".join(map(str, row["shape"])) or "scalar"
        print(f"  {shown(row['key'], 120):<{width}}  {shape:>14}  {row['dtype']:<8}  {remarks}".rstrip())


def _rows(tensors):
    owners, rows = {}, []
    for key, tensor in tensors.items():
        owner = owners.setdefault(tensor.storage_id, key) if tensor.storage_id is not None else key
        shared = None if owner == key else owner if len(owner) <= 60 else shown(owner, 60)  # many rows may repeat it
        rows.append({"key": key, "shape": list(tensor.shape), "dtype": tensor.dtype,
                     "contiguous": tensor.contiguous, "shared": shared})
    return rows


def parameter_count(shapes):
    """Numbers that a model learns: all but BatchNorm's statistics and the vectors of spectral normalisation, given
    {key: shape}."""
    return sum(math.prod(shape) for key, shape in shapes.items() if not key.endswith(BUFFERS))


def as_json(value):
    """Plain Python values as strict JSON can hold them: keys, NaN, infinity and complex numbers become texts."""
    if isinstance(value, dict):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [as_json(item) for item in value]
    if isinstance(value, complex) or isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


# -- --scan: the work is in jea/checkpoint/scan.py ---------------------------------------------------------------------

def _scan(arguments) -> int:
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
            _print_verdict(verdict)
    if is_folder and not arguments.json:
        print(f"{printable(arguments.file)}: {seen} files looked into, {skipped} of other kinds: {WORDS[status]}")
    if is_folder and not seen:
        return UNREADABLE
    return status


def _worse(one, other):
    return DANGEROUS if DANGEROUS in (one, other) else max(one, other)


def _print_verdict(verdict):
    kind = f" ({', '.join(verdict.formats)})" if verdict.formats else ""
    print(f"{printable(verdict.path)}: {WORDS[verdict.status]}{kind}")
    for text in (*verdict.findings, *verdict.problems[:20]):
        print(f"  {text}")
    listed = sorted(name for name, allowed in verdict.names.items() if allowed)
    if listed:
        more = f" and {len(listed) - 30} more" if len(listed) > 30 else ""
        print(f"  names {', '.join(listed[:30])}{more}")


if __name__ == "__main__":
    raise SystemExit(main())
