"""What --input names."""

import pytest

from jea.data import DataError, list_inputs


def test_list_inputs(tmp_path):
    for name in ("b.JPG", "a.png", "c.txt", ".hidden.jpg", "d.webp"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "sub.jpg").mkdir()
    (tmp_path / "sub.jpg" / "deep.jpg").write_bytes(b"x")
    assert [p.name for p in list_inputs(tmp_path)] == ["a.png", "b.JPG", "d.webp"]
    assert list_inputs(str(tmp_path / "c.txt")) == [tmp_path / "c.txt"]
    with pytest.raises(DataError, match="nowhere: no such picture or folder"):
        list_inputs(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: no pictures in this folder"):
        list_inputs(tmp_path / "empty")
