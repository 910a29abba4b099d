"""Reading and writing label files."""
import struct
import zlib

import numpy as np
import pytest
from forged_pictures import png
from PIL import Image

from jea.data import DataError, read_image, read_label, write_image, write_index_png
from jea.data.files.labels import colour_to_index
from jea.draw.palettes import voc_palette

INDEX = np.array([[0, 1, 2], [3, 20, 255]], np.uint8)


def test_label_palette_and_grey(tmp_path):
    write_index_png(tmp_path / "p.png", INDEX, voc_palette())
    assert Image.open(tmp_path / "p.png").mode == "P"
    Image.fromarray(INDEX).save(tmp_path / "l.png")
    (tmp_path / "i.png").write_bytes(
        png(3, 2, 16, 0, b"".join(b"\0" + row.astype(">u2").tobytes() for row in INDEX)))
    for name in ("p.png", "l.png", "i.png"):
        label = read_label(tmp_path / name, 21)
        assert label.dtype == np.uint8 and label.tolist() == INDEX.tolist(), name


@pytest.mark.parametrize("colour_type", [0, 3])
@pytest.mark.parametrize("depth, row, values", [
    (1, 0b10110000, [1, 0, 1, 1]), (2, 0b00011011, [0, 1, 2, 3]), (4, 0, [0, 0])])
def test_label_of_few_bits_is_not_stretched(tmp_path, colour_type, depth, row, values):
    data = png(len(values), 1, depth, colour_type, bytes([0, row]))
    if colour_type == 3:
        palette = b"PLTE" + bytes(3 * 4)
        chunk = struct.pack(">I", 12) + palette + struct.pack(">I", zlib.crc32(palette))
        data = data.replace(data[33:], chunk + data[33:])  # after the signature and IHDR
    (tmp_path / "a.png").write_bytes(data)
    assert read_label(tmp_path / "a.png", 4).tolist() == [values]


def test_label_of_4_bits_grey(tmp_path):
    (tmp_path / "a.png").write_bytes(png(4, 1, 4, 0, bytes([0, 0x3A, 0x0F])))
    assert read_label(tmp_path / "a.png", 16).tolist() == [[3, 10, 0, 15]]


def test_label_value_over_num_classes(tmp_path):
    write_index_png(tmp_path / "a.png", INDEX, voc_palette())
    with pytest.raises(DataError, match=r"a.png: label value 3 at row 1, column 0 \(2 such.*expected 0 to 2"):
        read_label(tmp_path / "a.png", 3)
    with pytest.raises(DataError, match="label value 255 at row 1, column 2"):
        read_label(tmp_path / "a.png", 21, ignore=254)
    (tmp_path / "i.png").write_bytes(png(2, 1, 16, 0, b"\0" + np.array([1, 65535], ">u2").tobytes()))
    with pytest.raises(DataError, match="label value 65535 at row 0, column 1"):
        read_label(tmp_path / "i.png", 21)


def test_colour_label_is_refused_with_a_way_to_convert_it_that_works(tmp_path):
    source, target = tmp_path / "rgb.png", tmp_path / "index.png"
    write_image(source, voc_palette()[INDEX])
    with pytest.raises(DataError, match="rgb.png.*colour picture.*RGB.*write_index_png.*colour_to_index"):
        read_label(source, 21)
    write_index_png(target, colour_to_index(read_image(source), voc_palette()), voc_palette())
    assert read_label(target, 21).tolist() == INDEX.tolist()


def test_label_must_be_png_and_whole(tmp_path):
    Image.fromarray(INDEX).save(tmp_path / "a.jpg")
    with pytest.raises(DataError, match="a.jpg: not a label that can be read; expected PNG"):
        read_label(tmp_path / "a.jpg", 21)
    write_index_png(tmp_path / "b.png", np.random.default_rng(0).integers(0, 21, (40, 40)), voc_palette())
    (tmp_path / "b.png").write_bytes((tmp_path / "b.png").read_bytes()[:-500])
    with pytest.raises(DataError, match="b.png: label is broken"):
        read_label(tmp_path / "b.png", 21)


def test_colour_to_index():
    index = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert (colour_to_index(voc_palette()[index], voc_palette()) == index).all()
    picture = voc_palette()[index].copy()
    picture[3, 5] = (1, 2, 3)
    with pytest.raises(ValueError, match=r"colour \(1, 2, 3\) at row 3, column 5"):
        colour_to_index(picture, voc_palette())
    with pytest.raises(ValueError, match=r"colour \(255, 255, 255\) at row 0, column 0 .* palette of 2"):
        colour_to_index(np.full((1, 1, 3), 255, np.uint8), voc_palette()[:2])
