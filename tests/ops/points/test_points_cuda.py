"""The arithmetic of the CUDA kernels for point clouds, run on the CPU (cuda_on_cpu.py), against those for the CPU."""
import shutil

import cuda_on_cpu
import numpy as np
import pytest
from expected.points import farthest, nearest

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")

FUNCTIONS = """
void farthest(const float* p, int* chosen, float* scratch, long b, long n, long m, bool skip) {
    jea::farthest_points(p, chosen, scratch, b, n, m, skip);
}
void neighbours(const float* q, const float* p, int* index, long b, long m, long n, long k) {
    jea::nearest_points(q, p, index, b, m, n, k);
}
void weights(const float* q, const float* p, int* index, float* w, long b, long m, long n, long k) {
    jea::interpolation_weights(q, p, index, w, b, m, n, k);
}
void gather(const float* f, const int* index, const float* centres, float* y, long b, long c, long n, long g, long k) {
    jea::gather(f, index, centres, y, b, c, n, g, k);
}
void gather_backward(const float* dy, const int* index, float* df, float* dc, float* scratch, long b, long c, long n,
                     long g, long k) {
    jea::gather_backward(dy, index, df, dc, scratch, b, c, n, g, k);
}
void interpolate(const float* f, const int* index, const float* w, float* y, long b, long c, long n, long m, long k) {
    jea::interpolate(f, index, w, y, b, c, n, m, k);
}
void interpolate_backward(const float* dy, const int* index, const float* w, float* df, float* scratch, long b, long c,
                          long n, long m, long k) {
    jea::interpolate_backward(dy, index, w, df, scratch, b, c, n, m, k);
}
void sort_places(float* scratch, long b, long n, long count) {
    cuda_on_cpu::launch(jea::blocks_for(b * n, 256), 256, [&] { jea::sort_places(jea::Places(scratch, b, n, count)); });
}
void max_last(const float* x, float* y, int* places, long rows, long k) { jea::max_last(x, y, places, rows, k); }
void max_last_backward(const float* dy, const int* places, float* dx, long rows, long k) {
    jea::max_last_backward(dy, places, dx, rows, k);
}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    library = cuda_on_cpu.build("points/points.cuh", FUNCTIONS, tmp_path_factory.mktemp("points"))
    return lambda name, *arguments: cuda_on_cpu.call(getattr(library, name), *arguments)


def nan(*shape):
    return np.full(shape, np.nan, np.float32)


def places(*shape):
    return np.full(shape, -7, np.int32)


def values(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def test_farthest_points(run):
    rng = np.random.default_rng(0)
    for b, n, m in ((1, 1, 1), (2, 7, 7), (1, 1500, 12), (1, 2100, 6), (2, 300, 20), (1, 600, 40)):
        for skip in (True, False):
            x = values(rng, b, n, 3)
            x[:, n // 2] = 0
            x[:, n // 3] = x[:, -1]  # equal points
            chosen = places(b, m)
            run("farthest", x, chosen, nan(b, n), b, n, m, skip)
            assert np.array_equal(chosen, farthest(x, m, skip)), (b, n, m, skip)
    x[0, 5], x[0, 9, 1] = np.nan, np.inf
    chosen, empty = places(1, 40), places(1, 3)
    run("farthest", x, chosen, nan(1, 600), 1, 600, 40, True)
    run("farthest", np.zeros((1, 9, 3), np.float32), empty, nan(1, 9), 1, 9, 3, True)
    assert not {5, 9} & set(chosen[0]) and len(set(chosen[0])) == 40 and empty.tolist() == [[0, 0, 0]]


def test_neighbours_and_weights(run):
    rng = np.random.default_rng(1)
    for b, m, n, k in ((1, 1, 1, 1), (2, 9, 5, 5), (1, 3, 70, 33), (1, 4, 1100, 7), (2, 17, 300, 3)):
        q, p = (rng.integers(-2, 3, (b, size, 3)).astype(np.float32) for size in (m, n))  # with ties
        index, weights = places(b, m, k), nan(b, m, k)
        run("neighbours", q, p, index, b, m, n, k)
        wanted, squares = nearest(q, p, k)
        assert np.array_equal(index, wanted), (b, m, n, k)
        index[:] = -7
        run("weights", q, p, index, weights, b, m, n, k)
        w = 1 / (squares + 1e-8)
        assert np.array_equal(index, wanted) and np.abs(weights - w / w.sum(-1, keepdims=True)).max() <= 1e-6
    p[0, [3, 20]] = np.nan
    index = places(2, 17, 300)
    run("neighbours", q, p, index, 2, 17, 300, 300)
    assert (index[0, :, 298:] == [3, 20]).all()


def test_gather(run):
    rng = np.random.default_rng(2)
    for b, c, n, g, k in ((1, 1, 1, 1, 1), (2, 3, 5, 7, 1), (2, 3, 300, 40, 33), (1, 2, 700, 3, 70)):
        f, centres, dy = values(rng, b, c, n), values(rng, b, c, g), values(rng, b, c, g, k)
        index = rng.integers(0, n, (b, g, k)).astype(np.int32)
        rows = np.arange(b)[:, None, None]
        wanted = f.transpose(0, 2, 1)[rows, index].transpose(0, 3, 1, 2)
        gradient = np.zeros(f.shape)
        np.add.at(gradient.transpose(0, 2, 1), (rows, index), dy.transpose(0, 2, 3, 1))
        for add in (None, centres):
            y, df, dc = nan(b, c, g, k), nan(b, c, n), nan(b, c, g)
            run("gather", f, index, add, y, b, c, n, g, k)
            scratch = nan(2 * b * (n + 1) + index.size)
            run("gather_backward", dy, index, df, None if add is None else dc, scratch, b, c, n, g, k)
            assert np.array_equal(y, wanted if add is None else wanted + centres[..., None])
            assert np.abs(df - gradient).max() <= 1e-5
            assert add is None or np.abs(dc - dy.sum(-1, dtype=np.float64)).max() <= 1e-5
    f, y, index = np.ones((1, 2, 9), "f"), np.zeros((1, 2, 1, 4), "f"), np.array([[[0, -1, 8, 9]]], np.int32)
    run("gather", f, index, None, y, 1, 2, 9, 1, 4)
    assert np.isnan(y[..., [1, 3]]).all() and (y[..., [0, 2]] == 1).all()
    df = nan(1, 2, 9)
    run("gather_backward", np.ones_like(y), index, df, None, nan(2 * 10 + 4), 1, 2, 9, 1, 4)
    assert df[0].tolist() == [[1, 0, 0, 0, 0, 0, 0, 0, 1]] * 2


def test_the_places_of_a_point_are_summed_in_order(run):
    """1e8 + 1 - 1e8 is 0 in float32, 1e8 - 1e8 + 1 is 1: atomics in another order must not change the sum."""
    rng = np.random.default_rng(3)
    for count in (3, 64, 1000):
        dy = (rng.standard_normal((1, 1, count, 1)) * 10.0 ** rng.integers(-3, 8, (1, 1, count, 1))).astype(np.float32)
        df, expected = nan(1, 1, 2), np.float32(0)
        for value in dy.ravel():
            expected += value
        run("gather_backward", dy, np.ones((1, count, 1), np.int32), df, None, nan(2 * 3 + count), 1, 1, 2, count, 1)
        assert df.tolist() == [[[0, expected]]]


def test_places_in_any_order_are_sorted(run):
    """On a GPU the atomics fill them in any order; here they come in sorted."""
    rng = np.random.default_rng(6)
    for lengths in ([0, 1, 2, 3, 5, 64, 0, 333], [1000]):
        b, n, count = 2, len(lengths), sum(lengths)
        first = np.tile(np.concatenate([[0], np.cumsum(lengths)]), (b, 1)).astype(np.int32)
        filled = np.stack([rng.permutation(count) for _ in range(b)]).astype(np.int32)
        scratch = np.concatenate([first.ravel(), first.ravel(), filled.ravel()])
        run("sort_places", scratch, b, n, count)
        got = scratch[2 * first.size:].reshape(b, count)
        for row, before in zip(got, filled):
            for start, length in zip(first[0], lengths):
                assert np.array_equal(row[start:start + length], np.sort(before[start:start + length]))


def test_interpolation(run):
    rng = np.random.default_rng(4)
    for b, c, n, m, k in ((1, 1, 1, 1, 1), (2, 3, 2, 5, 2), (2, 3, 300, 270, 3)):
        f, dy, w = values(rng, b, c, n), values(rng, b, c, m), rng.random((b, m, k)).astype(np.float32)
        index = np.stack([[rng.permutation(n)[:k] for _ in range(m)] for _ in range(b)]).astype(np.int32)
        matrix = np.zeros((b, m, n))
        np.put_along_axis(matrix, index, w.astype(np.float64), -1)
        y, df = nan(b, c, m), nan(b, c, n)
        run("interpolate", f, index, w, y, b, c, n, m, k)
        run("interpolate_backward", dy, index, w, df, nan(2 * b * (n + 1) + index.size), b, c, n, m, k)
        assert np.abs(y - f @ matrix.transpose(0, 2, 1)).max() <= 1e-5 and np.abs(df - dy @ matrix).max() <= 1e-5


def test_maximum(run):
    rng = np.random.default_rng(5)
    for rows, k in ((1, 1), (9, 32), (17, 100), (5, 3)):
        x, dy = rng.integers(-3, 4, (rows, k)).astype(np.float32), values(rng, rows)
        y, place, dx = nan(rows), places(rows), nan(rows, k)
        run("max_last", x, y, place, rows, k)
        run("max_last_backward", dy, place, dx, rows, k)
        wanted = np.zeros((rows, k), np.float32)
        np.put_along_axis(wanted, x.argmax(-1)[:, None], dy[:, None], -1)
        assert np.array_equal(y, x.max(-1)) and np.array_equal(place, x.argmax(-1)) and np.array_equal(dx, wanted)
    x[1, 2], x[2, 0], x[3] = np.nan, -np.nan, -np.inf
    run("max_last", x, y, place, 5, 3)
    assert np.isnan(y[[1, 2]]).all() and y[3] == -np.inf and y[0] == x[0].max()
