"""`jea download` from a server on this machine: what it says, where it puts things, how it ends."""
import hashlib

import numpy as np
import pytest
import yaml
from untrusted_server import Server

from jea.checkpoint import load_npz, save_npz
from jea.commands import cli
from jea.downloads import index


@pytest.fixture
def toys(tmp_path, monkeypatch):
    """(server, folder of weights): "toy" is a checkpoint, "junk" is none, "hand" is for people."""
    save_npz(tmp_path / "toy.npz", {"weight": np.arange(6, dtype=np.float32)})
    server = Server((tmp_path / "toy.npz").read_bytes())
    folder = tmp_path / "weights"
    folder.mkdir()
    sha = hashlib.sha256(server.content).hexdigest()
    common = {"source": "https://a.org", "largest_mb": 1, "use": "python test.py --weights {file}"}
    (folder / "index.yaml").write_text(yaml.safe_dump({"downloads": {
        "toy": {"what": "a toy", "file": "a.npz", "url": server.url("good"), "sha256": sha, **common},
        "junk": {"what": "junk", "file": "b.npz", "url": server.url("wrong"), **common},
        "hand": {"what": "a file", "file": "c.npz", "by_hand": "open https://drive.google.com/x in a browser",
                 **common},
        "gone": {"what": "gone", "file": "d.npz", "url": "https://nowhere.invalid/d.npz", **common}}}))
    monkeypatch.setattr(index, "shared_folder", lambda name: tmp_path / name)
    monkeypatch.setattr(index, "weights_folder", lambda: folder)
    monkeypatch.setenv("JEA_HOME", str(tmp_path / "home"))
    yield server, folder
    server.close()


def run(capsys, *words):
    status = cli.main(["download", *words])
    return status, *capsys.readouterr()


def test_a_file_is_fetched_checked_and_its_command_said(toys, capsys):
    server, folder = toys
    status, out, err = run(capsys, "toy")
    assert status == 0 and out.splitlines() == [f"{folder / 'a.npz'}: 0.0 MB; its sha256 is the published one",
                                                f"use it: python test.py --weights {folder / 'a.npz'}"]
    assert load_npz(folder / "a.npz")[0]["weight"].tolist() == [0, 1, 2, 3, 4, 5]
    status, out, err = run(capsys, "a.npz")  # by the file's name; it is there
    assert status == 0 and "is there already; its sha256 is the published one" in out and len(server.requests) == 1


def test_what_is_there_and_is_another_file_is_told(toys, capsys):
    _, folder = toys
    (folder / "a.npz").write_bytes(b"something else")
    status, _, err = run(capsys, "toy")
    assert status == 2 and "a.npz: its sha256 is" in err and "it is not toy" in err and len(err.splitlines()) == 1
    assert (folder / "a.npz").read_bytes() == b"something else"


def test_what_is_no_checkpoint_is_not_kept(toys, capsys):
    _, folder = toys
    status, _, err = run(capsys, "junk")
    assert status == 2 and "junk: " in err and "By hand: fetch http://127.0.0.1" in err
    assert [path.name for path in folder.iterdir()] == ["index.yaml"] and err.count("\n") - err.count("junk: 1") <= 2


def test_what_no_program_can_fetch_says_what_to_do(toys, capsys):
    _, folder = toys
    status, _, err = run(capsys, "hand")
    assert status == 2 and "no program can fetch it" in err
    assert f"open https://drive.google.com/x in a browser, and put it at {folder / 'c.npz'}" in err
    save_npz(folder / "c.npz", {"weight": np.zeros(1, np.float32)})  # somebody did
    status, out, _ = run(capsys, "hand")
    assert status == 0 and "is there already; no checksum is published; its sha256" in out and "recorded" in out


def test_without_a_network_one_line_says_what_to_fetch_and_where_to_put_it(toys, capsys):
    _, folder = toys
    status, _, err = run(capsys, "gone")
    assert status == 2 and len(err.splitlines()) == 1
    assert "cannot reach nowhere.invalid" in err and "fetch https://nowhere.invalid/d.npz with a browser" in err
    assert f"put it at {folder / 'd.npz'}; `jea download gone` then checks it" in err


def test_the_list_and_the_dry_run_ask_nobody(toys, capsys, tmp_path):
    server, folder = toys
    status, out, _ = run(capsys, "--list")
    rows = {line.split()[0]: line for line in out.splitlines() if line}
    assert status == 0 and "sha256" in rows["toy"] and "by hand" in rows["hand"]
    assert "no checksum published" in rows["junk"] and f"puts it into {folder}" in out
    status, out, _ = run(capsys, "toy", "--dry-run", "--to", str(tmp_path / "elsewhere"))
    assert status == 0 and f"would fetch {server.url('good')} to {tmp_path / 'elsewhere' / 'a.npz'}" in out
    assert server.requests == [] and not (tmp_path / "elsewhere").exists()


def test_wrong_names(toys, capsys):
    status, _, err = run(capsys, "tooy")
    assert status == 2 and "tooy: no such download (did you mean toy?); there are gone, hand, junk, toy" in err
    status, _, err = run(capsys)
    assert status == 2 and "say what to fetch; there are gone, hand, junk, toy" in err
