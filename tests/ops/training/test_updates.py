"""Updates of many Vars at once, and what decides whether they count, against float64."""
import math

import numpy as np
import pytest
from expected.updates import adam, move, sgd

from jea._jittor import jt
from jea.ops import adam_update, all_finite, clipped, gathered, kernels, moved, sgd_update

SHAPES = [(7,), (3, 2), (5,), (1,), (2, 3, 2, 2), (300,), *[(4,)] * 18]  # more of one rank than one call takes
RNG = np.random.default_rng(0)


def arrays(count):
    return [[RNG.standard_normal(shape).astype(np.float32) for shape in SHAPES] for _ in range(count)]


def variables(lists):
    return [[jt.array(a) for a in values] for values in lists]


def check(found, expected):
    for ours, wanted in zip(found, expected):
        assert len(ours) == len(SHAPES)
        for a, b in zip(ours, wanted):
            assert a.shape == b.shape and np.abs(a.numpy() - b).max() <= 3e-7 * max(1, np.abs(b).max())


def control_of(*values):
    return jt.array(np.array(values, np.float32))


CONTROLS = [None, (1.0, 1.0), (1.0, 0.25), (0.0, 0.25)]


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("impl", ["fused", "ref"])
@pytest.mark.parametrize("options", [{}, {"momentum": 0.9, "weight_decay": 1e-2},
                                     {"momentum": 0.9, "dampening": 0.5, "nesterov": True}])
def test_sgd(device, impl, options, control):
    p, g, v = arrays(3)
    found = sgd_update(*variables((p, g, v)), lr=0.1, **options, impl=impl,
                       control=None if control is None else control_of(*control))
    check(found, [list(x) for x in zip(*(sgd(*x, lr=0.1, **options, control=control) for x in zip(p, g, v)))])


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("impl", ["fused", "ref"])
@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1}, {"weight_decay": 0.1, "decoupled": True},
                                     {"eps_inside": True}])
def test_adam(device, impl, options, control):
    p, g, m = arrays(3)
    v = [a ** 2 for a in arrays(1)[0]]
    settings = {"lr": 0.01, "betas": (0.5, 0.99), "eps": 0.01, "steps": 3, **options}
    found = adam_update(*variables((p, g, v, m)), **settings, impl=impl,
                        control=None if control is None else control_of(*control))
    check(found, [list(x) for x in zip(*(adam(*x, **settings, control=control) for x in zip(p, g, v, m)))])


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("impl", ["fused", "ref"])
def test_moved(device, impl, control):
    old, new = arrays(2)
    factors = [1 + 0.1 * i for i in range(len(SHAPES))]
    for given in (factors, None):
        found = moved(*variables((old, new)), 0.1, given, impl=impl,
                      control=None if control is None else control_of(*control))
        check([found], [[move(a, b, 0.1, f, control=control) for a, b, f in zip(old, new, given or [1] * len(old))]])


def test_nothing_changes_where_gradients_are_not_finite(device):
    p, g, v = arrays(3)
    g = [np.full_like(a, np.nan) for a in g]
    found = sgd_update(*variables((p, g, v)), lr=0.1, momentum=0.9, control=control_of(0, 1))
    for ours, before in zip(found, (p, v)):
        assert all(np.array_equal(a.numpy(), b) for a, b in zip(ours, before))


def test_one_kernel_for_any_number_of_vars(device, monkeypatch):
    calls, original = [], jt.code

    def code(*args, **kwargs):
        calls.append((len(args[2]), kwargs["cpu_src" if device == "cpu" else "cuda_src"]))
        return original(*args, **kwargs)
    monkeypatch.setattr(jt, "code", code)
    for count in (1, 15, 17):
        values = [jt.randn(3) for _ in range(count)]
        jt.sync(moved(values, values, 0.5, impl="fused"))
    assert len(calls) == 4 and len(set(calls)) == 1


def test_other_types_take_the_reference():
    wide = [jt.ones(2).float64()]
    with pytest.raises(ValueError, match="moved: no fused kernel here: it takes float32"):
        moved(wide, wide, 0.5, impl="fused")
    assert moved(wide, [2 * wide[0]], 0.5)[0].numpy().tolist() == [1.5, 1.5]


# -- what decides -------------------------------------------------------------------------------------------------

def doubles(*values):
    with jt.flag_scope(auto_convert_64_to_32=0):
        return jt.array(np.array(values, np.float64))


@pytest.mark.parametrize("impl", ["fused", "ref"])
def test_gathered(device, impl):
    values = [jt.array([1 / 3]), jt.array([2.0]).float64(), jt.array([7]).int32()]
    if impl == "fused":
        values = values[:2]
    found = gathered(values, 5.0, impl=impl).numpy()
    assert found.dtype == np.float64 and found.tolist() == [float(np.float32(1 / 3)), 2.0, 7.0][:len(values)] + [5.0]
    assert gathered([jt.array([i]) for i in range(20)]).numpy().tolist() == [*range(20), 0.0]


BAD = [np.nan, np.inf, -np.inf]


@pytest.mark.parametrize("bad", BAD)
def test_all_finite(device, bad):
    for before, said in ((None, 1), ((1, 0.5), 1), ((0, 0.5), 0)):
        control = None if before is None else control_of(*before)
        assert all_finite(doubles(1e300, -2, 0), control, impl="fused").numpy().tolist() == [said, 1]
        for place in range(3):
            values = [1.0, 2.0, 3.0]
            values[place] = bad
            assert all_finite(doubles(*values), control, impl="fused").numpy().tolist() == [0, 1]


@pytest.mark.parametrize("largest", [0.5, 100.0])
def test_clipped(device, largest):
    squares = RNG.random(170)
    control, norm = clipped(doubles(*squares), control_of(1, 1), largest, impl="fused")
    wanted = math.sqrt(squares.sum())
    assert norm.numpy()[0] == pytest.approx(wanted, rel=1e-13)
    assert control.numpy().tolist() == [1, pytest.approx(min(1, largest / (wanted + 1e-6)), rel=1e-6)]
    assert clipped(doubles(*squares), control_of(0, 1), largest)[0].numpy()[0] == 0
    for bad in BAD:
        control, norm = clipped(doubles(1, bad, 2), control_of(1, 1), largest, impl="fused")
        assert math.isnan(norm.numpy()[0]) and control.numpy().tolist() == [0, 1]


def test_the_references_decide_alike(device):
    for bad in [1.0, *BAD]:
        for before in (0.0, 1.0):
            values, control = doubles(3, bad, 4), control_of(before, 0.5)
            for function in (lambda impl: [all_finite(values, control, impl=impl)],
                             lambda impl: clipped(values * values, control, 1.0, impl=impl)):
                ours, theirs = ([var.numpy() for var in function(impl)] for impl in ("fused", "ref"))
                for a, b in zip(ours, theirs):
                    np.testing.assert_allclose(a, b, rtol=1e-6)


def test_the_kernels_ran(monkeypatch, device):
    function, end = ("cpu_code", ".h") if device == "cpu" else ("cuda_code", ".cuh")
    calls, original = [], getattr(kernels, function)
    monkeypatch.setattr(kernels, function, lambda *a, **k: calls.append(k["kernel"]) or original(*a, **k))
    p = [jt.ones(3)]
    sgd_update(p, p, p, lr=0.1)
    adam_update(p, p, p, p, lr=0.1, betas=(0.9, 0.99), eps=1e-8, steps=1)
    moved(p, p, 0.5)
    assert calls == ["training/updates" + end] * 3
    clipped(doubles(1), all_finite(gathered(p[:0])), 1.0)
    assert calls[3:] == ["training/finite" + end] * 3
