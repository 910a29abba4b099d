"""What mmsegmentation and JSeg do to training pictures besides scaling, cropping and mirroring."""
import colorsys

import numpy as np
import pytest

from jea.data.views import crops as T


def rng(*seed):
    return np.random.Generator(np.random.PCG64(seed))


@pytest.mark.parametrize("size, limits, wanted", [
    ((1024, 2048), (2049, 1025), (1025, 2049)),  # the longer side binds: factor 2049 / 2048; 1024.5 is rounded up
    ((300, 400), (2048, 512), (512, 683)),  # the shorter side binds: factor 512 / 300
    ((400, 300), (2048, 512), (683, 512)), ((100, 1000), (2048, 512), (205, 2048)), ((1, 1), (2, 1), (1, 1)),
])
def test_fit_size(size, limits, wanted):
    assert T.fit_size(size, limits) == wanted


def test_scale_range_and_fit():
    # A picture that counts its columns: the slope tells the factor.
    image = np.repeat(np.arange(101, dtype=np.float32)[None, :, None], 51, 0).repeat(3, 2)
    label = np.zeros((51, 101), np.uint8)
    widths = []
    for k in range(200):
        crop, _ = T.train_augment(image, label, rng(k), scale_range=(0.5, 2.0), fit=(202, 80), crop_size=20)
        widths.append(100 / abs(float(crop[0, 1, 0] - crop[0, 0, 0])) + 1)
    # fit's factor is min(202 / 101, 80 / 51) = 80 / 51, so widths lie between 0.5 and 2 times 158
    assert 78 < min(widths) < 85 and 300 < max(widths) < 317 and len({round(w) for w in widths}) > 90


def test_category_ratio_limit():
    # Left half class 0, right half class 1: a crop of one class, or with too much of one, is drawn again.
    label = np.zeros((10, 80), np.uint8)
    label[:, 40:] = 1
    image = np.zeros((10, 80, 3), np.float32)

    def share(k, limit):
        _, crop = T.train_augment(image, label, rng(k), scales=(1.0,), crop_size=10, max_class_share=limit)
        return max((crop == 0).mean(), (crop == 1).mean())
    free, limited = ([share(k, limit) for k in range(300)] for limit in (1.0, 0.75))
    assert np.mean(np.array(free) == 1) > 0.8
    # 71 places, 5 of them (30 to 70 % of class 0) are allowed: eleven draws find one with probability 1 - (66/71)^11
    assert abs(np.mean(np.array(limited) < 0.75) - (1 - (66 / 71) ** 11)) < 0.09
    assert [T._is_mixed(np.array([values], np.uint8), 0.75) for values in ([0, 0, 1, 1], [0, 0, 0, 1], [0, 0, 255, 255],
                                                                           [255], [0, 0, 0, 1, 1, 255])] == \
        [True, False, False, False, True]


def test_saturation_and_hue_are_hsvs():
    image = (rng(1).random((5, 7, 3)) * 255).astype(np.float32)
    image[0, 0], image[0, 1], image[0, 2] = 0, 128, (255, 0, 0)  # black, grey, saturated
    image[0, 3], image[0, 4] = (200, 200, 10), (10, 200, 200)  # two equal maxima
    for factor in (0.5, 1.5):
        got = T.scale_saturation(image, factor)
        for place in np.ndindex(5, 7):
            h, s, v = colorsys.rgb_to_hsv(*image[place].astype(float))
            assert np.allclose(got[place], colorsys.hsv_to_rgb(h, min(1, s * factor), v), atol=1e-3), place
    for degrees in (-36, 30, 200):
        got = T.shift_hue(image, degrees)
        for place in np.ndindex(5, 7):
            h, s, v = colorsys.rgb_to_hsv(*image[place].astype(float))
            assert np.allclose(got[place], colorsys.hsv_to_rgb((h + degrees / 360) % 1, s, v), atol=1e-3), place


def test_distortions_are_drawn_as_published():
    image = np.full((2, 2, 3), (60, 100, 140), np.float32)
    results = [T.distort_colours(image.copy(), rng(2, k))[0, 0] for k in range(800)]
    unchanged = np.mean([np.allclose(r, image[0, 0]) for r in results])
    assert abs(unchanged - 1 / 16) < 0.03  # four coins
    assert min(r.min() for r in results) >= -1e-4 and max(r.max() for r in results) <= 255
    # grey stays grey, and shows brightness and contrast alone
    grey = np.array([T.distort_colours(np.full((1, 1, 3), 100, np.float32), rng(3, k))[0, 0] for k in range(800)])
    assert np.allclose(grey, grey[:, :1], atol=1e-3)
    values = grey[:, 0]
    assert 100 * 0.5 - 16 - 1 < values.min() + 16 and values.max() > 150 and values.max() <= 132 * 1.5 + 1e-3
    assert abs(np.mean(np.isclose(values, 100)) - 1 / 4) < 0.05  # neither brightness nor contrast


def test_finish_sees_the_crop_before_it_is_padded():
    seen = []
    image, label = T.train_augment(np.ones((4, 6, 3), np.float32), np.zeros((4, 6), np.uint8), rng(0), scales=(1.0,),
                                   crop_size=8, finish=lambda crop: seen.append(crop.shape) or crop * 3)
    assert seen == [(4, 6, 3)] and (image[label == 0] == 3).all() and not image[label == 255].any()
