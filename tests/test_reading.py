"""Files that people give: only regular ones, bounded; YAML that would blow up, hang or raise."""
import os
import random
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import yaml

from jea import config
from jea.errors import ConfigError, DataError
from jea.reading import MAX_YAML, parse_yaml, read_file, read_yaml

ROOT = Path(__file__).parent.parent


def test_a_file_is_read_whole(tmp_path):
    (tmp_path / "a").write_bytes(b"\0abc")
    assert read_file(tmp_path / "a", limit=4, error=DataError) == b"\0abc"


@pytest.mark.parametrize("make, said", [
    (lambda p: None, "cloud does not exist"),
    (lambda p: p.mkdir(), "cloud is a folder|cannot read the cloud: Is a directory"),
    (os.mkfifo, "cloud is a pipe; expected a regular file"),
    (lambda p: p.symlink_to("/dev/zero"), "cloud is a device"),
    (lambda p: p.write_bytes(b""), r"cloud is empty \(0 bytes\)"),
    (lambda p: p.write_bytes(b"12345"), "cloud of 5 bytes is over the limit of 4; thin it out"),
    (lambda p: os.truncate(p.write_bytes(b"x") and p, 1 << 33), "8589934592 bytes is over the limit"),
    (lambda p: p.symlink_to(p), "cannot read the cloud: Too many levels"),
])
def test_what_is_not_a_file_of_that_size(tmp_path, make, said):
    make(tmp_path / "a")
    started = time.perf_counter()
    with pytest.raises(DataError, match=said) as caught:
        read_file(tmp_path / "a", limit=4, error=DataError, what="cloud", too_large="thin it out")
    assert str(caught.value).startswith(str(tmp_path / "a")) and time.perf_counter() - started < 1


def test_a_socket_and_a_name_with_nul(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s")
        with pytest.raises(DataError, match="cannot read the file|is a socket"):
            read_file("s", limit=4, error=DataError)
    with pytest.raises(DataError, match="no name of a file"):
        read_file("a\0b", limit=4, error=DataError)


@pytest.mark.parametrize("text, value", [
    ("a: 1\nb: [x, 2.5, true, null, 'yes', 0x10]", {"a": 1, "b": ["x", 2.5, True, None, "yes", 16]}),
    ("when: 2026-01-01\nbad: 2026-99-99", {"when": "2026-01-01", "bad": "2026-99-99"}),
    ("a: &x {k: 1}\nb: *x\nc: {<<: *x, l: 2}", {"a": {"k": 1}, "b": {"k": 1}, "c": {"k": 1, "l": 2}}),
    ("", None), ("\ufeffa: 1", {"a": 1}), ("a: .inf", {"a": float("inf")}), ("k: 1e5", {"k": "1e5"}),
    ("- 12345678901234567890", [12345678901234567890]),
])
def test_values(text, value, tmp_path):
    assert parse_yaml(text.lstrip("\ufeff"), "x") == value
    if text:
        (tmp_path / "a.yaml").write_text(text, encoding="utf-8")
        assert read_yaml(tmp_path / "a.yaml") == value


def test_the_configs_are_read_as_pyyaml_reads_them():
    configs = sorted((ROOT / "configs").glob("*.yaml"))
    assert len(configs) > 10
    for path in configs:
        assert read_yaml(path) == yaml.safe_load(path.read_text(encoding="utf-8")), path


def test_text_stays_text():
    assert parse_yaml("- yes\n- no\n- 1\n- null\n- 2026-01-01\n- a: [1, 2]", "x", as_text=True) == [
        "yes", "no", "1", "null", "2026-01-01", {"a": ["1", "2"]}]


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi"))
WIDE = f"a: &a {'x' * 1000}\nb: [{', '.join(['*a'] * 20_000)}]\n"


@pytest.mark.parametrize("text, said", [
    ("a: [", "in line 1, column 5"), ("a: 1\na: 2", "line 2, column 1: the key 'a' is there twice"),
    (BOMB, "over 50000 values"), (WIDE, "over 50000 values"), ("a: &a [*a]", "an alias inside of what it stands for"),
    ("a: *b", "undefined alias 'b'"), ("[" * 900 + "]" * 900, "nested deeper than 32"),
    ("[" * 100_000, "nested deeper than 32"), ("{a: " * 900, "nested deeper than 32"),
    ("a: " + "9" * 5000, "a number of 5000 digits"), ("a: -" + "9" * 5000, "a number of 5001 digits"),
    ("a: 0b" + "1" * 5000, "5002 digits"), ("a: 1_" + ":59" * 2000, "6002 digits"),
    ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
    ("a: !!binary aGk=", "could not determine a constructor"), ("!!set {a, b}", "could not determine a constructor"),
    ("a: !!int x", "'x' is no number"), ("a: !!timestamp 2026-99-99", "could not determine a constructor"),
    ("[a]: 1\n? {b: 1}\n: 2", "unhashable key"), ("a: \x07", "special characters are not allowed"),
    ("a\n---\nb", "another document"),
    ("<<: 1", "expected a mapping or list of mappings"),
], ids=lambda value: value[:12].replace("\n", " ") if isinstance(value, str) else None)
def test_hostile_yaml(text, said):
    started = time.perf_counter()
    with pytest.raises(ConfigError, match=said) as caught:
        parse_yaml(text, "my.yaml")
    assert str(caught.value).startswith("my.yaml: ") and len(str(caught.value)) < 500
    assert time.perf_counter() - started < 5


def test_files_that_are_no_text_or_too_large(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"a: 1\nb: \xff\n")
    with pytest.raises(ConfigError, match="not UTF-8 text: byte 0xff in line 2"):
        read_yaml(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_bytes(b"#" * (MAX_YAML + 1))
    with pytest.raises(DataError, match="over the limit"):
        read_yaml(tmp_path / "b.yaml", error=DataError)


SPOILERS = ["[", "]", "{", "}", ":", "- ", "&a ", "*a", "*n", "!!", "<<: ", "\n", "\t", "'", '"', "|", ">", "%", "?",
            "\0", "\u2028", "0x", "9" * 200]


def test_damaged_yaml_is_read_or_refused():
    base = ("task: segmentation\nmodel: {name: &n eanet, k: [1, 2.5]}\ntrain:\n  lr: 0.01 # rate\n  s: *n\n"
            "  d: 2026-01-01\n")
    random.seed(1)
    refused = 0
    for _ in range(3000):
        text = list(base)
        for _ in range(random.randint(1, 6)):
            k = random.randrange(len(text))
            text[k:k + random.randint(0, 3)] = random.choice(SPOILERS)
        try:
            parse_yaml("".join(text), "x")
        except ConfigError:
            refused += 1
    assert 500 < refused < 3000


WORST = textwrap.dedent(r"""
    import resource, time
    from jea.errors import ConfigError
    from jea.reading import MAX_YAML, parse_yaml
    pieces = ("a,", "- a\n", "a: ", "? ", "*a ", "&a ", "- ", "#", " ", "{a: b, ", " a\n", "!", "%", "'", "\\\n")
    for start in ("", "[", "{", '"', "|\n", ">\n"):
        for piece in pieces:
            begun = time.perf_counter()
            try:
                parse_yaml((start + piece * MAX_YAML)[:MAX_YAML], "x")
            except ConfigError:
                pass
            print(round(time.perf_counter() - begun, 2), repr(start + piece))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10, "MB")
""")


@pytest.mark.slow
def test_time_and_memory_of_the_worst_texts_of_the_largest_size():
    done = subprocess.run([sys.executable, "-c", WORST], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    *times, memory = done.stdout.splitlines()
    assert max(float(line.split()[0]) for line in times) < 20, done.stdout
    assert int(memory.split()[0]) < 500, done.stdout


@pytest.mark.parametrize("make, said", [
    (os.mkfifo, "config is a pipe"), (lambda p: p.symlink_to("/dev/zero"), "config is a device"),
    (lambda p: p.write_text(BOMB), "over 50000 values"), (lambda p: p.write_text("[" * 900), "nested deeper"),
    (lambda p: p.write_bytes(b"\xff\xfea"), "not UTF-8 text"), (lambda p: p.mkdir(), "config is a folder"),
    (lambda p: p.write_text("task: [a]\nmodel: 2026-01-01\n"), "unknown task"),
    (lambda p: p.write_text(f"task: {'9' * 5000}"), "5000 digits"),
])
def test_configs_that_are_none(tmp_path, make, said):
    make(tmp_path / "a.yaml")
    with pytest.raises(ConfigError, match=said) as caught:
        config.load(tmp_path / "a.yaml")
    assert len(str(caught.value)) < 1000
