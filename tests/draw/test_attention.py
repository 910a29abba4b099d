"""Drawings of what attention looks at."""
from types import SimpleNamespace

import numpy as np
import pytest

from jea.draw.attention import COLUMNS, WIDTH, Layer, OnCloud, OnPicture, attention_sheet, colours


def rng():
    return np.random.default_rng(0)


def strength(picture):
    """How hot each pixel is: the ramp loses green and blue."""
    return 255 - picture[..., 1:].astype(float).mean(-1)


def test_the_ramp_gets_darker_all_the_way():
    """So that it is read without its hues, too."""
    for view, pale in ((OnPicture, 254), (OnCloud, 200)):
        luminance = colours(np.linspace(0, 1, 101), view.ramp) @ [0.2126, 0.7152, 0.0722]
        assert (np.diff(luminance) < 0).all() and luminance[0] >= pale and luminance[-1] < 40


@pytest.mark.parametrize("aligned", [True, False])
def test_heat_lies_where_the_position_is(aligned):
    white = np.full((40, 80, 3), 255, np.uint8)
    heat = np.zeros((3, 5))
    heat[1, 2] = 1  # the middle
    tile = OnPicture(white, aligned=aligned).tile(heat, 80)
    assert tile.shape == (40, 80, 3) and tile.dtype == np.uint8
    hot = strength(tile)
    assert hot[20, 40] > 150 and hot[0].max() < 10 and hot[:, 0].max() < 10
    corner = np.zeros((3, 5))
    corner[2, 4] = 1
    hot = strength(OnPicture(white, aligned=aligned).tile(corner, 80))
    assert hot[-1, -1] > 150 and hot[:10].max() < 1 and np.allclose(hot[-1, -1], hot.max())


def test_the_padding_is_cut_off():
    """A picture of 60 x 30 in a network's 80 x 40, and of 73 x 49 in one whose outermost positions lie on its edges."""
    grid = np.zeros((4, 8))
    grid[:3, :6] = np.arange(18).reshape(3, 6) / 17
    picture = np.full((30, 60, 3), 255, np.uint8)
    cut = OnPicture(picture, covered=(30 / 40, 60 / 80)).tile(grid, 60)
    assert np.abs(cut.astype(int) - OnPicture(picture).tile(grid[:3, :6], 60)).max(-1)[2:-6, 2:-6].max() <= 1
    ramp = np.broadcast_to(np.arange(13) / 12, (9, 13))
    picture = np.full((49, 73, 3), 255, np.uint8)
    cut = OnPicture(picture, covered=(48 / 64, 72 / 96), aligned=True).tile(ramp, 73)
    wanted = 255 * colours(np.arange(73) / 96) / 255
    assert np.abs(cut[20] - wanted).max() < 5


def test_the_picture_stays_visible_under_the_heat():
    image = np.zeros((20, 20, 3), np.uint8)
    image[:, 10:] = 255
    tile = OnPicture(image).tile(np.ones((1, 1)), 20).astype(int)
    assert (tile[:, 10:, 0] - tile[:, :9, 0][:, :1]).min() > 30
    assert OnPicture(image).tile(np.ones((1, 2)), 20).shape == (20, 20, 3)


def test_a_cloud_takes_the_colour_of_the_nearest_attended_point():
    points = rng().standard_normal((200, 3))
    attended = points[[3, 50, 120]]
    cloud = OnCloud(points, attended)
    wanted = [int(((attended - point) ** 2).sum(1).argmin()) for point in points]
    assert cloud.nearest.tolist() == wanted and cloud.nearest[[3, 50, 120]].tolist() == [0, 1, 2]
    hot = strength(cloud.tile(np.ones(3), 60)).max() - strength(cloud.tile(np.zeros(3), 60)).max()
    assert hot > 60 and cloud.plain(60).shape == (60, 60, 3)
    assert np.array_equal(OnCloud(points).nearest, np.arange(200))


def maps(heads, memories, *places):
    values = rng().random((heads, memories, *places))
    return values / values.sum(1, keepdims=True)


def test_a_sheet_of_all_kinds():
    picture = OnPicture(rng().integers(0, 255, (30, 60, 3), np.uint8))
    one = Layer("linu", maps(1, 32, 3, 6), picture)
    heads = Layer("blocks.0.attn", maps(4, 16, 3, 6), picture)
    many = Layer("blocks.1.attn", maps(24, 16, 3, 6), picture)
    cloud = Layer("sa1", maps(1, 5, 40), OnCloud(rng().standard_normal((40, 3))))
    heights = [attention_sheet([layer]).shape[0] for layer in (one, heads, many, cloud)]
    sheet = attention_sheet([one, heads, many, cloud])
    assert sheet.dtype == np.uint8 and sheet.shape[1:] == (WIDTH, 3) and sheet.shape[0] > max(heights)
    assert [len(tiles) for _, tiles in one.lines()] == [8, 8]
    assert [len(tiles) for _, tiles in heads.lines()] == [4]
    assert [len(tiles) for _, tiles in many.lines()] == [16, 8] and len(many.attention) > COLUMNS
    assert [len(tiles) for _, tiles in cloud.lines()] == [2, 2]


def test_what_a_sheet_says():
    picture = OnPicture(np.zeros((8, 8, 3), np.uint8))
    attention = np.zeros((1, 4, 2, 2))
    attention[0, :, 0], attention[0, :, 1] = [[0.8], [0], [0.15], [0.05]], [[0], [0.6], [0.3], [0.1]]
    layer = Layer("linu", attention, picture)
    assert layer.about() == "linu: 4 memories, 2 x 2 positions"
    assert layer.words() == ("linu: memory 0 40.0%, memory 1 30.0%; maps differ by 1.00 (most used), "
                             "0.00 (least used), 0.50 (between)")
    (words, most), (_, least) = layer.lines()
    assert words == ["most used"] and [label for label, _ in most] == ["memory 0  40.0%", "memory 1  30.0%"]
    assert [label for label, _ in least] == ["memory 3  7.5%", "memory 2  22.5%"]
    assert np.array_equal(most[1][1], attention[0, 1])
    heads = Layer("b", np.concatenate([attention, attention[:, ::-1]]), picture)
    assert heads.about() == "b: 2 heads, 4 memories, 2 x 2 positions"
    assert heads.words().startswith("b: head 1 memory 0 40.0%, head 2 memory 3 40.0%; maps differ by 1.00")
    assert heads.numbers() == pytest.approx(layer.numbers())
    assert Layer("c", np.concatenate([attention] * 9), picture).words() == (
        "c: 9 heads, 4 memories, 2 x 2 positions; maps differ by 1.00 (most used), 0.00 (least used), 0.50 (between)")


def test_maps_without_a_place_are_no_layer():
    nowhere = SimpleNamespace(grid=None, points=None, values=np.ones((1, 1, 2, 3)))
    assert OnPicture(np.zeros((4, 4, 3), np.uint8)).layer("a", nowhere, 0) is None
    assert OnCloud(np.zeros((4, 3))).layer("a", nowhere, 0) is None
