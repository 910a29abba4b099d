"""Fetches a published file over HTTP: goes on after breaks, never trusts what a server says, writes atomically."""
from __future__ import annotations

import contextlib
import errno
import http.client
import ipaddress
import os
import re
import shutil
import socket
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Callable, Iterator, NamedTuple
from urllib.parse import quote, urljoin, urlsplit

from jea.downloads.index import Published, verify
from jea.errors import SetupError, UserError, shortened
from jea.progress import progress

ATTEMPTS = 6  # connections that break off, or are refused for now, until a person is asked to try again
TIMEOUT = 30.0  # seconds without a byte
SLOWEST, WINDOW = 1000, 60.0  # bytes a second, over so many seconds
_REDIRECTS = 10
_BLOCK = 1 << 18
_MB = 1 << 20
_LATER = (408, 425, 429, 500, 502, 503, 504)  # statuses after which a later attempt may succeed


class _Broken(Exception):
    """A connection that failed or ended too early; what has come stays. hopeless: trying again at once is of no use."""

    def __init__(self, message: str, hopeless: bool = False):
        super().__init__(message)
        self.hopeless = hopeless


class _Refused(Exception):
    """An answer that will not become better; what has come is of no use."""


class _Limits(NamedTuple):
    timeout: float
    slowest: float
    window: float


def fetch(item: Published, target: Path, *, check: Callable[[Path], None] | None = None, shown: bool = True,
          timeout: float = TIMEOUT, slowest: float = SLOWEST, window: float = WINDOW,
          sleep: Callable[[float], None] = time.sleep) -> str:
    """Download a file to `target`, or go on with it, and return in words how it was recognised.

    What has come so far is `target` with ".part" at its end, so that a later call goes on. It becomes `target` in one
    step, after its size and checksum were compared and `check`, given the file, has raised nothing.

    Raises:
        SetupError: no network, a server that breaks off, stalls or sends something else, no space; says what to do by
            hand. Nothing is at `target` then, and nothing but an unbroken beginning in the part.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    limits = _Limits(timeout, slowest, window)
    with _alone(part, item):
        try:
            resumed = _fetch_part(item, part, limits, shown, sleep)
            try:
                said = verify(item, part, check)
            except UserError:
                _remove(part)
                if not resumed:
                    raise
                _fetch_part(item, part, limits, shown, sleep)  # the beginning may have been another file's
                said = verify(item, part, check)
        except (_Broken, _Refused, UserError, OSError) as error:
            if isinstance(error, UserError):
                _remove(part)
            words = getattr(error, "strerror", None) or str(error)
            raise SetupError(f"{item.name}: {words.replace(str(part), str(target))}. {item.hand_work(target)}"
                             ) from None
        os.replace(part, target)
        _remove(part)
    return said


def _remove(part: Path) -> None:
    for path in (part, _tag(part)):
        path.unlink(missing_ok=True)


def _fetch_part(item: Published, part: Path, limits: _Limits, shown: bool, sleep) -> bool:
    """Fill the part; whether it was begun by an earlier call."""
    begun = _size(part)
    if begun and (begun > item.most or not item.checksum and not _tag(part).exists()):
        _remove(part)  # nothing tells whether the rest belongs to it
        begun = 0
    if begun and item.size == begun:
        return True
    for attempt in range(ATTEMPTS):
        if attempt:
            sleep(min(2.0 ** (attempt - 1), 8.0))
        try:
            _one_connection(item, part, limits, shown)
            return begun > 0
        except _Refused:
            _remove(part)
            raise
        except _Broken as error:
            problem = error
            if error.hopeless:
                break
    done = _size(part)
    kept = f"; {done / _MB:.1f} MB have come and are kept: run it again to go on" if done else ""
    raise _Broken(f"{problem}{kept}")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _one_connection(item: Published, part: Path, limits: _Limits, shown: bool) -> None:
    """Ask for what is missing and append it; returns when all is there."""
    offset = _size(part)
    headers = {"User-Agent": "jea", "Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
        if _tag(part).exists():
            headers["If-Range"] = _tag(part).read_text(encoding="ascii", errors="ignore")[:400]
    host = _host(item.url)
    try:
        response = _open(item, headers, limits.timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and offset:
            total = re.fullmatch(r"bytes \*/(\d{1,18})", error.headers.get("Content-Range", ""))
            if total and int(total[1]) == offset:
                return  # the part is the whole
            _remove(part)
            raise _Broken(f"{host} has no such part of the file") from None
        raise _Broken(f"{host} answers {error.code} {shortened(str(error.reason), 60)}", error.code not in _LATER
                      ) from None
    except (OSError, http.client.HTTPException, ValueError) as error:  # URLError is an OSError
        reason = getattr(error, "reason", None) or error
        words = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
        # No network, or no such host: waiting does not help.
        raise _Broken(f"cannot reach {host} ({shortened(words, 200)})", isinstance(reason, socket.gaierror)) from None
    with response:
        offset, total = _place(item, response, offset)
        _remember(part, response)
        free = shutil.disk_usage(part.parent).free
        if total is not None and total - offset > free:
            raise OSError(errno.ENOSPC, f"{(total - offset) / _MB:.0f} MB are missing, and {part.parent} has room for "
                                        f"{free / _MB:.0f}")
        with open(part, "r+b" if offset else "wb", buffering=0) as file:
            file.seek(offset)
            file.truncate()
            for block in _blocks(response, item, offset, total, limits, shown):
                file.write(block)
    if _size(part) < (total or item.size or 0):
        raise _Broken(f"{host} breaks off")


def _place(item: Published, response, offset: int) -> tuple:
    """(where the answer begins, the size of the whole or None)."""
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding not in ("", "identity"):
        raise _Refused(f"{_host(item.url)} sends the file packed as {shortened(encoding, 40)}")
    kind = response.headers.get_content_type()
    if kind in ("text/html", "application/xhtml+xml"):
        raise _Refused(f"{_host(item.url)} sends a web page instead of the file")
    length = response.headers.get("Content-Length", "")
    length = int(length) if re.fullmatch(r"\d{1,18}", length) else None
    if response.status == 206:
        found = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", response.headers.get("Content-Range", ""))
        if not found or int(found[1]) != offset:
            raise _Refused(f"{_host(item.url)} sends another part of the file than was asked for")
        total = int(found[3]) if found[3] != "*" else None
    elif response.status == 200:
        offset, total = 0, length
    else:
        raise _Refused(f"{_host(item.url)} answers {response.status}")
    if total is not None and (not item.fits(total) or total < offset):
        expected = item.size_text if item.size_text != "?" else f"at most {item.most / _MB:.0f} MB"
        raise _Refused(f"{_host(item.url)} offers {total:,} bytes; the file has {expected}")
    return offset, total


def _blocks(response, item: Published, done: int, total: int | None, limits: _Limits, shown: bool) -> Iterator[bytes]:
    """What comes, until the end or the limit; _Broken for what stalls or breaks."""
    bar = progress(total=-(-(total or item.size or item.most) // _MB), initial=done // _MB, title=item.name, unit="MB",
                   shown=shown)
    begun, got = time.monotonic(), 0
    try:
        while total is None or done < total:
            try:
                block = response.read1(_BLOCK)
            except (OSError, http.client.HTTPException) as error:
                raise _Broken(f"{_host(item.url)} breaks off ({shortened(str(error) or type(error).__name__, 100)})"
                              ) from None
            if not block:
                return
            if done + len(block) > item.most:
                raise _Refused(f"{_host(item.url)} sends more than the {item.most:,} bytes that the file has at most")
            yield block
            bar.update((done + len(block)) // _MB - done // _MB)
            done, got = done + len(block), got + len(block)
            now = time.monotonic()
            if now - begun > limits.window:
                if got < limits.slowest * (now - begun):
                    raise _Broken(f"{_host(item.url)} sends {got / (now - begun):.0f} bytes a second", hopeless=True)
                begun, got = now, 0
    finally:
        bar.close()


# -- connections ------------------------------------------------------------------------------------------------------

class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *arguments):
        return None  # becomes an HTTPError, whose address `_open` judges


def _open(item: Published, headers: dict, timeout: float):
    """The answer of the last server in a chain of redirects. Proxies are those of the environment (http_proxy ...)."""
    opener = urllib.request.OpenerDirector()
    for handler in (urllib.request.ProxyHandler(), urllib.request.HTTPHandler(), urllib.request.HTTPSHandler(),
                    urllib.request.HTTPErrorProcessor(), urllib.request.HTTPDefaultErrorHandler(), _NoRedirects(),
                    urllib.request.UnknownHandler()):
        opener.add_handler(handler)
    url = item.url
    for _ in range(_REDIRECTS):
        try:
            return opener.open(urllib.request.Request(url, headers=headers), timeout=timeout)
        except urllib.error.HTTPError as error:
            if error.code not in (301, 302, 303, 307, 308):
                raise
            error.close()
            new = quote(urljoin(url, error.headers.get("Location", "")), safe="!#$%&'()*+,/:;=?@[]~")
            problem = _unsafe(item, url, new)
            if problem:
                raise _Refused(f"{_host(url)} redirects to {shortened(new, 200)}, {problem}: refused") from None
            url = new
    raise _Refused(f"{_host(item.url)} redirects more than {_REDIRECTS} times")


def _unsafe(item: Published, old: str, new: str) -> str:
    """What is wrong with a redirect, or ""."""
    before, after = urlsplit(old), urlsplit(new)
    if after.scheme not in ("http", "https") or not after.hostname:
        return "which is no address of the web"
    if after.scheme == "http" and before.scheme == "https":
        return "which is not encrypted"
    if after.username or after.password:
        return "which holds a name or a password"
    if after.hostname == before.hostname:
        return ""
    if _is_private(after.hostname) and not _is_private(urlsplit(item.url).hostname):
        return "which is an address of this network"
    if not item.checksum:
        return "which is another host, and no checksum is published to know the file by"
    return ""


def _is_private(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return not ipaddress.ip_address(host).is_global
    except ValueError:
        return False


def _host(url: str) -> str:
    return urlsplit(url).hostname or "the server"


def _tag(part: Path) -> Path:
    """The file that keeps what the server said of the version of which the part is the beginning."""
    return part.with_name(f"{part.name}.tag")


def _remember(part: Path, response) -> None:
    tag = response.headers.get("ETag") or ""
    said = tag if re.fullmatch(r'"[\x21\x23-\x7e]{1,300}"', tag) else response.headers.get("Last-Modified") or ""
    if said and said.isascii() and said.isprintable():
        _tag(part).write_text(said[:400], encoding="ascii")
    else:
        _tag(part).unlink(missing_ok=True)


@contextlib.contextmanager
def _alone(part: Path, item: Published) -> Iterator[None]:
    """Let one process at a time fetch a file; the lock goes with the process."""
    try:
        import fcntl
    except ImportError:  # Windows: two at once spoil the part, which its checksum tells
        yield
        return
    descriptor = os.open(part.with_name(f".{part.name}.lock"), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise SetupError(f"{item.name}: another process is downloading it to {part.parent}; wait for it") from None
        yield
    finally:
        with contextlib.suppress(OSError):
            os.unlink(part.with_name(f".{part.name}.lock"))
        os.close(descriptor)
