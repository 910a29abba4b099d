"""The published files of weights/index.yaml: entries that are whole, with commands that configs understand."""
import re
import shlex

import pytest
import yaml

from jea import config
from jea.downloads.index import CHECKSUMS, find, read_index, verify, weights_folder
from jea.errors import ConfigError, SetupError
from jea.files import find_config, shared_folder

INDEX = read_index()
GOOD = {"what": "a toy", "file": "toy.pth", "source": "https://a.org", "url": "https://a.org/toy.pth", "size": 5,
        "use": "use {file}"}


@pytest.mark.parametrize("name", INDEX)
def test_an_entry_is_whole(name, tmp_path):
    item = INDEX[name]
    assert item.source.startswith("https://github.com/") and "{file}" in item.use
    assert bool(item.url) != bool(item.by_hand)
    words = shlex.split(item.command(tmp_path / item.file))
    assert words[0] == "python" and words[1] in ("train.py", "test.py")
    stem = words[words.index("--config") + 1]
    overrides = [word for word in words[2:] if "=" in word and not word.startswith("-")]
    loaded = config.load(find_config(stem), overrides)
    assert loaded["task"] in stem and str(tmp_path / item.file) in item.command(tmp_path / item.file)
    if item.checksum and len(item.checksum[1]) < CHECKSUMS[item.checksum[0]]:  # it is that of the file's name
        assert re.search(r"-([0-9a-f]{8})\.", item.file)[1] == item.checksum[1]


def test_files_are_not_those_that_are_bundled_and_go_where_git_ignores_them():
    content = yaml.safe_load((shared_folder("weights") / "index.yaml").read_text())
    bundled = {entry["file"] for name, entry in content.items() if name != "downloads"}
    files = [item.file for item in INDEX.values()]
    assert not bundled & set(files) and len(set(files)) == len(files) >= 12
    assert {"eanet_voc", "eamlp_7_384", "eanet_jseg_cityscapes", "inception_fid", "resnet101_deep_stem",
            "maskrcnn_torchvision"} <= set(INDEX)


def written(tmp_path, **changes):
    entry = {key: value for key, value in {**GOOD, **changes}.items() if value is not None}
    (tmp_path / "index.yaml").write_text(yaml.safe_dump({"downloads": {"toy": entry}}))
    return tmp_path / "index.yaml"


@pytest.mark.parametrize("changes, said", [
    ({"wat": 1}, "unknown key 'wat'.*did you mean what"), ({"size": "5"}, "size: is '5'; expected int"),
    ({"size": True}, "size: is True; expected int"), ({"what": None}, "lacks what"), ({"url": None}, "url or by_hand"),
    ({"file": "../toy.pth"}, "expected the name of a file, without a folder"), ({"file": ".toy"}, "name of a file"),
    ({"url": "http://a.org/x"}, "expected https"), ({"url": "file:///etc/passwd"}, "expected https"),
    ({"url": "https:///x"}, "expected https"), ({"size": None}, "lacks size, megabytes or largest_mb"),
    ({"sha256": "abc"}, "expected 64 hexadecimal digits"), ({"sha1": "a" * 8}, "expected 40 hexadecimal digits"),
    ({"sha256": "g" * 64}, "hexadecimal")], ids=str)
def test_mistakes_in_the_index(tmp_path, changes, said):
    with pytest.raises(ConfigError, match=f"index.yaml: downloads.toy.*{said}"):
        read_index(written(tmp_path, **changes))


def test_an_index_without_downloads(tmp_path):
    (tmp_path / "index.yaml").write_text("a: {file: b}")
    with pytest.raises(ConfigError, match="has no part `downloads`"):
        read_index(tmp_path / "index.yaml")


def test_sizes(tmp_path):
    assert [read_index(written(tmp_path))["toy"].fits(size) for size in (0, 4, 5, 6)] == [False, False, True, False]
    item = read_index(written(tmp_path, size=None, megabytes=159.743))["toy"]
    assert item.fits(167_502_836) and not item.fits(167_504_836) and 167_502_836 < item.most < 167_510_000
    item = read_index(written(tmp_path, size=None, largest_mb=1))["toy"]
    assert item.fits(1) and item.fits(2 ** 20) and not item.fits(2 ** 20 + 1) and not item.fits(0)
    item = read_index(written(tmp_path, size=None, url=None, by_hand="ask"))["toy"]
    assert item.fits(10 ** 10) and not item.fits(0) and item.hand_work(tmp_path).startswith("By hand: ask, and put it")


def test_names_and_files_find_an_entry():
    assert find(INDEX, "inception_fid") is find(INDEX, "pt_inception-2015-12-05-6726825d.pth")
    with pytest.raises(ConfigError, match="inception: no such download.*there are eanet_voc"):
        find(INDEX, "inception")


def test_where_downloads_go(monkeypatch, tmp_path):
    assert weights_folder() == shared_folder("weights")
    monkeypatch.setenv("JEA_HOME", str(tmp_path))
    monkeypatch.setattr("jea.downloads.index.shared_folder", lambda name: tmp_path / "share" / "jea" / name)
    assert weights_folder() == tmp_path / "weights"  # a wheel's folder is not written to


def test_a_folder_is_no_download(tmp_path):
    with pytest.raises(SetupError, match="download is a folder"):
        verify(INDEX["resnet50"], tmp_path)
