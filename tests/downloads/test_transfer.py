"""Downloads from a server that breaks off, lies, redirects, stalls and sends something else."""
import hashlib
import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from untrusted_server import Server

from jea.downloads.index import Published
from jea.downloads.transfer import fetch
from jea.errors import CheckpointError, SetupError

CONTENT = np.random.default_rng(0).integers(0, 256, 300_000, np.uint8).tobytes()
SHA = hashlib.sha256(CONTENT).hexdigest()
SLEPT = []


@pytest.fixture
def server(monkeypatch, tmp_path):
    monkeypatch.setenv("JEA_HOME", str(tmp_path / "home"))
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    SLEPT.clear()
    found = Server(CONTENT)
    yield found
    found.close()


def published(server, path, *, url=None, checksum=("sha256", SHA), most=400_000, **options):
    return Published("toy", "a toy", "toy.bin", "https://example.org/readme", "use {file}",
                     url=url or server.url(path), most=most, checksum=checksum, **options)


def download(server, path, folder, **options):
    limits = {name: options.pop(name) for name in ("check", "timeout", "slowest", "window") if name in options}
    return fetch(published(server, path, **options), folder / "toy.bin", shown=False, sleep=SLEPT.append,
                 **{"timeout": 5, **limits})


def left(folder):
    """What is in the folder, but for jea's home."""
    return sorted(name for name in os.listdir(folder) if name != "home")


@pytest.mark.parametrize("checksum, said", [
    (("sha256", SHA), "its sha256 is the published one"), (("sha1", hashlib.sha1(CONTENT).hexdigest()), "its sha1 is"),
    (("sha256", SHA[:8]), "the first 8 digits of its sha256 are the published ones"),
    (("git_blob", hashlib.sha1(b"blob 300000\0" + CONTENT).hexdigest()), "its git_blob is the published one")],
    ids=lambda value: value[0])
def test_a_file_comes_whole(server, tmp_path, checksum, said):
    assert said in download(server, "good", tmp_path, checksum=checksum)
    assert (tmp_path / "toy.bin").read_bytes() == CONTENT and left(tmp_path) == ["toy.bin"]
    assert len(server.requests) == 1 and not SLEPT


def test_a_broken_connection_is_gone_on_from(server, tmp_path):
    download(server, "breaks", tmp_path)
    assert (tmp_path / "toy.bin").read_bytes() == CONTENT and left(tmp_path) == ["toy.bin"]
    ranges = [headers.get("Range") for _, headers in server.requests]
    assert ranges == [None, "bytes=100001-", "bytes=200002-"] and SLEPT == [1.0, 2.0]
    assert [headers.get("If-Range") for _, headers in server.requests] == [None, '"1"', '"1"']
    assert all(headers["Accept-Encoding"] == "identity" for _, headers in server.requests)


def test_a_later_call_goes_on_where_this_one_stopped(server, tmp_path):
    with pytest.raises(SetupError, match="toy: 127.0.0.1 answers 404.*0.0 MB have come and are kept: run it again"):
        download(server, "gone", tmp_path)
    assert left(tmp_path) == ["toy.bin.part", "toy.bin.part.tag"]
    assert (tmp_path / "toy.bin.part").read_bytes() == CONTENT[:1000]
    download(server, "good", tmp_path)
    assert server.requests[-1][1]["Range"] == "bytes=1000-" and (tmp_path / "toy.bin").read_bytes() == CONTENT
    assert left(tmp_path) == ["toy.bin"]


def test_a_part_that_is_the_whole_is_taken(server, tmp_path):
    (tmp_path / "toy.bin.part").write_bytes(CONTENT)
    download(server, "good", tmp_path)
    assert len(server.requests) == 1 and (tmp_path / "toy.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("path", ["norange", "good"])
def test_a_part_of_another_file_is_not_gone_on_from(server, tmp_path, path):
    """norange sends the whole file whatever was asked for; good appends to a wrong beginning, which the checksum
    tells."""
    (tmp_path / "toy.bin.part").write_bytes(b"another beginning")
    download(server, path, tmp_path)
    assert (tmp_path / "toy.bin").read_bytes() == CONTENT and left(tmp_path) == ["toy.bin"]


def test_without_a_checksum_only_a_part_of_the_same_version_is_gone_on_from(server, tmp_path):
    (tmp_path / "toy.bin.part").write_bytes(b"another beginning")  # from where, nothing tells
    download(server, "good", tmp_path, checksum=None)
    assert server.requests[0][1].get("Range") is None
    os.unlink(tmp_path / "toy.bin")
    download(server, "once", tmp_path, checksum=None)  # the file changed between the two connections
    assert server.requests[-1][1]["If-Range"] == '"1"' and (tmp_path / "toy.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("path, said", [
    ("wrong", "its sha256 is .*; expected .*, as published: it is not toy"),
    ("short", r"127.0.0.1 offers 100 bytes; the file has 0.3 MB"), ("huge", "offers 1,000,000,000,000,000 bytes"),
    ("long", "offers 300,005 bytes"), ("endless", "sends more than the 300,000 bytes that the file has at most"),
    ("page", "127.0.0.1 sends a web page instead of the file"), ("packed", "sends the file packed as gzip"),
])
def test_lies_leave_nothing(server, tmp_path, path, said):
    with pytest.raises(SetupError, match=f"^toy: .*{said}.* By hand: fetch http.*toy.bin.*`jea download toy` then"):
        download(server, path, tmp_path, size=300_000, most=300_000)
    assert left(tmp_path) == [] and len(server.requests) == 1


@pytest.mark.parametrize("path, said", [
    ("short", "its sha256 is"), ("long", "breaks off"), ("endless", "sends more than the 400,000 bytes"),
    ("huge", "the file has at most 0 MB")])
def test_lies_about_the_length_where_no_size_is_published(server, tmp_path, path, said):
    with pytest.raises(SetupError, match=said):
        download(server, path, tmp_path)
    assert [name for name in left(tmp_path) if name == "toy.bin"] == []


def test_a_length_that_is_no_number_is_not_believed(server, tmp_path):
    download(server, "odd", tmp_path)
    assert (tmp_path / "toy.bin").read_bytes() == CONTENT


def test_another_part_than_was_asked_for(server, tmp_path):
    (tmp_path / "toy.bin.part").write_bytes(CONTENT[:50])
    with pytest.raises(SetupError, match="sends another part of the file than was asked for"):
        download(server, "elsewhere", tmp_path)
    assert left(tmp_path) == []


def test_servers_that_stall(server, tmp_path):
    started = time.monotonic()
    with pytest.raises(SetupError, match="127.0.0.1 sends [0-9]+ bytes a second"):
        download(server, "slow", tmp_path, window=0.3)
    assert len(server.requests) == 1 and SLEPT == []
    with pytest.raises(SetupError, match="127.0.0.1 breaks off .*timed out"):
        download(server, "silent", tmp_path, timeout=0.1)
    assert time.monotonic() - started < 10


def test_a_busy_server_is_asked_again(server, tmp_path):
    download(server, "busy", tmp_path)
    assert (tmp_path / "toy.bin").is_file() and SLEPT == [1.0, 2.0]


def test_no_network_is_told_at_once(server, tmp_path):
    with pytest.raises(SetupError, match=r"toy: cannot reach nowhere.invalid \(.*\). By hand: fetch https://nowhere"):
        download(server, "", tmp_path, url="https://nowhere.invalid/x")
    assert SLEPT == [] and left(tmp_path) == []
    closed = server.url("good").replace(str(server.port), "9")
    with pytest.raises(SetupError, match="cannot reach 127.0.0.1 .*refused"):
        download(server, "", tmp_path, url=closed)


# -- redirects --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("to, checksum", [("/good", None), ("good", ("sha256", SHA)), ("{other}", ("sha256", SHA))])
def test_redirects_that_are_followed(server, tmp_path, to, checksum):
    """On the same host; to another one where a checksum tells what comes."""
    download(server, "to?" + to.format(other=server.url("good", "localhost")), tmp_path, checksum=checksum)
    assert (tmp_path / "toy.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("to, said", [
    ("file:///etc/passwd", "which is no address of the web"), ("ftp://127.0.0.1/x", "no address of the web"),
    ("{other}", "another host, and no checksum is published to know the file by"),
    ("http://user:secret@127.0.0.1/x", "which holds a name or a password"), ("data:,hello", "no address of the web"),
    ("/loop", " more than 10 times")])
def test_redirects_that_are_refused(server, tmp_path, to, said):
    with pytest.raises(SetupError, match=f"toy: 127.0.0.1 redirects.*{said}"):
        download(server, "to?" + to.format(other=server.url("good", "localhost")), tmp_path, checksum=None)
    assert left(tmp_path) == [] and not any("good" in path.partition("?")[0] for path, _ in server.requests)


@pytest.mark.parametrize("old, new, said", [
    ("https://a.org/x", "http://a.org/x", "not encrypted"), ("https://a.org/x", "https://10.0.0.8/x", "this network"),
    ("https://a.org/x", "https://localhost/x", "this network"), ("https://a.org/x", "https://[::1]/x", "this network"),
    ("https://a.org/x", "https://169.254.169.254/latest", "this network"), ("https://a.org/x", "https://b.org/x", "")])
def test_where_a_server_on_the_internet_may_lead(server, old, new, said):
    from jea.downloads.transfer import _unsafe
    found = _unsafe(published(server, "", url=old), old, new)
    assert bool(found) == bool(said) and said in found


def test_the_environments_proxy_is_asked(server, tmp_path, monkeypatch):
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.port}")
    monkeypatch.setenv("no_proxy", "")
    download(server, "", tmp_path, url="http://a.example/good")
    assert server.requests[0][0] == "http://a.example/good" and (tmp_path / "toy.bin").read_bytes() == CONTENT


# -- what was recorded ------------------------------------------------------------------------------------------------

def test_without_a_checksum_the_first_download_is_recorded(server, tmp_path):
    said = download(server, "good", tmp_path, checksum=None)
    record = tmp_path / "home" / "downloads.json"
    assert f"no checksum is published; its sha256, {SHA}, is recorded in {record}" in said
    assert json.loads(record.read_text()) == {"toy": {"sha256": SHA, "size": 300_000, "url": server.url("good")}}
    os.unlink(tmp_path / "toy.bin")
    assert "its sha256 is that of the first download" in download(server, "norange", tmp_path, checksum=None)
    os.unlink(tmp_path / "toy.bin")
    with pytest.raises(SetupError, match=f"and was {SHA} at the first download.*remove toy from .*downloads.json"):
        download(server, "wrong", tmp_path, checksum=None)
    assert left(tmp_path) == []


def test_what_cannot_be_read_is_neither_kept_nor_recorded(server, tmp_path):
    def check(path):
        assert path.read_bytes() == CONTENT
        raise CheckpointError(path, "is damaged")
    with pytest.raises(SetupError, match="toy: .*toy.bin: is damaged. By hand"):
        download(server, "good", tmp_path, checksum=None, check=check)
    assert left(tmp_path) == [] and not (tmp_path / "home" / "downloads.json").exists()


@pytest.mark.parametrize("content", ["", "[1]", "{", "[" * 5000, '{"toy": 5}'])
def test_a_damaged_record_is_made_anew(server, tmp_path, content):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "downloads.json").write_text(content)
    assert "is recorded" in download(server, "good", tmp_path, checksum=None)


# -- two at once, kills -----------------------------------------------------------------------------------------------

CODE = """
import sys
from pathlib import Path
from jea.downloads.index import Published
from jea.downloads.transfer import fetch
print("begun", flush=True)
fetch(Published("toy", "", "toy.bin", "", "", url=sys.argv[1], most=400_000, checksum=("sha256", sys.argv[3])),
      Path(sys.argv[2]) / "toy.bin", shown=False)
"""


def test_a_kill_leaves_a_part_and_the_second_of_two_is_told(server, tmp_path):
    pytest.importorskip("fcntl")
    process = subprocess.Popen([sys.executable, "-c", CODE, server.url("slow"), str(tmp_path), SHA],
                               stdout=subprocess.PIPE)
    process.stdout.readline()
    deadline = time.monotonic() + 10
    while not (tmp_path / "toy.bin.part").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    with pytest.raises(SetupError, match="another process is downloading it"):
        download(server, "good", tmp_path)
    process.kill()
    process.wait()
    assert "toy.bin" not in left(tmp_path) and "toy.bin.part" in left(tmp_path)
    download(server, "good", tmp_path)  # the lock went with the process
    assert (tmp_path / "toy.bin").read_bytes() == CONTENT and left(tmp_path) == ["toy.bin"]


def test_a_full_disk_is_told_before_anything_is_written(server, tmp_path, monkeypatch):
    monkeypatch.setattr("jea.downloads.transfer.shutil.disk_usage", lambda path: os.terminal_size((0, 0)) and type(
        "Usage", (), {"free": 1000}))
    with pytest.raises(SetupError, match="toy: 0 MB are missing, and .* has room for 0"):
        download(server, "good", tmp_path)
    assert "toy.bin" not in left(tmp_path)
