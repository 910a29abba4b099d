import numpy as np
import pytest

from jea.data.views import crops as T


def rng(*seed):
    return np.random.Generator(np.random.PCG64(seed))


def test_normalise_by_hand():
    image = np.array([[[0, 128, 255]]], np.uint8)
    out = T.normalise(image)
    f = np.float32
    expected = [(f(0) / f(255) - f(0.485)) / f(0.229), (f(128) / f(255) - f(0.456)) / f(0.224),
                (f(255) / f(255) - f(0.406)) / f(0.225)]
    assert out.dtype == np.float32 and out.shape == (1, 1, 3)
    assert out[0, 0].tolist() == expected
    with pytest.raises(ValueError, match="float32"):
        T.normalise(out)


def test_bilinear_by_hand():
    # Aligned corners: 3 outputs over 2 inputs lie at 0, 0.5, 1; the corners stay.
    image = np.array([[0, 2], [4, 10]], np.float32)[:, :, None]
    assert T.resize_bilinear(image, (3, 3))[:, :, 0].tolist() == [[0, 1, 2], [2, 4, 6], [4, 7, 10]]
    # 4 inputs to 2 outputs: only the ends; to 1 output: only the first.
    row = np.array([[1, 5, 7, 9]], np.float32)[:, :, None]
    assert T.resize_bilinear(row, (1, 2))[0, :, 0].tolist() == [1, 9]
    assert T.resize_bilinear(row, (1, 1))[0, :, 0].tolist() == [1]
    assert T.resize_bilinear(row, (2, 7))[1, :, 0].tolist() == [1, 3, 5, 6, 7, 8, 9]


def test_nearest_by_hand():
    # floor(i * 5 / 3) = 0, 1, 3; floor(i * 2 / 5) = 0, 0, 0, 1, 1
    assert T.resize_nearest(np.arange(5, dtype=np.uint8)[None], (1, 3)).tolist() == [[0, 1, 3]]
    assert T.resize_nearest(np.array([[7], [9]], np.uint8), (5, 1))[:, 0].tolist() == [7, 7, 7, 9, 9]


SIZES = [((37, 50), (18, 25)), ((37, 50), (74, 100)), ((375, 500), (412, 550)), ((500, 333), (350, 233)),
         ((1, 7), (3, 1)), ((5, 1), (2, 9)), ((33, 65), (33, 65)), ((96, 121), (168, 211))]


@pytest.mark.parametrize("old, new", SIZES)
def test_resizes_equal_torch(old, new):
    torch = pytest.importorskip("torch")
    interpolate = torch.nn.functional.interpolate
    image = rng(1).standard_normal((*old, 3)).astype(np.float32)
    label = rng(2).integers(0, 256, old).astype(np.uint8)
    planes = torch.from_numpy(image).permute(2, 0, 1)[None]
    theirs = interpolate(planes, new, mode="bilinear", align_corners=True)
    ours = T.resize_bilinear(image, new)
    assert ours.shape == (*new, 3) and ours.dtype == np.float32
    assert np.abs(ours - theirs[0].permute(1, 2, 0).numpy()).max() <= 1e-5
    theirs = interpolate(torch.from_numpy(label).float()[None, None], new, mode="nearest")[0, 0].numpy()
    assert (T.resize_nearest(label, new) == theirs).all()


@pytest.mark.parametrize("window", [(0, 0, 40, 70), (11, 3, 20, 30), (39, 69, 1, 1)])
@pytest.mark.parametrize("old", [(25, 90), (40, 70)])
def test_window_is_a_part_of_the_whole(old, window):
    image = rng(3).standard_normal((*old, 3)).astype(np.float32)
    label = rng(4).integers(0, 21, old).astype(np.uint8)
    top, left, height, width = window
    part = np.s_[top:top + height, left:left + width]
    for resize, array in ((T.resize_bilinear, image), (T.resize_nearest, label)):
        assert (resize(array, (40, 70), window=window) == resize(array, (40, 70))[part]).all()


def test_resize_makes_a_new_array_and_refuses_nonsense():
    image = np.zeros((4, 4, 3), np.float32)
    T.resize_bilinear(image, (4, 4))[:] = 1
    assert not image.any()
    with pytest.raises(ValueError, match="at least 1"):
        T.resize_bilinear(image, (0, 4))
    with pytest.raises(ValueError, match="window"):
        T.resize_bilinear(image, (4, 4), window=(2, 0, 3, 4))
    with pytest.raises(ValueError, match="float64"):
        T.resize_bilinear(image.astype(float), (4, 4))


@pytest.mark.parametrize("stride, table", [
    (8, {1: 1, 2: 9, 8: 9, 9: 9, 10: 17, 17: 17, 18: 25, 60: 65, 90: 97, 121: 121, 151: 153, 181: 185}),
    (16, {1: 1, 2: 17, 16: 17, 17: 17, 18: 33}),
])
def test_pad_8n1_is_upstreams_table(stride, table):
    assert {n: T.pad_8n1(n, stride) for n in table} == table


def test_pad_to_pads_bottom_and_right():
    assert T.pad_to(np.array([[1, 2]], np.uint8), (2, 3), 255).tolist() == [[1, 2, 255], [255, 255, 255]]
    image = np.ones((2, 2, 3), np.float32)
    padded = T.pad_to(image, (3, 2), 0)
    assert padded.dtype == np.float32 and padded[:2].all() and not padded[2].any()
    assert T.pad_to(image, (2, 2), 0) is image
    with pytest.raises(ValueError, match=r"\(2, 2\) to the smaller size \(1, 2\)"):
        T.pad_to(image, (1, 2), 0)


def plain_augment(image, label, generator, scales, crop):
    """The definition: resize all, pad all, cut, mirror."""
    scale = scales[int(generator.integers(len(scales)))]
    size = int(label.shape[0] * scale), int(label.shape[1] * scale)
    padded = tuple(max(n, crop) for n in size)
    image = T.pad_to(T.resize_bilinear(image, size), padded, 0)
    label = T.pad_to(T.resize_nearest(label, size), padded, 255)
    top, left = int(generator.integers(padded[0] - crop + 1)), int(generator.integers(padded[1] - crop + 1))
    image, label = image[top:top + crop, left:left + crop], label[top:top + crop, left:left + crop]
    return (image[:, ::-1], label[:, ::-1]) if generator.random() < 0.5 else (image, label)


@pytest.mark.parametrize("shape", [(40, 60), (30, 31), (90, 33)])
def test_train_augment_is_the_plain_definition(shape):
    image = rng(5).standard_normal((*shape, 3)).astype(np.float32)
    label = rng(6).integers(0, 21, shape).astype(np.uint8)
    for k in range(40):
        got = T.train_augment(image, label, rng(k), scales=T.SCALES, crop_size=49)
        expected = plain_augment(image, label, rng(k), T.SCALES, 49)
        assert got[0].shape == (49, 49, 3) and got[0].dtype == np.float32
        assert (got[0] == expected[0]).all() and (got[1] == expected[1]).all()


def test_train_augment_draws_all_scales_places_and_both_directions():
    assert T.SCALES == (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9, 2.0)
    # A picture that counts its columns: the slope tells the scale, its sign the direction, its start the
    # place.
    image = np.repeat(np.arange(101, dtype=np.float32)[None, :, None], 101, 0).repeat(3, 2)
    label = np.zeros((101, 101), np.uint8)
    slopes, starts = [], set()
    for k in range(400):
        crop, _ = T.train_augment(image, label, rng(7, k), scales=T.SCALES, crop_size=50)
        slopes.append(float(crop[0, 1, 0] - crop[0, 0, 0]))
        starts.add(round(float(crop[0, 0, 0])))
    steps = {round(100 / (int(101 * s) - 1), 3) for s in T.SCALES}
    assert {round(abs(s), 3) for s in slopes} == steps and len(steps) == 16
    assert 0.4 < np.mean(np.array(slopes) < 0) < 0.6
    assert len(starts) > 60


def test_small_picture_is_padded_with_mean_colour_and_ignored_label():
    image, label = T.train_augment(np.ones((8, 6, 3), np.float32), np.full((8, 6), 3, np.uint8), rng(0),
                                   scales=(0.5,), crop_size=9)
    assert (label == 3).sum() == 4 * 3 and (label == 255).sum() == 81 - 12
    assert (image[label == 3] == 1).all() and not image[label == 255].any()


def test_train_augment_refuses_sizes_that_differ():
    with pytest.raises(ValueError, match=r"\(8, 6\).*\(6, 8\)"):
        T.train_augment(np.ones((8, 6, 3), np.float32), np.zeros((6, 8), np.uint8), rng(0))
