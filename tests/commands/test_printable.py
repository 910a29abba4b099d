"""Control characters in the names of files never reach the terminal."""
import pytest

from jea.commands.common import console
from jea.commands.convert import main as convert_main
from jea.commands.inspect import main as inspect_main
from jea.errors import CheckpointError, DataError, UserError, printable

EVIL = "a\x1b[2J\x07\r\x9b31m\u202etxt.pth"


@pytest.mark.parametrize("text, expected", [
    ("photo.jpg", "photo.jpg"), ("Straße 漢字 é 😀", "Straße 漢字 é 😀"), ("a\x1b[31m", "a\\x1b[31m"),
    ("a\nb\tc", "a\\nb\\tc"), ("\u202eabc", "\\u202eabc"), ("\udcff", "\\udcff"),
    ("\x7f\x85\u2028", "\\x7f\\x85\\u2028"), ("", ""),
])
def test_printable(text, expected):
    assert printable(text) == expected


def test_lines_are_kept_where_wanted():
    assert printable("a\n\tb\x1b", lines=True) == "a\n\tb\\x1b"


def clean(text):
    return all(c in "\n\t" or c.isprintable() for c in text)


def test_paths_in_errors():
    assert clean(str(CheckpointError(EVIL + "\n", "is damaged")))


@pytest.mark.parametrize("error", [UserError, DataError, OSError])
def test_every_command_ends_with_clean_text(capsys, error):
    def fails(_):
        print(f"reading {EVIL}")
        raise OSError(2, "No such file", EVIL) if error is OSError else error(f"{EVIL}: is damaged")

    assert console.run("test", fails, None) == 2
    captured = capsys.readouterr()
    assert clean(captured.out) and clean(captured.err.replace("\r", "")) and "\\x1b[2J" in captured.out
    assert captured.err.count("\n") == 1 and "\\x1b[2J" in captured.err


def test_bytes_that_are_no_text_can_be_printed(capsysbinary):
    assert console.run("test", lambda _: print("a\udcff.png"), None) == 0
    assert b"a\\udcff.png" in capsysbinary.readouterr().out


def test_the_streams_are_given_back():
    import sys
    before = sys.stdout, sys.stderr
    console.run("test", lambda _: 0, None)
    assert (sys.stdout, sys.stderr) == before


def test_inspect_and_convert(tmp_path, capsys):
    import numpy as np

    from jea.checkpoint import save_npz
    name = EVIL.replace(".pth", "")
    save_npz(tmp_path / f"{name}.npz", {"w\x1b[2J": np.zeros(1)}, {"note\x1b": "\x1b[0m"})
    assert inspect_main([str(tmp_path / f"{name}.npz")]) == 0
    assert convert_main([str(tmp_path / f"{name}.npz"), str(tmp_path / f"{name}.pth")]) == 0
    assert inspect_main([str(tmp_path / f"{name}.bin")]) == 2
    captured = capsys.readouterr()
    assert clean(captured.out) and clean(captured.err)
