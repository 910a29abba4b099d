"""Reading and writing pictures: every form, every fault."""
import io
import os

import numpy as np
import pytest
from forged_pictures import png, ramp
from PIL import Image

from jea.data import DataError, read_image, write_image, write_index_png
from jea.data.files import pictures as images
from jea.draw.palettes import voc_palette


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


def test_limit_is_below_the_one_at_which_pillow_warns():
    assert images.MAX_PIXELS < 89_478_485


@pytest.mark.parametrize("name", ["a.gif", "a.tif", "a.webp", "a.png"])
def test_of_several_frames_the_first_is_read(tmp_path, name):
    frames = [Image.fromarray(np.full((6, 9, 3), value, np.uint8)) for value in (255, 0)]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:],
                   **({"lossless": True} if "webp" in name else {}))
    assert Image.open(tmp_path / name).n_frames == 2
    assert (read_image(tmp_path / name) == 255).all() and read_image(tmp_path / name).shape == (6, 9, 3)


@pytest.mark.parametrize("mode, value, wanted", [("RGB", (10, 20, 30), (10, 20, 30)), ("L", 77, (77, 77, 77)),
                                                 ("1", 1, (255, 255, 255)), ("I;16", 65535, (255, 255, 255))])
def test_tiff_modes(tmp_path, mode, value, wanted):
    Image.new(mode, (3, 2), value).save(tmp_path / "a.tif")
    assert (read_image(tmp_path / "a.tif") == np.array(wanted, np.uint8)).all()


def test_tiff_of_floating_point_numbers_is_named(tmp_path):
    Image.fromarray(np.ones((2, 3), np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(DataError, match="a.tiff: picture of floating-point numbers; save it as 8-bit RGB"):
        read_image(tmp_path / "a.tiff")


def test_pictures_that_are_no_regular_files(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to("/dev/zero")
    for name, said in (("a.png", "picture is a pipe"), ("b.png", "picture is a device"),
                       ("c\0.png", "no name of a picture")):
        with pytest.raises(DataError, match=said):
            read_image(tmp_path / name)
