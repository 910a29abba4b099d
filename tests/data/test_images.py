import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from jea.data import DataError, list_inputs, read_image, read_label, write_image, write_index_png
from jea.data.files import pictures as images
from jea.data.segmentation.palette import VOC_CLASSES, colour_to_index, voc_palette


def ramp(height=6, width=9):
    y, x = np.mgrid[:height, :width]
    return np.stack([20 * x, 30 * y, 200 - 10 * x], 2).astype(np.uint8)


def png(width, height, depth, colour_type, rows):
    """A PNG from its parts: what PIL does not write, and headers that lie."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows))
            + chunk(b"IEND", b""))


def test_rgb_png_is_exact(tmp_path):
    write_image(tmp_path / "a.png", ramp())
    out = read_image(tmp_path / "a.png")
    assert out.dtype == np.uint8 and (out == ramp()).all()
    out[:] = 0  # writable


@pytest.mark.parametrize("mode, expected", [
    ("L", lambda rgb, stored: np.array(stored)[:, :, None].repeat(3, 2)),
    ("P", lambda rgb, stored: np.array(stored.convert("RGB"))),
    ("RGBA", lambda rgb, stored: rgb),
    ("1", lambda rgb, stored: np.array(stored, np.uint8)[:, :, None].repeat(3, 2) * 255),
])
def test_png_modes(tmp_path, mode, expected):
    stored = Image.fromarray(ramp()).convert(mode)
    stored.save(tmp_path / "a.png")
    out = read_image(tmp_path / "a.png")
    assert out.shape == (6, 9, 3) and (out == expected(ramp(), stored)).all()


def test_16_bit_grey_is_scaled_not_clipped(tmp_path):
    values = np.array([[0, 128, 129, 257, 32896, 65535]], np.uint16)  # / 257 = 0, 0.498, 0.502, 1, 128, 255
    (tmp_path / "a.png").write_bytes(png(6, 1, 16, 0, b"\0" + values.astype(">u2").tobytes()))
    assert read_image(tmp_path / "a.png")[0, :, 1].tolist() == [0, 0, 1, 1, 128, 255]


def test_grey_and_cmyk_jpeg(tmp_path):
    flat = np.full((16, 24), 90, np.uint8)
    Image.fromarray(flat).save(tmp_path / "g.jpg")
    assert np.abs(read_image(tmp_path / "g.jpg").astype(int) - 90).max() <= 1
    colour = np.zeros((16, 24, 3), np.uint8) + np.array([200, 100, 50], np.uint8)
    Image.fromarray(colour).convert("CMYK").save(tmp_path / "c.jpg", quality=95)
    assert Image.open(tmp_path / "c.jpg").mode == "CMYK"
    assert np.abs(read_image(tmp_path / "c.jpg").astype(int) - [200, 100, 50]).max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_is_followed_only_on_request(tmp_path, orientation):
    upright = ramp()
    exif = Image.Exif()
    exif[0x0112] = orientation
    undo = {1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud,
            5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, 1),
            7: lambda a: np.rot90(a, 2).swapaxes(0, 1), 8: lambda a: np.rot90(a, -1)}
    stored = np.ascontiguousarray(undo[orientation](upright))
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    assert (read_image(tmp_path / "a.png") == stored).all()
    out = read_image(tmp_path / "a.png", exif=True)
    assert out.shape == upright.shape and (out == upright).all()
    assert out.flags.c_contiguous


def test_broken_exif_does_not_spoil_a_sound_picture(tmp_path):
    Image.fromarray(ramp()).save(tmp_path / "a.png", exif=b"Exif\0\0not a tiff header")
    assert (read_image(tmp_path / "a.png", exif=True) == ramp()).all()


def jpeg_bytes():
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)
    Image.fromarray(noise).save(buffer, "JPEG")
    return buffer.getvalue()


BAD_PICTURES = [
    ("truncated.jpg", jpeg_bytes()[:900], "broken.*truncated"),
    ("truncated.png", png(50, 50, 8, 2, b"\0" * 40), "broken"),
    ("header_only.jpg", jpeg_bytes()[:20], "not a picture that can be read|broken"),
    ("text.jpg", b"<html>404 not found</html>", "not a picture that can be read; expected JPEG, PNG, BMP"),
    ("empty.jpg", b"", "empty"),
    ("bomb.png", png(100000, 100000, 8, 2, b"\0"), "over the limit of 67108864 pixels"),
    ("just_over.png", png(8193, 8192, 8, 0, b"\0"), "8193 x 8192 pixels is over the limit of 67108864"),
    ("script.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
]


@pytest.mark.parametrize("name, data, reason", BAD_PICTURES, ids=[name for name, _, _ in BAD_PICTURES])
def test_bad_pictures(tmp_path, name, data, reason):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=f"{name}.*({reason})"):
        read_image(tmp_path / name)


def test_missing_picture_and_folder(tmp_path):
    with pytest.raises(DataError, match="gone.jpg.*does not exist"):
        read_image(tmp_path / "gone.jpg")
    (tmp_path / "folder.jpg").mkdir()
    with pytest.raises(DataError, match="folder.jpg"):
        read_image(tmp_path / "folder.jpg")


def test_every_truncation_is_a_data_error_or_a_picture(tmp_path):
    data, path = jpeg_bytes(), tmp_path / "t.jpg"
    refused = 0
    for length in range(0, len(data), 61):
        path.write_bytes(data[:length])
        try:
            assert read_image(path).shape == (40, 60, 3)
        except DataError as error:
            assert "t.jpg" in str(error)
            refused += 1
    assert refused > len(data) / 61 * 0.9


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


def test_written_files_replace_whole_and_leave_nothing_behind(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    write_image(path, ramp())
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_image(path, ramp()[::-1])
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["a.png"]


def test_writers_refuse_what_they_would_spoil(tmp_path):
    for array in (np.full((2, 2), 256), np.full((2, 2), -1), np.zeros((2, 2)), np.zeros((2, 2, 3), int)):
        with pytest.raises(ValueError, match="integers"):
            write_index_png(tmp_path / "a.png", array, voc_palette())
    with pytest.raises(ValueError, match="float64"):
        write_image(tmp_path / "a.png", np.zeros((2, 2, 3)))
    with pytest.raises(ValueError, match="'.gif'"):
        write_image(tmp_path / "a.gif", ramp())
    assert not os.listdir(tmp_path)


def test_jpeg_writer(tmp_path):
    write_image(tmp_path / "a.jpg", np.full((16, 16, 3), 77, np.uint8))
    assert Image.open(tmp_path / "a.jpg").format == "JPEG"
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - 77).max() <= 1


def test_voc_palette_and_names():
    palette = voc_palette()
    assert palette.shape == (256, 3) and palette.dtype == np.uint8
    assert {i: palette[i].tolist() for i in (0, 1, 2, 3, 8, 15, 20, 255)} == {
        0: [0, 0, 0], 1: [128, 0, 0], 2: [0, 128, 0], 3: [128, 128, 0], 8: [64, 0, 0], 15: [192, 128, 128],
        20: [0, 64, 128], 255: [224, 224, 192]}
    assert len(np.unique(palette, axis=0)) == 256
    assert len(VOC_CLASSES) == 21
    assert (VOC_CLASSES[0], VOC_CLASSES[1], VOC_CLASSES[15], VOC_CLASSES[20]) == (
        "background", "aeroplane", "person", "tvmonitor")


def test_colour_to_index():
    index = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert (colour_to_index(voc_palette()[index], voc_palette()) == index).all()
    picture = voc_palette()[index].copy()
    picture[3, 5] = (1, 2, 3)
    with pytest.raises(ValueError, match=r"colour \(1, 2, 3\) at row 3, column 5"):
        colour_to_index(picture, voc_palette())
    with pytest.raises(ValueError, match=r"colour \(255, 255, 255\) at row 0, column 0 .* palette of 2"):
        colour_to_index(np.full((1, 1, 3), 255, np.uint8), voc_palette()[:2])


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


def test_limit_is_below_the_one_at_which_pillow_warns():
    assert images.MAX_PIXELS < 89_478_485
