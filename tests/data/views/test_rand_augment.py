"""RandAugment's operations against numbers worked out by hand."""
import math

import numpy as np
import pytest
from scripted import Script, generator, grey, picture

from jea.data.views.augment import (
    OPERATIONS,
    rand_augment,
)

# -- RandAugment

def run(name, image, t, *draws):
    rng = Script(*draws)
    out = np.asarray(OPERATIONS[name](image, t, rng))
    assert rng.done(), name
    return out


MORE, LESS = ("random", None, 0.5), ("random", None, 0.4)  # the sign: + from one half on


@pytest.mark.parametrize("name, t, draws, before, after", [
    ("AutoContrast", 0.9, [], [50, 100, 150], [0, 127, 255]),
    ("Equalize", 0.9, [], [10] * 255 + [20] * 255, [0] * 255 + [255] * 255),
    ("Invert", 0.9, [], [0, 100, 255], [255, 155, 0]),
    ("Posterize", 0.9, [], [100, 127, 128, 255], [0, 0, 128, 128]),  # 4 - int(3.6) = 1 bit
    ("Posterize", 0.5, [], [63, 64, 200], [0, 64, 192]),  # 2 bits
    ("Posterize", 1.0, [], [255, 3], [0, 0]),
    ("Posterize", 0.0, [], [255, 31], [240, 16]),
    ("Solarize", 0.9, [], [25, 26, 200], [25, 229, 55]),  # threshold 256 - 230
    ("Solarize", 0.0, [], [0, 255], [0, 255]),
    ("SolarizeAdd", 0.9, [], [20, 127, 128, 200], [119, 226, 128, 200]),  # adds 99 below 128
    ("Brightness", 0.9, [LESS], [200, 100], [38, 19]),  # factor 0.19
    ("Brightness", 0.5, [MORE], [100, 200], [145, 255]),  # factor 1.45
    ("Contrast", 1.0, [LESS], [100, 200], [145, 155]),  # 0.1 around 150
    ("Color", 0.9, [LESS], [77, 200], [77, 200]),
])
def test_operations_on_grey_levels(name, t, draws, before, after):
    assert run(name, grey([before]), t, *draws)[0, :, 0].tolist() == after


def test_color_takes_the_saturation():
    assert run("Color", picture([[[255, 0, 0]]]), 1.0, LESS).tolist() == [[[93, 68, 68]]]  # 76 + 0.1 * (179, -76, -76)
    # 115 + 1.45 * (35, -15, -15)
    assert run("Color", picture([[[150, 100, 100]]]), 0.5, MORE).tolist() == [[[165, 93, 93]]]


def test_sharpness():
    image = np.zeros((5, 5), np.uint8)
    image[2, 2] = 130  # smoothed with 1/13 [1 1 1; 1 5 1; 1 1 1]: 50, and 10 around it
    out = run("Sharpness", grey(image), 1.0, LESS)[:, :, 0]  # factor 0.1: 50 + 0.1 * 80
    assert out[2].tolist() == [0, 9, 58, 9, 0]
    assert run("Sharpness", grey(image), 1.0, MORE)[2, 1:4, 0].tolist() == [0, 202, 0]  # 50 + 1.9 * 80


FILL = [124, 116, 104]


@pytest.mark.parametrize("filter", [0, 1])
def test_translate(filter):
    image = generator().integers(0, 256, (20, 40, 3), np.uint8)
    draws = ("integers", (2,), filter)
    out = run("TranslateX", picture(image), 0.5, MORE, draws)  # 0.45 * 0.5 * 40 = 9 pixels to the left
    assert np.array_equal(out[:, :31], image[:, 9:]) and (out[:, 31:] == FILL).all()
    out = run("TranslateX", picture(image), 0.5, LESS, draws)
    assert np.array_equal(out[:, 9:], image[:, :31]) and (out[:, :9] == FILL).all()
    out = run("TranslateY", picture(image), 1.0, MORE, draws)  # 0.45 * 20 = 9
    assert np.array_equal(out[:11], image[9:]) and (out[11:] == FILL).all()


def test_shear():
    image = np.zeros((40, 40), np.uint8)
    image[:, 20:] = 200  # an edge at x = 20; out(x, y) = in(x + 0.3 y, y), so it goes to 20 - 0.3 y
    out = run("ShearX", grey(image), 1.0, MORE, ("integers", (2,), 0))[:, :, 0].astype(float)
    for y in (0, 10, 30):
        bright = out[y, :27].sum() / 200  # columns from the edge to 27, before the fill comes in
        assert 27 - bright == pytest.approx(20 - 0.3 * (y + 0.5), abs=0.05)
    assert (run("ShearX", grey(image), 1.0, MORE, ("integers", (2,), 0))[30, 35:] == FILL).all()
    turned = run("ShearY", grey(image.T), 1.0, LESS, ("integers", (2,), 0))[:, :, 0].astype(float)
    for x in (0, 10):
        assert 27 - turned[10:27, x].sum() / 200 == pytest.approx(20 + 0.3 * (x + 0.5), abs=0.05)


@pytest.mark.parametrize("sign, y", [(MORE, 15), (LESS, 25)])  # to the left, to the right
def test_rotate(sign, y):
    image = np.zeros((41, 41), np.uint8)
    image[19:22, 29:32] = 255  # around (30, 20), ten to the right of the centre
    out = run("Rotate", grey(image), 1.0, sign, ("integers", (2,), 0))[:, :, 0].astype(float)
    inner = out[8:33, 8:33]
    ys, xs = np.mgrid[8:33, 8:33]
    assert (inner * xs).sum() / inner.sum() == pytest.approx(20 + 10 * math.cos(math.pi / 6), abs=0.1)
    assert (inner * ys).sum() / inner.sum() == pytest.approx(y, abs=0.1)


def test_rand_augment_draws_operations_and_levels():
    names = list(OPERATIONS)
    assert len(names) == 15
    image = grey([[0, 100, 255]])
    rng = Script(("integers", (15, 2), [names.index("Invert"), names.index("Solarize")]), ("random", None, 0.4),
                 ("normal", (9, 0.5), 9.0), ("random", None, 0.4), ("normal", (9, 0.5), 12.0))
    # inverted to 255, 155, 0; level 12 is cut to 10: threshold 0, all inverted again
    assert np.asarray(rand_augment(image, rng))[0, :, 0].tolist() == [0, 100, 255] and rng.done()
    rng = Script(("integers", (15, 2), [names.index("Invert")] * 2), ("random", None, 0.5), ("random", None, 0.49),
                 ("normal", None, -3.0))
    assert np.asarray(rand_augment(image, rng))[0, :, 0].tolist() == [255, 155, 0] and rng.done()


def test_every_operation_keeps_size_and_type():
    image = picture(generator().integers(0, 256, (13, 17, 3)))
    for name, operation in OPERATIONS.items():
        for seed in range(6):
            out = operation(image, generator(seed).random(), generator(seed))
            assert out.size == (17, 13) and out.mode == "RGB", name
