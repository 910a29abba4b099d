"""Pictures cut to their centred square, in [-1, 1], for generators."""
from __future__ import annotations

import numpy as np
from PIL import Image

from jea.data.dataset import Dataset
from jea.data.views.view import View


class CentredView(View):
    """A data set's pictures, cut to their largest centred square and resized to `size` (Lanczos) where they differ.

    flip: mirror half of the training pictures.
    """

    def __init__(self, dataset: Dataset, *, size: int, flip: bool = True):
        super().__init__(dataset)
        self.size, self.flip = size, flip

    def picture(self, index: int) -> np.ndarray:
        """(size, size, 3) uint8."""
        return centre_square(self.dataset.load(index)[0], self.size)

    def pictures(self, indices) -> np.ndarray:
        """(N, size, size, 3) uint8."""
        return np.stack([self.picture(index) for index in indices])

    def train_sample(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """{"image": (3, size, size) float32 in [-1, 1], "label": int32}."""
        picture, label = self.dataset.load(index)
        picture = centre_square(picture, self.size)
        if self.flip and rng.random() < 0.5:
            picture = picture[:, ::-1]
        image = np.ascontiguousarray(picture.transpose(2, 0, 1), np.float32)
        image /= np.float32(127.5)
        image -= np.float32(1)
        return {"image": image, "label": np.int32(label)}


def centre_square(picture: np.ndarray, size: int) -> np.ndarray:
    """(H, W, 3) uint8 -> (size, size, 3): the largest centred square, resized with Lanczos' filter if it must be."""
    height, width = picture.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    picture = picture[top:top + side, left:left + side]
    if side == size:
        return picture
    return np.asarray(Image.fromarray(np.ascontiguousarray(picture)).resize((size, size), Image.Resampling.LANCZOS))
