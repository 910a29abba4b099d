"""The arithmetic of the CUDA kernels of detectors, run on the CPU (cuda_on_cpu.py), against those for the CPU."""
import ctypes
import shutil

import cuda_on_cpu
import numpy as np
import pytest

from jea._jittor import jt
from jea.ops.detection import match_boxes, nms, paste_masks, roi_align, sigmoid_focal_loss

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")

BOXES = """
void nms(const float* boxes, const float* scores, const int* groups, int* kept, float* scratch, long n, float threshold) {
    jea::nms(boxes, scores, groups, kept, scratch, n, threshold);
}
void match(const float* boxes, const float* truths, const float* quality, int* matches, float* best, float* scratch,
           long n, long count, float high, float low, long rule, float least) {
    jea::match_boxes(boxes, truths, quality, matches, best, scratch, n, count, {high, low, (int)rule, least});
}
"""
ALIGN = """
static jea::RoiAlign sizes(const long* n, const float* scales) {
    jea::RoiAlign d{n[0], n[1], n[2], n[3], n[4], n[5]};
    for (long l = 0; l < d.levels; l++) {
        d.heights[l] = n[8 + 2 * l];
        d.widths[l] = n[9 + 2 * l];
        d.scales[l] = scales[l];
    }
    d.sampling = n[6];
    d.aligned = n[7] != 0;
    d.block = n[12];
    d.plain = n[13] != 0;
    return d;
}
void forward(const long* n, const float* scales, const float* f0, const float* f1, const float* rois, const int* levels,
             float* y) {
    const float* features[] = {f0, f1};
    jea::roi_align(sizes(n, scales), features, rois, levels, y, nullptr);
}
void backward(const long* n, const float* scales, const float* dy, const float* rois, const int* levels, float* d0,
              float* d1, float* scratch) {
    float* gradients[] = {d0, d1};
    jea::roi_align_backward(sizes(n, scales), dy, rois, levels, gradients, scratch);
}
"""
MASKS = """
void bits(const float* masks, const float* boxes, unsigned char* out, long count, long h, long w, long height, long width,
          bool grid, float threshold) {
    jea::paste_masks({count, h, w, height, width, grid, threshold}, masks, boxes, out);
}
void values(const float* masks, const float* boxes, float* out, long count, long h, long w, long height, long width,
            bool grid) {
    jea::paste_masks({count, h, w, height, width, grid, -1.f}, masks, boxes, out);
}
"""
FOCAL = """
void forward(const float* logits, const int* labels, float* loss, long rows, long classes, float alpha, float gamma) {
    jea::focal_loss({rows, classes, alpha, gamma}, logits, labels, loss);
}
void backward(const float* logits, const int* labels, const float* dloss, float* dx, long rows, long classes, float alpha,
              float gamma) {
    jea::focal_loss_backward({rows, classes, alpha, gamma}, logits, labels, dloss, dx);
}
"""


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    made = {}

    def run(kernel, functions, name, *arguments):
        if kernel not in made:
            made[kernel] = cuda_on_cpu.build(f"detection/{kernel}.cuh", functions, tmp_path_factory.mktemp(kernel))
        cuda_on_cpu.call(getattr(made[kernel], name), *arguments)
    return run


def nan(*shape):
    return np.full(shape, np.nan, np.float32)


def boxes_of(rng, count, extent, largest):
    corner = rng.random((count, 2)) * extent
    return np.concatenate([corner, corner + rng.random((count, 2)) * largest], 1).astype(np.float32)


@pytest.mark.parametrize("count", (1, 40, 256, 257, 700))
def test_nms(build, count):
    rng = np.random.default_rng(count)
    boxes = np.round(boxes_of(rng, count, 120, 60) / 2) * 2
    scores = (np.floor(rng.random(count) * 90) / 30 - 1).astype(np.float32)
    groups = rng.integers(0, 3, count).astype(np.int32)
    kept = np.full(count, -7, np.int32)
    build("boxes", BOXES, "nms", boxes, scores, groups, kept, nan(count + 257), count, 0.5)
    wanted = nms(boxes, scores, groups, threshold=0.5)
    assert np.array_equal(kept[kept != -1], wanted) and (kept[len(wanted):] == -1).all()


@pytest.mark.parametrize("rule, name", ((0, None), (1, "restore"), (2, "overwrite")))
def test_match_boxes(build, rule, name):
    rng = np.random.default_rng(5)
    boxes, truths = np.round(boxes_of(rng, 300, 80, 60)), np.round(boxes_of(rng, 9, 80, 60))
    quality = np.round(rng.random((9, 300)).astype(np.float32), 1)
    for given in (None, quality):
        matches, best = np.full(300, -7, np.int32), nan(300)
        build("boxes", BOXES, "match", boxes, truths, given, matches, best, nan(9), 300, 9, 0.7, 0.3, rule, 0.3)
        wanted = match_boxes(boxes, truths, high=0.7, low=0.3, low_quality=name, least=0.3, quality=given)
        assert np.array_equal(matches, wanted[0]) and np.array_equal(best, wanted[1])


@pytest.mark.parametrize("sampling, aligned, layout, plain",
                         ((2, False, "nchw", 1), (0, True, "nchw", 1), (0, False, "nhwc", 1), (3, True, "nhwc", 0)))
def test_roi_align(build, close, sampling, aligned, layout, plain):
    rng = np.random.default_rng(9)
    shapes = [(2, 3, 9, 13), (2, 3, 5, 7)] if layout == "nchw" else [(2, 9, 13, 3), (2, 5, 7, 3)]
    features = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    rois = np.concatenate([rng.integers(0, 2, (12, 1)), boxes_of(rng, 12, 50, 40) - 6], 1).astype(np.float32)
    rois[3, 1:] = [10, 10, 10, 10]
    rois[4, 1:] = [30, 20, 10, 5]
    levels = rng.integers(0, 2, 12).astype(np.int32)
    scales = np.array([0.25, 0.125], np.float32)
    numbers = np.array([2, 3, 12, 3, 2, 2, sampling, aligned, 9, 13, 5, 7, 1 if layout == "nchw" else 3, plain],
                       ctypes.c_long)
    y = nan(*((12, 3, 3, 2) if plain else (12, 3, 2, 3)))
    build("roi_align", ALIGN, "forward", numbers, scales, *features, rois, levels, y)
    varied = [jt.array(f) for f in features]
    wanted = roi_align(varied, rois, levels, size=(3, 2), scales=scales.tolist(), sampling=sampling, aligned=aligned,
                       layout=layout, plain=bool(plain))
    close(y, wanted.numpy(), 2e-6)
    dy = (rng.standard_normal(y.shape) * 37).astype(np.float32)
    gradients = [nan(*shape) for shape in shapes]
    build("roi_align", ALIGN, "backward", numbers, scales, dy, rois, levels, *gradients, nan(2 + 2 * 2 * 3 * 9 * 13))
    for got, want in zip(gradients, jt.grad((wanted * jt.array(dy)).sum(), varied)):
        close(got, want.numpy(), 2e-6)
    build("roi_align", ALIGN, "backward", numbers, scales, np.zeros_like(dy), rois, levels, *gradients,
          nan(2 + 2 * 2 * 3 * 9 * 13))
    assert not gradients[0].any() and not gradients[1].any()


@pytest.mark.parametrize("rule", ("expand", "grid"))
def test_paste_masks(build, rule):
    rng = np.random.default_rng(15)
    masks = rng.random((9, 14, 12)).astype(np.float32)
    boxes = boxes_of(rng, 9, 30, 25) - 5
    boxes[0] = [4, 4, 4, 4]
    boxes[1] = [-50, -60, 90, 80]
    bits, values = np.full((9, 31, 37), 7, np.uint8), nan(9, 31, 37)
    build("masks", MASKS, "bits", masks, boxes, bits, 9, 14, 12, 31, 37, rule == "grid", 0.5)
    build("masks", MASKS, "values", masks, boxes, values, 9, 14, 12, 31, 37, rule == "grid")
    wanted = paste_masks(masks, boxes, (31, 37), rule=rule, threshold=None)
    assert np.abs(values - wanted).max() < 1e-6
    assert np.array_equal(bits.astype(bool), paste_masks(masks, boxes, (31, 37), rule=rule))


def test_focal_loss(build, close):
    rng = np.random.default_rng(21)
    logits = (rng.standard_normal((19, 45)) * 5).astype(np.float32)
    labels, dloss = rng.integers(-2, 45, 19).astype(np.int32), rng.standard_normal(19).astype(np.float32)
    loss, dx = nan(19), nan(19, 45)
    build("focal", FOCAL, "forward", logits, labels, loss, 19, 45, 0.25, 2.0)
    build("focal", FOCAL, "backward", logits, labels, dloss, dx, 19, 45, 0.25, 2.0)
    var = jt.array(logits)
    wanted = sigmoid_focal_loss(var, labels)
    close(loss, wanted.numpy(), 2e-6)
    close(dx, jt.grad((wanted * jt.array(dloss)).sum(), var).numpy(), 2e-6)
