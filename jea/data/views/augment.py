"""Classification pictures for training and evaluation, in numpy and Pillow, after timm 0.3.4 (the recipe of EAMLP).

Every function draws from the generator that it is given, so that a sample is a function of (seed, epoch, index) and the
mixing of a batch one of (seed, step).
"""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Iterable, Sequence

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from jea.data.dataset import Dataset
from jea.data.views.crops import normalise
from jea.data.views.view import View

Box = tuple[int, int, int, int]  # top, left, height, width

_FILL = (124, 116, 104)  # the mean colour of ImageNet, where a picture moved away
_LONGEST = 16  # sides of a resized picture beyond this ratio are never made whole
_FILTERS = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)


# -- one picture: evaluation ----------------------------------------------------------------------------------------

def eval_picture(image: np.ndarray, size: int, crop_pct: float = 0.9) -> np.ndarray:
    """Resize the shorter side to floor(size / crop_pct) (bicubic, antialiased) and cut out the centre.

    image: (H, W, 3) uint8. Returns (3, size, size) float32, normalised.
    """
    short = math.floor(size / crop_pct)
    height, width = image.shape[:2]
    if width < height:
        new = (short, int(short * height / width))  # width, height
    else:
        new = (int(short * width / height), short)
    picture = Image.fromarray(image)
    left, top = round((new[0] - size) / 2), round((new[1] - size) / 2)
    if max(new) > _LONGEST * short:
        # Resized and cut at once: as a whole it might not fit into memory. The last bits differ:
        # Pillow rounds the box to float32, and chooses which side to resize first.
        box = (left * width / new[0], top * height / new[1], (left + size) * width / new[0],
               (top + size) * height / new[1])
        return _network_input(np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC, box=box)))
    if new != picture.size:
        picture = picture.resize(new, Image.Resampling.BICUBIC)
    return _network_input(np.asarray(picture.crop((left, top, left + size, top + size))))


def _network_input(image: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(normalise(image).transpose(2, 0, 1))


# -- one picture: training ------------------------------------------------------------------------------------------

@dataclass
class TrainPicture:
    """Picture (H, W, 3) uint8 -> (3, size, size) float32, normalised: crop, mirror, RandAugment, colours, erasing.

    size: side of the result. crop_scale, crop_ratio: see `random_crop_box`; the box is resized with a filter
    drawn from bilinear and bicubic.
    flip: probability of mirroring. rand_augment: magnitude 0 to 10, or None; rand_augment_std: its spread.
    color_jitter: see `jitter_colors`; 0: none. erase: probability of `random_erase`.
    """
    size: int
    crop_scale: Sequence[float] = (0.08, 1.0)
    crop_ratio: Sequence[float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    rand_augment: float | None = None
    rand_augment_std: float = 0.5
    color_jitter: float = 0.0
    erase: float = 0.0

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        top, left, h, w = random_crop_box(*image.shape[:2], rng, scale=self.crop_scale, ratio=self.crop_ratio)
        picture = Image.fromarray(image[top:top + h, left:left + w])
        picture = picture.resize((self.size, self.size), _FILTERS[int(rng.integers(2))])
        if rng.random() < self.flip:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.rand_augment is not None:
            picture = rand_augment(picture, rng, magnitude=self.rand_augment, std=self.rand_augment_std)
        if self.color_jitter:
            picture = jitter_colors(picture, rng, self.color_jitter)
        out = _network_input(np.asarray(picture))
        if rng.random() < self.erase:
            random_erase(out, rng)
        return out


class TrainView(View):
    """Pictures of one class each as training sees them."""

    def __init__(self, dataset: Dataset, transform: TrainPicture):
        super().__init__(dataset)
        self.transform = transform

    def train_sample(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """{"image": (3, size, size) float32, "label": () int32}."""
        image, label = self.dataset.load(index)
        return {"image": self.transform(image, rng), "label": np.array(label, np.int32)}


class EvalView(View):
    """Pictures of one class each as evaluation sees them."""

    def __init__(self, dataset: Dataset, size: int, crop_pct: float):
        super().__init__(dataset)
        self.size, self.crop_pct = size, crop_pct

    def test_sample(self, index: int) -> dict[str, Any]:
        """{"id": str, "image": (3, size, size) float32, "label": () int64}."""
        sample = self.dataset.test_sample(index)
        return {"id": sample["id"], "image": eval_picture(sample["image"], self.size, self.crop_pct),
                "label": np.array(sample["label"], np.int64)}

    def test_batch(self, indices: Iterable[int]) -> tuple[np.ndarray, np.ndarray]:
        """Pictures (B, 3, size, size) float32 and labels (B,) int64."""
        samples = [self.test_sample(index) for index in indices]
        return np.stack([s["image"] for s in samples]), np.array([s["label"] for s in samples], np.int64)


def random_crop_box(height: int, width: int, rng: np.random.Generator, *, scale: Sequence[float] = (0.08, 1.0),
                    ratio: Sequence[float] = (3 / 4, 4 / 3)) -> Box:
    """The box of a random resized crop: (top, left, height, width), inside the picture.

    The area is uniform in `scale` times the picture's, log(width / height) uniform in log(ratio). After ten boxes that
    do not fit, the largest central box whose ratio is allowed.
    """
    for _ in range(10):
        area = rng.uniform(*scale) * height * width
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    h, w = height, width
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    return (height - h) // 2, (width - w) // 2, h, w


def random_erase(image: np.ndarray, rng: np.random.Generator, *, area: Sequence[float] = (0.02, 1 / 3),
                 ratio: float = 0.3) -> None:
    """Overwrite one box of (C, H, W) float32 with normal noise, a number per pixel and channel, in place.

    The box's area is uniform in `area` times the picture's, log(height / width) uniform between log(ratio) and
    -log(ratio); ten attempts to find one that fits, else nothing.
    """
    channels, height, width = image.shape
    for _ in range(10):
        pixels = rng.uniform(*area) * height * width
        aspect = math.exp(rng.uniform(math.log(ratio), -math.log(ratio)))
        h, w = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
        if h < height and w < width:
            top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
            image[:, top:top + h, left:left + w] = rng.standard_normal((channels, h, w), np.float32)
            return


def jitter_colors(picture: Image.Image, rng: np.random.Generator, strength: float) -> Image.Image:
    """Brightness, contrast and saturation, in random order, each by a factor uniform in 1 -+ strength (at least 0)."""
    for k in rng.permutation(3):
        kind = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[k]
        picture = kind(picture).enhance(rng.uniform(max(0.0, 1 - strength), 1 + strength))
    return picture


# -- RandAugment ----------------------------------------------------------------------------------------------------

def rand_augment(picture: Image.Image, rng: np.random.Generator, *, magnitude: float = 9, std: float = 0.5,
                 layers: int = 2) -> Image.Image:
    """timm's rand-m<magnitude>-mstd<std>-inc1: `layers` of OPERATIONS in turn, each left out with probability one half,
    each with a magnitude drawn from N(magnitude, std) and cut to [0, 10]."""
    for k in rng.integers(len(OPERATIONS), size=layers):
        if rng.random() < 0.5:
            level = min(10.0, max(0.0, rng.normal(magnitude, std)))
            picture = list(OPERATIONS.values())[k](picture, level / 10, rng)
    return picture


def _sign(rng) -> float:
    return -1.0 if rng.random() < 0.5 else 1.0


def _enhance(kind):
    """Blend away from the picture (factor 1) by up to 0.9, towards less or more."""
    return lambda picture, t, rng: kind(picture).enhance(1 + _sign(rng) * 0.9 * t)


def _affine(picture, rng, *coefficients):
    """out(x, y) = in(a x + b y + c, d x + e y + f)."""
    return picture.transform(picture.size, Image.Transform.AFFINE, coefficients, _FILTERS[int(rng.integers(2))],
                             fillcolor=_FILL)


def _rotate(picture, t, rng):
    return picture.rotate(_sign(rng) * 30 * t, _FILTERS[int(rng.integers(2))], fillcolor=_FILL)


def _posterize(picture, bits):
    """Keep the highest bits; 0 of them at the largest strength, which newer Pillows refuse."""
    return picture.point([v & ~(255 >> bits) for v in range(256)] * 3)


def _solarize_add(picture, t, rng):
    add = int(110 * t)
    return picture.point([min(255, v + add) if v < 128 else v for v in range(256)] * 3)


# The strength t = level / 10 is in [0, 1] and always makes the change larger ("inc1").
OPERATIONS = {
    "AutoContrast": lambda picture, t, rng: ImageOps.autocontrast(picture),
    "Equalize": lambda picture, t, rng: ImageOps.equalize(picture),
    "Invert": lambda picture, t, rng: ImageOps.invert(picture),
    "Rotate": _rotate,  # by up to 30 degrees
    "Posterize": lambda picture, t, rng: _posterize(picture, 4 - int(4 * t)),
    "Solarize": lambda picture, t, rng: ImageOps.solarize(picture, 256 - int(256 * t)),  # threshold
    "SolarizeAdd": _solarize_add,  # adds up to 110 to the dark pixels
    "Color": _enhance(ImageEnhance.Color),
    "Contrast": _enhance(ImageEnhance.Contrast),
    "Brightness": _enhance(ImageEnhance.Brightness),
    "Sharpness": _enhance(ImageEnhance.Sharpness),
    "ShearX": lambda picture, t, rng: _affine(picture, rng, 1, _sign(rng) * 0.3 * t, 0, 0, 1, 0),
    "ShearY": lambda picture, t, rng: _affine(picture, rng, 1, 0, 0, _sign(rng) * 0.3 * t, 1, 0),
    "TranslateX": lambda picture, t, rng: _affine(picture, rng, 1, 0, _sign(rng) * 0.45 * t * picture.width, 0, 1, 0),
    "TranslateY": lambda picture, t, rng: _affine(picture, rng, 1, 0, 0, 0, 1, _sign(rng) * 0.45 * t * picture.height),
}


# -- batches --------------------------------------------------------------------------------------------------------

def soft_targets(labels: np.ndarray, num_classes: int, smoothing: float = 0.0) -> np.ndarray:
    """(B,) labels -> (B, C) float32: 1 - smoothing at the label, and smoothing / C added everywhere."""
    off = smoothing / num_classes
    out = np.full((len(labels), num_classes), off, np.float32)
    out[np.arange(len(labels)), labels] = 1 - smoothing + off
    return out


def mix_batch(images: np.ndarray, targets: np.ndarray, rng: np.random.Generator, *, mixup: float = 0.8,
              cutmix: float = 1.0, prob: float = 1.0, switch_prob: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Mixup or CutMix of a batch with itself in reverse order, as timm's batch mode.

    images: (B, C, H, W) float32; targets: (B, K) float32. mixup, cutmix: alpha of the Beta(alpha, alpha) that the share
    lam of the picture itself is drawn from; 0 turns one off. prob: of mixing this batch at all; switch_prob: of CutMix
    where both are on.

        mixup   lam x + (1 - lam) x'
        cutmix  a box of (H, W) * sqrt(1 - lam) around a uniform centre, cut off at the border, comes from x'; lam is
                then corrected to the box's true area
        targets lam t + (1 - lam) t'

    Returns new arrays; the given ones where nothing is mixed.
    """
    if not (mixup or cutmix) or rng.random() >= prob:
        return images, targets
    cut = bool(cutmix) and (not mixup or rng.random() < switch_prob)
    lam = float(rng.beta(*[cutmix if cut else mixup] * 2))
    other = images[::-1]
    if cut:
        (top, left, bottom, right), lam = cut_box(images.shape[2], images.shape[3], lam, rng)
        mixed = images.copy()
        mixed[:, :, top:bottom, left:right] = other[:, :, top:bottom, left:right]
    else:
        mixed = np.float32(lam) * images + np.float32(1 - lam) * other
    return mixed, np.float32(lam) * targets + np.float32(1 - lam) * targets[::-1]


def cut_box(height: int, width: int, lam: float, rng: np.random.Generator) -> tuple[tuple[int, int, int, int], float]:
    """CutMix's box (top, left, bottom, right) and the share of the picture outside of it."""
    share = math.sqrt(1 - lam)
    h, w = int(height * share), int(width * share)
    y, x = int(rng.integers(height)), int(rng.integers(width))
    top, bottom = (min(max(edge, 0), height) for edge in (y - h // 2, y + h // 2))
    left, right = (min(max(edge, 0), width) for edge in (x - w // 2, x + w // 2))
    return (top, left, bottom, right), 1 - (bottom - top) * (right - left) / (height * width)
