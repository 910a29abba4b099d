"""Operators on point clouds: kernels and references against numpy in float64."""
import numpy as np
import pytest
from expected.points import farthest, nearest

from jea._jittor import jt
from jea.ops import farthest_point_sample, gather_points, kernels, knn, max_last, three_interpolate

IMPLEMENTATIONS = ["fused", "ref"]


def cloud(rng, *shape):
    return rng.standard_normal((*shape, 3)).astype(np.float32)


def poisoned(run):
    """run() three times, each on memory that held NaN."""
    for _ in range(3):
        poison = [jt.full((200_000,), float("nan")) for _ in range(4)]
        jt.sync(poison)
        del poison
        yield run()


# -- farthest_point_sample -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_farthest_points(impl):
    rng = np.random.default_rng(0)
    for batch, n, m in ((1, 1, 1), (2, 7, 7), (1, 63, 1), (3, 100, 33), (2, 1024, 256), (1, 4225, 40)):
        x = cloud(rng, batch, n)
        for got in poisoned(lambda: farthest_point_sample(jt.array(x), m, impl=impl)):
            assert got.dtype == "int32" and np.array_equal(got.numpy(), farthest(x, m)), (batch, n, m)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_farthest_points_by_hand(impl):
    line = np.zeros((1, 6, 3), np.float32)
    line[0, :, 0] = [1, 2, 5, 9, 5, 9]  # from 1: 9 (index 3, not its double 5), then 5 (index 2, not 4), then 2
    chosen = farthest_point_sample(jt.array(line), 6, impl=impl).numpy()[0]
    assert chosen.tolist() == [0, 3, 2, 1, 0, 0]  # all that is left has the distance 0: the first
    zero = np.array([[[0, 0, 0], [0.03, 0, 0], [0, 0.01, 0.01], [1, 0, 0], [0, 3, 0]]], np.float32)
    def run(skip):
        return (farthest_point_sample(jt.array(zero), 4, skip_near_zero=skip, impl=impl).numpy()[0].tolist())
    assert run(True) == [0, 4, 3, 3]  # 1 and 2 count as empty; 3 and 4 are both chosen, 3 is the first of them
    assert run(False) == [0, 4, 3, 1]
    empty = farthest_point_sample(jt.zeros((2, 5, 3)), 3, impl=impl).numpy()
    assert empty.tolist() == [[0, 0, 0]] * 2


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_points_that_are_not_finite_are_not_chosen(impl):
    x = cloud(np.random.default_rng(1), 2, 50)
    x[0, 7] = np.nan
    x[0, 9, 1] = np.inf
    x[1, 0, 2] = np.nan  # the first point is chosen whatever it is
    chosen = farthest_point_sample(jt.array(x), 30, impl=impl).numpy()
    assert not {7, 9} & set(chosen[0]) and len(set(chosen[0])) == 30
    assert chosen[1, 0] == 0 and len(set(chosen[1])) == 30


def test_upstreams_samples(reference):
    for name in ("pct_jittor_cls2", "ea_pct_cls2"):
        ref = reference(name)
        points = jt.array(ref.input("points/2x3x1024")).transpose(0, 2, 1)
        first = farthest_point_sample(points, 512)
        assert np.array_equal(first.numpy(), ref.arrays["fps512"])
        sampled = gather_points(points.transpose(0, 2, 1), first).transpose(0, 2, 1)
        assert np.array_equal(farthest_point_sample(sampled, 256).numpy(), ref.arrays["fps256"])


# -- knn -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_neighbours(impl):
    rng = np.random.default_rng(2)
    for batch, m, n, k in ((1, 1, 1, 1), (2, 5, 7, 7), (1, 3, 16, 16), (2, 63, 17, 1), (1, 130, 33, 20),
                           (2, 65, 200, 200), (2, 100, 1024, 32), (1, 70, 4225, 64), (3, 64, 65, 3)):
        query, points = cloud(rng, batch, m), cloud(rng, batch, n)
        wanted, squares = nearest(query, points, k)
        for got in poisoned(lambda: knn(jt.array(query), jt.array(points), k, impl=impl)):
            got = got.numpy()
            assert got.shape == (batch, m, k) and got.dtype == np.int32
            assert all(len(set(row)) == k for row in got.reshape(-1, k))
            # Distances that float32 cannot tell apart may stand in either order.
            rows = np.arange(batch)[:, None, None]
            own = ((query[:, :, None].astype(np.float64) - points[rows, got]) ** 2).sum(-1)
            assert np.abs(own - squares).max() <= 1e-6 * squares.max()
            assert (got == wanted).mean() > 0.999, (batch, m, n, k)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_ties_go_to_the_first_index(impl):
    rng = np.random.default_rng(3)
    points = rng.integers(-2, 3, (2, 600, 3)).astype(np.float32)  # 125 places, each several times; squares are exact
    query = rng.integers(-2, 3, (2, 40, 3)).astype(np.float32)
    for k in (1, 10, 100, 600):
        got = knn(jt.array(query), jt.array(points), k, impl=impl).numpy()
        assert np.array_equal(got, nearest(query, points, k)[0]), k
    same = np.ones((1, 50, 3), np.float32)
    assert knn(jt.array(same), jt.array(same), 20, impl=impl).numpy().tolist() == [[list(range(20))] * 50]


def test_small_distances_far_from_zero_keep_their_digits():
    points = np.zeros((1, 40, 3), np.float32)
    points[0, :, 0] = 1000 + np.random.default_rng(4).permutation(40) / 16
    order = np.argsort(points[0, :, 0])
    got = knn(jt.array([[[1000.0, 0, 0]]]), jt.array(points), 40, impl="fused").numpy()
    assert got[0, 0].tolist() == order.tolist()


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_nan_comes_last(impl):
    query, points = cloud(np.random.default_rng(5), 1, 4), cloud(np.random.default_rng(6), 1, 40)
    points[0, [3, 20], 1] = np.nan
    got = knn(jt.array(query), jt.array(points), 40, impl=impl).numpy()[0]
    assert (got[:, 38:] == [3, 20]).all() and all(set(row) == set(range(40)) for row in got)
    query[0, 1] = np.nan
    assert set(knn(jt.array(query), jt.array(points), 40, impl=impl).numpy()[0, 1]) == set(range(40))


# -- gather_points ---------------------------------------------------------------------------------------------------

def check_gather(features, index, centres, impl):
    rows = np.arange(len(features))[:, None, None]
    flat = index.reshape(len(index), index.shape[1], -1)
    wanted = features.astype(np.float64).transpose(0, 2, 1)[rows, flat].transpose(0, 3, 1, 2)  # B C M K
    g = np.random.default_rng(1).standard_normal(wanted.shape)
    gradient = np.zeros(features.shape)
    np.add.at(gradient.transpose(0, 2, 1), (rows, flat), g.transpose(0, 2, 3, 1))
    if centres is not None:
        wanted = wanted + centres[..., None]
    shape = features.shape[:2] + index.shape[1:]
    inputs = [jt.array(features)] + ([] if centres is None else [jt.array(centres)])
    y = gather_points(inputs[0], jt.array(index), centres=None if centres is None else inputs[1], impl=impl)
    assert tuple(y.shape) == shape
    gradients = jt.grad((y * jt.array(g.reshape(shape).astype(np.float32))).sum(), inputs)
    assert np.abs(y.numpy() - wanted.reshape(shape)).max() <= 1e-6
    assert np.abs(gradients[0].numpy() - gradient).max() <= 2e-6 * max(np.abs(gradient).max(), 1)
    if centres is not None:
        assert np.abs(gradients[1].numpy() - g.sum(-1)).max() <= 1e-5
    return y, gradients


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_gather_and_its_gradients(impl):
    rng = np.random.default_rng(7)
    for b, c, n, m, k in ((1, 1, 1, 1, None), (2, 3, 5, 7, None), (1, 4, 63, 9, 1), (2, 5, 17, 6, 33),
                          (8, 16, 1024, 64, 32)):
        features = rng.standard_normal((b, c, n)).astype(np.float32)
        index = rng.integers(0, n, (b, m) if k is None else (b, m, k)).astype(np.int32)
        centres = rng.standard_normal((b, c, m)).astype(np.float32)
        for _ in poisoned(lambda: check_gather(features, index, centres, impl)):
            check_gather(features, index, None, impl)


def test_a_point_without_a_place_has_no_gradient_and_one_with_all_has_their_sum():
    x = jt.array(np.ones((1, 2, 3), np.float32))
    y = gather_points(x, jt.array(np.full((1, 4, 5), 2, np.int32)), impl="fused")
    assert jt.grad(y.sum(), x).numpy().tolist() == [[[0, 0, 20]] * 2]


def test_equal_calls_give_equal_bits():
    rng = np.random.default_rng(8)
    features, g = (jt.array(rng.standard_normal(s).astype(np.float32)) for s in ((2, 8, 50), (2, 8, 300, 32)))
    index = jt.array(rng.integers(0, 50, (2, 300, 32)).astype(np.int32))
    first, *others = (jt.grad((gather_points(features, index, impl="fused") * g).sum(), features).numpy()
                      for _ in range(3))
    assert all(first.tobytes() == other.tobytes() for other in others)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("bad", [-1, 9, 2 ** 31 - 1])
def test_an_index_that_is_no_point_is_an_error(impl, bad):
    index = np.zeros((2, 3, 4), np.int32)
    index[1, 2, 3] = bad
    with pytest.raises(RuntimeError, match=rf"gather_points: index {bad} is not one of the 9 points \(0 to 8\)"):
        gather_points(jt.ones((2, 5, 9)), jt.array(index), impl=impl).sync()


# -- three_interpolate -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_interpolation(impl):
    rng = np.random.default_rng(9)
    # The composed form is compiled anew for each pattern of sizes of 1.
    sizes = ((1, 1, 1, 1), (1, 4, 3, 63)) if impl == "fused" else ()
    for b, c, m, n in (*sizes, (2, 3, 2, 5), (2, 5, 100, 130), (2, 16, 256, 1024)):
        known, unknown = cloud(rng, b, m), cloud(rng, b, n)
        unknown[:, 0] = known[:, 0]  # a distance of zero
        features = rng.standard_normal((b, c, m)).astype(np.float32)
        g = rng.standard_normal((b, c, n)).astype(np.float32)
        index, squares = nearest(unknown, known, 3)
        weights = 1 / (squares + 1e-8)
        weights /= weights.sum(-1, keepdims=True)
        matrix = np.zeros((b, n, m))
        np.put_along_axis(matrix, index, weights, -1)
        for _ in poisoned(lambda: None):
            inputs = [jt.array(v) for v in (known, unknown, features)]
            y = three_interpolate(*inputs, impl=impl)
            gradients = jt.grad((y * jt.array(g)).sum(), inputs)
            assert np.abs(y.numpy() - features @ matrix.transpose(0, 2, 1)).max() <= 1e-5, (b, c, m, n)
            wanted = g @ matrix
            assert np.abs(gradients[2].numpy() - wanted).max() <= 1e-5 * max(np.abs(wanted).max(), 1)
            assert not gradients[0].numpy().any() and not gradients[1].numpy().any()
    assert np.abs(y.numpy()[..., 0] - features[..., 0]).max() <= 1e-4  # at a known point: its own features


# -- max_last --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_maximum(impl):
    rng = np.random.default_rng(10)
    for shape in ((7, 4225), *(((1, 1), (5, 1), (3, 4, 32), (2, 3, 4, 17)) if impl == "fused" else ())):
        x = rng.integers(-3, 4, shape).astype(np.float32)  # with ties
        g = rng.standard_normal(shape[:-1]).astype(np.float32)
        wanted = np.zeros(shape)
        np.put_along_axis(wanted, x.argmax(-1)[..., None], g[..., None], -1)
        for _ in poisoned(lambda: None):
            var = jt.array(x)
            y = max_last(var, impl=impl)
            dx = jt.grad((y * jt.array(g)).sum(), var)
            assert np.array_equal(y.numpy().reshape(shape[:-1]), x.max(-1))
            assert np.array_equal(dx.numpy().reshape(shape), wanted.astype(np.float32)), shape


def test_a_nan_is_the_maximum():
    x = np.random.default_rng(11).standard_normal((4, 37)).astype(np.float32)
    x[1, 20], x[2, 5], x[3] = np.nan, -np.nan, -np.inf
    y = max_last(jt.array(x), impl="fused").numpy()
    assert y[0] == x[0].max() and np.isnan(y[[1, 2]]).all() and y[3] == -np.inf


# -- all of them -----------------------------------------------------------------------------------------------------

def calls(impl):
    points, known = jt.array(cloud(np.random.default_rng(12), 2, 20)), jt.array(cloud(np.random.default_rng(13), 2, 9))
    features, index = jt.randn(2, 4, 9), jt.zeros((2, 5), dtype="int32")
    return {"farthest_points": lambda: farthest_point_sample(points, 4, impl=impl),
            "nearest_points": lambda: knn(points, known, 4, impl=impl),
            "gather": lambda: jt.grad(gather_points(features, index, impl=impl).sum(), features),
            "interpolate": lambda: jt.grad(three_interpolate(known, points, features, impl=impl).sum(), features),
            "max_last": lambda: jt.grad(max_last(features, impl=impl).sum(), features)}


def test_the_kernels_ran(monkeypatch):
    ran, original = [], kernels.code
    monkeypatch.setattr(kernels, "code", lambda *a, **k: ran.append(k["source"]) or original(*a, **k))
    for call in calls("ref").values():
        call().sync()
    monkeypatch.setattr(kernels, "REFERENCES_ONLY", True)
    for call in calls("auto").values():
        call().sync()
    assert not ran
    monkeypatch.setattr(kernels, "REFERENCES_ONLY", False)
    for name, call in calls("auto").items():
        ran.clear()
        call().sync()
        assert any(f"jea::{name}(" in source for source in ran), name
        if name in ("gather", "interpolate", "max_last"):
            assert any(f"jea::{name}_backward(" in source for source in ran), name


def test_inputs_that_are_views():
    rng = np.random.default_rng(14)
    wide = rng.standard_normal((2, 3, 40)).astype(np.float32)
    points = wide.transpose(0, 2, 1)
    view = jt.array(wide).transpose(0, 2, 1)
    assert np.array_equal(farthest_point_sample(view, 9).numpy(), farthest(points, 9))
    assert np.array_equal(knn(view[:, 5:15], view, 4).numpy(), nearest(points[:, 5:15], points, 4)[0])
    index = np.array([[3, 1], [0, 9]], np.int32)
    got = gather_points(jt.array(points).transpose(0, 2, 1)[:, :, 10:20], jt.array(index)).numpy()
    assert np.array_equal(got, np.take_along_axis(wide[:, :, 10:20], index[:, None], -1))
    assert np.array_equal(max_last(view).numpy(), points.max(-1))


def test_other_dtypes_take_the_reference():
    with jt.flag_scope(auto_convert_64_to_32=0):
        x = np.random.default_rng(15).standard_normal((1, 30, 3))
        var, features = jt.array(x), jt.array(x.transpose(0, 2, 1).copy())
        assert np.array_equal(farthest_point_sample(var, 5).numpy(), farthest(x, 5))
        index = knn(var, var, 4)
        assert np.array_equal(index.numpy(), nearest(x, x, 4)[0])
        assert gather_points(features, index).dtype == three_interpolate(var, var, features).dtype == "float64"
        assert max_last(var).dtype == "float64"
        for name, call in {"farthest_point_sample": lambda: farthest_point_sample(var, 5, impl="fused"),
                           "knn": lambda: knn(var, var, 4, impl="fused"),
                           "gather_points": lambda: gather_points(features, index, impl="fused"),
                           "three_interpolate": lambda: three_interpolate(var, var, features, impl="fused"),
                           "max_last": lambda: max_last(var, impl="fused")}.items():
            with pytest.raises(ValueError, match=f"{name}: no fused kernel here: it takes float32"):
                call()


def test_bad_arguments():
    points, features, index = jt.zeros((2, 9, 3)), jt.zeros((2, 4, 9)), jt.zeros((2, 5), dtype="int32")
    for call, said in (
            (lambda: farthest_point_sample(points, 10), "num_samples is 10; the clouds have 9 points: expected 1 to 9"),
            (lambda: farthest_point_sample(points, 0), "num_samples is 0"),
            (lambda: farthest_point_sample(features, 3), r"points has shape \(2, 4, 9\); expected \(B, N, 3\)"),
            (lambda: knn(points, points, 10), "k is 10; the clouds have 9 points: expected 1 to 9"),
            (lambda: knn(points, points, 0), "k is 0"),
            (lambda: knn(points, points[:1], 3), r"batch sizes differ: query \(2, 9, 3\), points \(1, 9, 3\)"),
            (lambda: gather_points(features, index[:1]), r"features are \(2, 4, 9\) and index \(1, 5\)"),
            (lambda: gather_points(features, index.float32()), "index is float32; expected int32"),
            (lambda: gather_points(features, index, centres=features), r"centres are \(2, 4, 9\); .* \(2, 4, 5\)"),
            (lambda: three_interpolate(points, points, points), r"features are \(2, 9, 3\); expected \(2, C, 9\)"),
            (lambda: max_last(jt.zeros((2, 0))), r"got shape \(2, 0\); expected \(..., K\), at least two axes"),
            (lambda: knn(points, points, 3, impl="fast"), "impl is 'fast'")):
        with pytest.raises(ValueError, match=said):
            call()
