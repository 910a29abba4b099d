"""Tables of colours."""

import numpy as np

from jea.data.segmentation.voc import VOC_CLASSES
from jea.draw.palettes import voc_palette


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
