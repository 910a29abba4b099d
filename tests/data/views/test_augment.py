"""Augmentations against numbers worked out by hand, with the random draws written into the test."""
import math

import numpy as np
import pytest
from PIL import Image
from scripted import Script, generator, picture

from jea.data import Loader, ShapeClasses
from jea.data.views.augment import (
    TrainPicture,
    TrainView,
    cut_box,
    eval_picture,
    jitter_colors,
    mix_batch,
    random_crop_box,
    random_erase,
    soft_targets,
)
from jea.data.views.crops import MEAN, STD, normalise

# -- evaluation

def test_eval_crop_of_a_picture_that_needs_no_resize():
    """floor(9 / 0.9) = 10 is the shorter side already; (20 - 9) / 2 = 5.5 and 0.5 round to the even 6 and 0."""
    image = generator().integers(0, 256, (10, 20, 3), np.uint8)
    out = eval_picture(image, 9, 0.9)
    assert out.dtype == np.float32 and out.flags.c_contiguous
    assert np.array_equal(out, normalise(image[0:9, 6:15]).transpose(2, 0, 1))
    assert np.array_equal(eval_picture(np.ascontiguousarray(image.transpose(1, 0, 2)), 9, 0.9),
                          normalise(image.transpose(1, 0, 2)[6:15, 0:9]).transpose(2, 0, 1))


@pytest.mark.parametrize("size, pct, wanted", [(224, 0.9, (330, 248)), (384, 0.9, (568, 426)), (32, 1.0, (42, 32))])
def test_eval_sizes(size, pct, wanted, monkeypatch):
    """500 x 375: 224 / 0.9 -> 248 and int(248 * 500 / 375) = 330; 384 / 0.9 -> 426 and int(426 * 4 / 3) = 568."""
    seen = []
    resize = Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda self, *how: seen.append(how) or resize(self, *how))
    assert eval_picture(np.zeros((375, 500, 3), np.uint8), size, pct).shape == (3, size, size)
    assert seen == [(wanted, Image.Resampling.BICUBIC)]


def test_eval_resize_is_bicubic_and_antialiased():
    """Half the size: a bright column at distance 1/4 and 3/4 of the kernel (a = -1/2) weighs 0.4336 and 0.1133."""
    image = np.zeros((40, 40, 3), np.uint8)
    image[:, 10] = 255
    out = eval_picture(image, 20, 1.0) * STD[:, None, None] + MEAN[:, None, None]
    assert np.rint(out[0, 7] * 255).astype(int)[3:8].tolist() == [0, 29, 111, 0, 0]


# -- crop

def whole_then_cut(image, size, pct):
    """What evaluation is by definition: (size, size, 3) uint8."""
    height, width = image.shape[:2]
    short = math.floor(size / pct)
    new = (short, int(short * height / width)) if width < height else (int(short * width / height), short)
    resized = Image.fromarray(image).resize(new, Image.Resampling.BICUBIC)
    left, top = round((new[0] - size) / 2), round((new[1] - size) / 2)
    return np.asarray(resized.crop((left, top, left + size, top + size)))


def test_eval_of_ordinary_pictures_to_the_last_bit():
    rng = generator()
    for k in range(60):
        short = int(rng.integers(8, 300))
        sides = [short, int(short * rng.uniform(1, 15.9))]
        image = rng.integers(0, 256, (*sides[::(-1) ** k], 3), np.uint8)
        size, pct = int(rng.integers(16, 100)), rng.uniform(0.7, 1)
        assert np.array_equal(eval_picture(image, size, pct),
                              normalise(whole_then_cut(image, size, pct)).transpose(2, 0, 1)), image.shape


def test_eval_of_thin_pictures_makes_no_large_picture(monkeypatch):
    """4 x 40000 at 248 rows would be 248 x 2480000, 1.8 GB."""
    ramp = np.linspace(20, 230, 600).astype(np.uint8)
    image = np.repeat(np.repeat(ramp[None, :, None], 12, 0), 3, 2)  # 12 x 600
    image[:6, :, 1] //= 2
    for thin in (image, np.ascontiguousarray(image.transpose(1, 0, 2))):
        difference = eval_picture(thin, 36, 0.9) - normalise(whole_then_cut(thin, 36, 0.9)).transpose(2, 0, 1)
        assert np.abs(difference).max() <= 1.01 / 255 / min(STD)
    seen, resize = [], Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize",
                        lambda self, size, *a, **k: seen.append(size) or resize(self, size, *a, **k))
    for shape in ((4, 40000, 3), (40000, 4, 3), (1, 65000, 3)):
        assert eval_picture(np.full(shape, 90, np.uint8), 224).shape == (3, 224, 224)
    assert seen == [(224, 224)] * 3


def test_crop_box():
    rng = Script(("uniform", (0.08, 1.0), 0.25), ("uniform", (math.log(3 / 4), math.log(4 / 3)), math.log(1.25)),
                 ("integers", (23,), 22), ("integers", (58,), 5))
    # area 0.25 * 40 * 80 = 800; width sqrt(800 * 1.25) = 31.6, height sqrt(800 / 1.25) = 25.3
    h, w = 25, 32
    rng.draws[2:] = [("integers", (40 - h + 1,), 15), ("integers", (80 - w + 1,), 48)]
    assert random_crop_box(40, 80, rng) == (15, 48, 25, 32) and rng.done()


@pytest.mark.parametrize("height, width, wanted", [
    (10, 100, (0, 43, 10, 13)),  # round(10 * 4 / 3) wide, (100 - 13) // 2 from the left
    (100, 10, (43, 0, 13, 10)),
    (10, 12, (0, 0, 10, 12)),
])
def test_crop_box_when_nothing_fits(height, width, wanted):
    assert random_crop_box(height, width, generator(), scale=(4, 4)) == wanted


def test_crop_boxes_over_many_draws():
    rng = generator()
    boxes = np.array([random_crop_box(100, 100, rng) for _ in range(4000)])
    top, left, h, w = boxes.T
    assert (top >= 0).all() and (left >= 0).all() and (top + h <= 100).all() and (left + w <= 100).all()
    ratio, area = w / h, h * w / 1e4
    assert 0.72 < ratio.min() and ratio.max() < 1.39 and abs(np.log(ratio).mean()) < 0.02
    assert 0.07 < area.min() < 0.1 and 0.95 < area.max() and 0.4 < area.mean() < 0.54


def test_train_picture_crops_resizes_and_mirrors():
    image = generator().integers(0, 256, (40, 80, 3), np.uint8)
    draws = [("uniform", None, 0.25), ("uniform", None, 0.0), ("integers", (13,), 3), ("integers", (53,), 50)]
    for k, filter in enumerate((Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)):
        for u, mirrored in ((0.4, True), (0.6, False)):
            rng = Script(*draws, ("integers", (2,), k), ("random", None, u), ("random", None, 0.9))
            out = TrainPicture(size=16, erase=0.25)(image, rng)
            wanted = np.asarray(Image.fromarray(image[3:31, 50:78]).resize((16, 16), filter))
            wanted = wanted[:, ::-1] if mirrored else wanted
            assert np.array_equal(out, normalise(wanted).transpose(2, 0, 1)) and rng.done()


def test_train_picture_runs_the_rest_only_where_it_is_asked_for():
    image = generator().integers(0, 256, (20, 20, 3), np.uint8)
    plain = dict(size=20, crop_scale=(1, 1), crop_ratio=(1, 1), flip=0.0)
    untouched = normalise(image).transpose(2, 0, 1)
    assert np.array_equal(TrainPicture(**plain)(image, generator()), untouched)
    for option in ({"rand_augment": 9.0}, {"color_jitter": 0.4}, {"erase": 1.0}):
        outs = [TrainPicture(**plain, **option)(image, generator(seed)) for seed in range(8)]
        assert sum(not np.array_equal(out, untouched) for out in outs) >= 4, option


# -- erasing

def test_erase():
    image = np.zeros((3, 20, 40), np.float32)
    noise = np.arange(3 * 20 * 10, dtype=np.float32).reshape(3, 20, 10) + 1
    # 0.25 * 800 = 200 pixels; height sqrt(200 * 2) = 20 does not fit below 20, then sqrt(200 / 2) = 10 by 20
    rng = Script(("uniform", (0.02, 1 / 3), 0.25), ("uniform", (math.log(0.3), math.log(1 / 0.3)), math.log(2)),
                 ("uniform", None, 0.25), ("uniform", None, -math.log(2)), ("integers", (11,), 10),
                 ("integers", (21,), 7), ("standard_normal", None, noise.reshape(3, 10, 20)))
    random_erase(image, rng)
    assert rng.done() and np.array_equal(image[:, 10:20, 7:27], noise.reshape(3, 10, 20))
    assert (image != 0).sum() == 600


def test_erase_over_many_draws():
    rng, share, values = generator(), [], []
    for _ in range(400):
        image = np.full((3, 50, 50), 9, np.float32)
        random_erase(image, rng)
        erased = image != 9
        assert (erased[0] == erased[1]).all() and (erased[0] == erased[2]).all()
        share.append(erased[0].mean())
        values.append(image[erased])
    values = np.concatenate(values)
    assert 0.015 < min(share) and max(share) < 0.345 and 0.15 < np.mean(share) < 0.2  # (0.02 + 1/3) / 2
    assert abs(values.mean()) < 0.02 and abs(values.std() - 1) < 0.02


# -- colours

def test_color_jitter():
    image = np.zeros((4, 4, 3), np.uint8)
    image[:, :2], image[:, 2:] = (100, 100, 100), (50, 50, 50)
    rng = Script(("permutation", (3,), [0, 1, 2]), ("uniform", (0.6, 1.4), 1.4), ("uniform", (0.6, 1.4), 0.6),
                 ("uniform", (0.6, 1.4), 0.6))
    out = np.asarray(jitter_colors(Image.fromarray(image), rng, 0.4))
    # brightness 140 and 70; contrast around their mean 105: 126 and 84; grey has no saturation to lose
    assert out[0, 0].tolist() == [126] * 3 and out[0, 3].tolist() == [84] * 3 and rng.done()
    rng = Script(("permutation", (3,), [2, 0, 1]), ("uniform", (0.0, 3.0), 0.0), ("uniform", None, 1.0),
                 ("uniform", None, 1.0))
    assert np.asarray(jitter_colors(picture([[[255, 0, 0]]]), rng, 2.0)).tolist() == [[[76] * 3]]  # 0.299 * 255


# -- batches

def test_soft_targets():
    out = soft_targets(np.array([2, 0]), 4, 0.1)
    assert out.dtype == np.float32
    assert out == pytest.approx(np.array([[0.025, 0.025, 0.925, 0.025], [0.925, 0.025, 0.025, 0.025]]))
    assert soft_targets(np.array([1]), 3).tolist() == [[0, 1, 0]]


def batch():
    images = np.arange(3 * 2 * 4 * 4, dtype=np.float32).reshape(3, 2, 4, 4)
    return images, np.eye(3, dtype=np.float32)


def test_mixup():
    images, targets = batch()
    rng = Script(("random", None, 0.0), ("random", None, 0.5), ("beta", (0.8, 0.8), 0.75))
    mixed, soft = mix_batch(images, targets, rng)
    assert mixed.dtype == soft.dtype == np.float32 and rng.done()
    assert mixed == pytest.approx(0.75 * images + 0.25 * images[[2, 1, 0]])
    assert soft.tolist() == [[0.75, 0, 0.25], [0, 1, 0], [0.25, 0, 0.75]]
    assert np.array_equal(images, batch()[0])  # the given batch is untouched


def test_cutmix():
    images, targets = batch()
    rng = Script(("random", None, 0.0), ("random", None, 0.49), ("beta", (1.0, 1.0), 0.75), ("integers", (4,), 0),
                 ("integers", (4,), 2))
    mixed, soft = mix_batch(images, targets, rng)
    # a box of 2 x 2 around row 0, column 2, of which one row is inside: 2 of 16 pixels
    wanted = images.copy()
    wanted[:, :, 0:1, 1:3] = images[[2, 1, 0], :, 0:1, 1:3]
    assert np.array_equal(mixed, wanted) and rng.done()
    assert soft.tolist() == [[0.875, 0, 0.125], [0, 1, 0], [0.125, 0, 0.875]]


@pytest.mark.parametrize("lam, y, x, box, outside", [
    (0.75, 0, 7, (0, 5, 2, 8), 1 - 6 / 64), (0.75, 4, 4, (2, 2, 6, 6), 0.75), (1.0, 3, 3, (3, 3, 3, 3), 1.0),
    (0.0, 4, 4, (0, 0, 8, 8), 0.0), (0.0, 0, 0, (0, 0, 4, 4), 0.75),
])
def test_cut_box(lam, y, x, box, outside):
    assert cut_box(8, 8, lam, Script(("integers", (8,), y), ("integers", (8,), x))) == (box, outside)


def test_what_is_mixed_at_all():
    images, targets = batch()
    same = mix_batch(images, targets, Script(), mixup=0, cutmix=0)
    assert same[0] is images and same[1] is targets
    same = mix_batch(images, targets, Script(("random", None, 0.5)), prob=0.5)
    assert same[0] is images
    rng = Script(("random", None, 0.4), ("beta", (1.0, 1.0), 0.0), ("integers", None, 0), ("integers", None, 0))
    assert mix_batch(images, targets, rng, mixup=0, prob=0.5)[0] is not images and rng.done()  # CutMix without a switch
    rng = Script(("random", None, 0.4), ("beta", (0.2, 0.2), 0.0))
    assert np.array_equal(mix_batch(images, targets, rng, mixup=0.2, cutmix=0)[0], images[::-1]) and rng.done()


# -- with the loader

def test_training_samples_do_not_depend_on_the_workers():
    transform = TrainPicture(size=24, rand_augment=9, color_jitter=0.4, erase=0.5)
    batches = []
    for workers in (0, 2):
        view = TrainView(ShapeClasses(num_train=20), transform)
        with Loader(view, batch_size=8, seed=3, num_workers=workers) as loader:
            batches.append(list(loader.epoch(1)))
    assert len(batches[0]) == 2 and batches[0][0]["image"].shape == (8, 3, 24, 24)
    assert batches[0][0]["label"].dtype == np.int32
    assert np.array_equal(batches[0][0]["label"], batches[0][0]["index"] % 10)
    for a, b in zip(*batches):
        assert all(np.array_equal(a[key], b[key]) for key in a)
