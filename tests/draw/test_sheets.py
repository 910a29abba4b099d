"""Sheets of pictures."""
import numpy as np
import pytest

from jea.draw.sheets import sheet


def test_sheet():
    images = np.stack([np.full((2, 3, 3), value, np.uint8) for value in (10, 20, 30)])
    out = sheet(images, 2, zoom=2, gap=1)
    assert out.shape == (11, 15, 3)
    assert (out[1:5, 1:7] == 10).all() and (out[1:5, 8:14] == 20).all() and (out[6:10, 1:7] == 30).all()
    assert (out[0] == 255).all() and (out[6:10, 7:] == 255).all()
    with pytest.raises(ValueError, match="takes uint8"):
        sheet(images.astype(float), 2)
