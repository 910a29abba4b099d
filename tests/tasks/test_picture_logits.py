"""Test modes: sliding windows, whole pictures, scales, mirrors, and the memory that they take."""
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import jea
from jea._jittor import jt, nn
from jea.data.views.crops import MEAN, STD, normalise, pad_8n1
from jea.nn.mode import evaluating
from jea.ops import resize_bilinear
from jea.tasks import picture_logits as module
from jea.tasks.picture_logits import PictureLogits, picture_logits, window_boxes


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture(scope="module")
def network():
    jt.set_global_seed(1)
    network = jea.create_model("eanet_tiny", num_classes=5)
    for module_ in network.modules():
        if hasattr(module_, "running_var"):
            module_.running_var.assign(jt.rand(module_.running_var.shape) + 0.5)
    return network


def plain(network, image, scales=(1.0,), flip=False):
    """Upstream's test, straight: everything at the picture's own size."""
    x = normalise(image).transpose(2, 0, 1)[None]
    height, width = x.shape[2:]
    total = np.zeros((network.num_classes, height, width), np.float32)
    with evaluating(network):
        for mirrored in (False, True) if flip else (False,):
            for scale in scales:
                h, w = int(scale * height), int(scale * width)
                source = jt.array(np.ascontiguousarray(x[..., ::-1] if mirrored else x))
                padded = np.zeros((1, 3, pad_8n1(h), pad_8n1(w)), np.float32)
                padded[:, :, :h, :w] = resize_bilinear(source, (h, w)).numpy()
                logits = network(jt.array(padded)).numpy()[:, :, :h, :w]
                logits = resize_bilinear(jt.array(np.ascontiguousarray(logits)), (height, width)).numpy()[0]
                total += logits[..., ::-1] if mirrored else logits
    return total


@pytest.mark.parametrize("scales, flip", [((1.0,), False), ((0.75, 1.0, 1.5), True)])
def test_scales_and_mirror(network, scales, flip, monkeypatch, close):
    image = picture(43, 70)
    wanted = plain(network, image, scales, flip)
    got = picture_logits(network, image, scales=scales, flip=flip)
    close(got.full(), wanted, 1e-6)
    assert np.array_equal(got.argmax(), wanted.argmax(0)) and got.argmax().dtype == np.uint8
    monkeypatch.setattr(module, "BLOCK_BYTES", 4 * 2 * 105 * 65)  # two classes at a time, argmax in strips
    blocks = picture_logits(network, image, scales=scales, flip=flip)
    assert np.array_equal(blocks.full(), got.full()) and np.array_equal(blocks.argmax(), got.argmax())


def test_one_window_that_covers_the_picture_is_the_whole_picture(network):
    image = picture(43, 70)
    whole = picture_logits(network, image, scales=(0.5, 1.0), flip=True).full()
    slide = picture_logits(network, image, scales=(0.5, 1.0), flip=True, window=70, window_stride=30).full()
    assert np.array_equal(whole, slide)
    smaller = picture_logits(network, image, scales=(0.5, 1.0), flip=True, window=65, window_stride=30).full()
    assert not np.array_equal(smaller, whole)


@pytest.mark.parametrize("size, window, stride, tops, lefts", [
    ((1024, 2048), 769, 513, [0, 255], [0, 513, 1026, 1279]),  # Cityscapes
    ((1025, 769), 769, 513, [0, 256], [0]), ((500, 1282), 769, 513, [0], [0, 513]), ((9, 14), 9, 5, [0], [0, 5]),
    ((9, 15), 9, 5, [0], [0, 5, 6]),
])
def test_windows(size, window, stride, tops, lefts):
    boxes = window_boxes(size, window, stride)
    assert boxes == [(top, left, min(window, size[0]), min(window, size[1])) for top in tops for left in lefts]
    covered = np.zeros(size, int)
    for top, left, height, width in boxes:
        covered[top:top + height, left:left + width] += 1
    assert covered.min() == 1
    assert window_boxes(size, None, stride) == [(0, 0, *size)]


class FirstPixel(nn.Module):
    """Logits that are the same all over a window: the red value of its first pixel, and twice that."""
    num_classes, output_stride = 2, 8

    def low_logits(self, x):
        red = x[:, :1, :1, :1] * float(STD[0]) + float(MEAN[0])  # 0..1
        grid = jt.ones((1, 1, (x.shape[2] - 1) // 8 + 1, (x.shape[3] - 1) // 8 + 1))
        return jt.concat([red * grid, 2 * red * grid], dim=1)


def test_overlap_by_hand():
    image = np.zeros((12, 14, 3), np.uint8)
    image[:, :, 0] = np.arange(14) * 10 + np.arange(12)[:, None]
    got = picture_logits(FirstPixel(), image, window=9, window_stride=5).full() * 255
    # windows start at rows 0, 3 and columns 0, 5; their first pixels are 0, 50, 3, 53
    wanted = np.zeros((12, 14))
    wanted[0:3, 0:5], wanted[0:3, 5:9], wanted[0:3, 9:14] = 0, 25, 50
    wanted[3:9, 0:5], wanted[3:9, 5:9], wanted[3:9, 9:14] = 1.5, (0 + 50 + 3 + 53) / 4, 51.5
    wanted[9:12, 0:5], wanted[9:12, 5:9], wanted[9:12, 9:14] = 3, 28, 53
    assert np.allclose(got[0], wanted, atol=1e-3) and np.allclose(got[1], 2 * wanted, atol=2e-3)


def test_mirrored_pictures_are_mirrored_back():
    image = np.zeros((8, 20, 3), np.uint8)
    image[:, :, 0] = np.arange(20) * 10
    for stride in (1, 3):
        found = picture_logits(FirstPixel(), image, window=9, window_stride=9, flip=True, stride=stride)
        got = found.full()[0, 0] * 255
        # plain: windows at 0, 9, 11 -> 0, 90, 110; mirrored: first pixels 190, 100, 80 at columns 19 and down, 10, 8
        plain_row = np.concatenate([[0] * 9, [90] * 2, [100] * 7, [110] * 2])
        mirrored = np.concatenate([[190] * 9, [100] * 2, [90] * 7, [80] * 2])[::-1]
        if stride == 1:
            assert np.allclose(got, plain_row + mirrored, atol=1e-3)
        else:
            known = [0, 3, 6, 9, 12, 15, 18, 19]
            assert np.allclose(got[known], (plain_row + mirrored)[known], atol=1e-3)


def test_logit_stride(network, close):
    image = picture(41, 73)  # both 8n + 1: the coarse logits' own grid, so nothing is lost
    whole = picture_logits(network, image)
    for stride in (2, 4, 8):
        coarse = picture_logits(network, image, stride=stride)
        assert coarse.values.shape == (5, 40 // stride + 1, 72 // stride + 1)
        close(coarse.full(), whole.full(), 2e-6, f"stride {stride}")
        assert (coarse.argmax() == whole.argmax()).mean() > 0.999
    image = picture(42, 71)
    whole, coarse = picture_logits(network, image, flip=True), picture_logits(network, image, flip=True, stride=4)
    assert coarse.rows.tolist() == [*range(0, 41, 4), 41] and coarse.columns.tolist() == [*range(0, 70, 4), 70]
    kept = np.ix_(range(5), coarse.rows, coarse.columns)
    assert np.array_equal(coarse.full()[kept], whole.full()[kept])


def test_interpolation_by_hand():
    logits = PictureLogits(1, (1, 6), 4)
    assert logits.columns.tolist() == [0, 4, 5] and logits.rows.tolist() == [0]
    logits.values[0, 0] = 0, 8, 6
    assert logits.full()[0, 0].tolist() == [0, 2, 4, 6, 8, 6]


def test_probabilities(network, close):
    image = picture(41, 49)

    def softmax(x):
        x = np.exp(x - x.max(0))
        return x / x.sum(0)
    wanted = softmax(plain(network, image)) + softmax(plain(network, image, (0.5,)))
    close(picture_logits(network, image, scales=(1.0, 0.5), probabilities=True).full(), wanted, 1e-5)


def test_fit(network, close):
    image = picture(30, 40)
    got = picture_logits(network, image, fit=(200, 60)).full()  # the shorter side becomes 60
    close(got, plain_resized(network, image, (60, 80)), 1e-6)
    got = picture_logits(network, image, fit=(60, 60), scales=(1.5,)).full()  # 90 x 90: the longer side becomes 90
    close(got, plain_resized(network, image, (68, 90)), 1e-6)


def plain_resized(network, image, size):
    x = jt.array(np.ascontiguousarray(normalise(image).transpose(2, 0, 1)[None]))
    padded = np.zeros((1, 3, pad_8n1(size[0]), pad_8n1(size[1])), np.float32)
    padded[:, :, :size[0], :size[1]] = resize_bilinear(x, size).numpy()
    with evaluating(network):
        logits = network(jt.array(padded)).numpy()[:, :, :size[0], :size[1]]
    return resize_bilinear(jt.array(np.ascontiguousarray(logits)), image.shape[:2]).numpy()[0]


MEMORY = """
import resource, sys
import numpy as np
import jea
from jea.tasks.segmentation import Segmentation
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
task = Segmentation(model={"name": "eanet_tiny", "num_classes": 150}, data={"name": "ade20k", "root": "unused"},
                    eval={"mode": sys.argv[1], "logit_stride": 4, "probabilities": True})
task.fuse()
image = np.random.default_rng(0).integers(0, 256, (1024, 2048, 3), np.uint8)
task.classes(image[:129, :129])
before = peak()
assert task.classes(image, scales=(float(sys.argv[2]),)).shape == (1024, 2048)
print(f"{before:.0f} {peak() - before:.0f}")
"""


@pytest.mark.parametrize("mode, scale", [
    ("slide", "1.0"), pytest.param("whole", "1.0", marks=pytest.mark.slow),
    pytest.param("slide", "1.75", marks=pytest.mark.slow)])
def test_memory_at_2048_by_1024(mode, scale):
    done = subprocess.run([sys.executable, "-c", MEMORY, mode, scale], capture_output=True, text=True, timeout=500,
                          cwd=Path(__file__).parents[2], env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    before, grown = map(float, done.stdout.split())
    print(f"2048 x 1024, 150 classes, {mode}, scale {scale}: {grown:.0f} MB on top of {before:.0f} MB")
    # The logits of all classes at this size take 1200 MB alone, at scale 1.75 3700 MB.
    assert grown < (700 if scale == "1.0" else 1000)
