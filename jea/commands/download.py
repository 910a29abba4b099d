"""`jea download`: fetch a published file, check it, and say the command that uses it."""
from __future__ import annotations

import argparse
from pathlib import Path

from jea.commands.common import console
from jea.downloads import index
from jea.errors import ConfigError, SetupError


def main(argv=None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="jea download", description="Fetch published weights that the pages name, go on where an earlier attempt "
        "broke off, and compare size and checksum. What is there already is checked. Where no checksum is published "
        "the first download's is recorded. Proxies are those of the environment (https_proxy).",
        epilog="example: jea download eanet_voc")
    parser.add_argument("name", nargs="?", metavar="NAME", help="what to fetch; --list shows the names")
    parser.add_argument("--list", action="store_true", help="show what can be fetched, and what is there")
    parser.add_argument("--to", metavar="FOLDER", help="where to put it (default: weights/ of the checkout, else "
                                                       "weights in JEA_HOME)")
    parser.add_argument("--dry-run", action="store_true", help="say what would be fetched and where it would go")
    return console.run("download", _download, parser.parse_args(argv))


def _download(arguments) -> int:
    entries = index.read_index()
    folder = Path(arguments.to).expanduser() if arguments.to else index.weights_folder()
    if arguments.list:
        _show(entries, folder)
        return 0
    if arguments.name is None:
        raise ConfigError(f"say what to fetch; there are {', '.join(entries)} (`jea download --list`)")
    item = index.find(entries, arguments.name)
    target = folder / item.file
    if target.exists():
        said = index.verify(item, target, check_readable)
        print(f"{target}: is there already; {said}")
    elif arguments.dry_run:
        print(f"dry run: would fetch {item.url} to {target}" if item.url else item.hand_work(target))
    elif not item.url:
        raise SetupError(f"{item.name}: no program can fetch it from where it is published. {item.hand_work(target)}")
    else:
        from jea.downloads.transfer import fetch
        said = fetch(item, target, check=check_readable)
        print(f"{target}: {target.stat().st_size / 2 ** 20:.1f} MB; {said}")
    print(f"use it: {item.command(target)}")
    return 0


def check_readable(path: Path) -> None:
    """CheckpointError unless all tensors of a file are there."""
    from jea.checkpoint import outline
    outline(path)


def _show(entries: dict, folder: Path) -> None:
    width = max(map(len, entries))
    for item in entries.values():
        known = "no checksum published" if item.checksum is None else item.checksum[0]
        state = "there" if (folder / item.file).exists() else "by hand" if not item.url else ""
        print(f"{item.name:{width}}  {item.size_text:>9}  {known:21}  {state:7}  {item.what}")
    print(f"\njea download NAME puts it into {folder}")


if __name__ == "__main__":
    raise SystemExit(main())
