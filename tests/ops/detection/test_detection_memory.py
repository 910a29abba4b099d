"""What the operators of detectors take beside their inputs and results does not grow with the number of boxes."""
import ctypes
import gc
import os

import numpy as np
import pytest

from jea._jittor import jt
from jea.ops.detection import match_boxes, nms, roi_align

pytestmark = pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's /proc")


def status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name)) / 1024


def grown(function):
    """The most MB that were taken while it ran, beyond those before; it has run before."""
    function()
    gc.collect()
    jt.gc()
    ctypes.CDLL(None).malloc_trim(0)  # what is free goes back, whatever other tests have told malloc
    before = status("VmRSS:")
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak begins anew
    function()
    return status("VmHWM:") - before


def boxes_of(count, extent, side):
    corner = np.random.default_rng(count).random((count, 2)) * extent
    return np.concatenate([corner, corner + side], 1).astype(np.float32)


def test_the_measure_sees_a_matrix():
    assert grown(lambda: np.ones((20_000, 1000), np.float32).sum()) > 70


def test_nms():
    boxes = boxes_of(20_000, 1000, 30)
    scores = np.random.default_rng(0).random(20_000).astype(np.float32)
    assert grown(lambda: nms(boxes, scores, threshold=0.7)) < 10  # a bit for each pair: 50


def test_match_boxes():
    boxes, truths = boxes_of(20_000, 1000, 30), boxes_of(1000, 1000, 40)
    assert grown(lambda: match_boxes(boxes, truths, high=0.7, low=0.3, low_quality="restore")) < 20  # all IoUs: 80


@pytest.mark.parametrize("layout", ("nchw", "nhwc"))
def test_roi_align(layout):
    """With large regions that have many samples, whose maps are what could grow."""
    feature = jt.ones((1, 2, 128, 128) if layout == "nchw" else (1, 128, 128, 2))
    found = {}
    for count in (500, 8000):
        rois = np.concatenate([np.zeros((count, 1)), boxes_of(count, 20, 100)], 1).astype(np.float32)

        def run(rois=rois):
            y = roi_align([feature], rois, size=(2, 2), scales=[1.0], layout=layout)
            jt.sync([y, *jt.grad((y * y).sum(), [feature])])
        found[count] = grown(run)
    assert found[8000] - found[500] < 8, found  # all maps at once: 13
