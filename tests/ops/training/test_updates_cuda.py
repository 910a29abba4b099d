"""The CUDA kernels of updates and of what decides about them, run on the CPU (cuda_on_cpu.py), against float64."""
import ctypes
import shutil

import cuda_on_cpu
import numpy as np
import pytest
from expected.updates import adam, move, sgd

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")

UPDATE = """
void NAME(const float** in, float** out, const long* count, const float* number, const float* control,
          const float* f) {
    jea::Arrays<jea::RULE::kIn, jea::RULE::kOut> a;
    for (int t = 0; t < jea::kTogether; t++) {
        for (int k = 0; k < jea::RULE::kIn; k++) a.in[k][t] = in[k * jea::kTogether + t];
        for (int k = 0; k < jea::RULE::kOut; k++) a.out[k][t] = out[k * jea::kTogether + t];
        a.count[t] = count[t];
        a.number[t] = number[t];
    }
    jea::update(jea::RULE{FIELDS}, a, control);
}
"""
SIZES = [1, 255, 256, 2047, 2048, 2049, 5000, 7, 3, 1, 1, 1, 64, 64, 128, 12]  # of 2048 a block


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    functions = "".join(UPDATE.replace("NAME", name).replace("RULE", rule).replace("FIELDS", fields) for name, rule,
                        fields in (("sgd", "Sgd", "f[0], f[1], f[2], f[3], f[4] != 0"), ("move", "Move", "f[0]"),
                                   ("adam", "Adam", ", ".join(f"f[{i}]" for i in range(9)))))
    return cuda_on_cpu.build("training/updates.cuh", functions, tmp_path_factory.mktemp("cuda_on_cpu"))


def run(function, inputs, outputs, fields, control, numbers=None):
    """inputs: lists of sixteen arrays; returns the outputs, which start as NaN."""
    made = [[np.full(n, np.nan, np.float32) for n in SIZES] for _ in range(outputs)]
    pointers = [(ctypes.c_void_p * (16 * len(lists)))(*(a.ctypes.data for values in lists for a in values))
                for lists in (inputs, made)]
    control = None if control is None else np.array(control, np.float32)
    function(*pointers, np.array(SIZES, np.int64).ctypes.data_as(ctypes.c_void_p),
             np.array(numbers or [0] * 16, np.float32).ctypes.data_as(ctypes.c_void_p),
             None if control is None else control.ctypes.data_as(ctypes.c_void_p),
             np.array(fields, np.float32).ctypes.data_as(ctypes.c_void_p))
    return made


def check(made, wanted):
    for ours, theirs in zip(made, wanted):
        assert all(np.abs(a - b).max() <= 3e-7 * max(1, np.abs(b).max()) for a, b in zip(ours, theirs))


@pytest.mark.parametrize("control", [None, (1.0, 0.25), (0.0, 1.0)])
def test_updates(library, control):
    rng = np.random.default_rng(0)
    p, g, v, m = ([rng.standard_normal(n).astype(np.float32) for n in SIZES] for _ in range(4))
    second = [a ** 2 for a in v]
    for nesterov in (0, 1):
        wanted = [sgd(*x, lr=0.1, momentum=0.9, weight_decay=0.01, dampening=0.25, nesterov=nesterov, control=control)
                  for x in zip(p, g, v)]
        check(run(library.sgd, (p, g, v), 2, [0.1, 0.9, 0.01, 0.75, nesterov], control), zip(*wanted))
    wanted = [adam(*x, lr=0.01, betas=(0.9, 0.99), eps=0.1, steps=2, weight_decay=0.1, control=control)
              for x in zip(p, g, second, m)]
    fields = [0.01 / (1 - 0.9 ** 2), 0.9, 0.99, 0.1, 0.01, 0.1, 0.1, 1.0, np.sqrt(1 - 0.99 ** 2)]
    check(run(library.adam, (p, g, second, m), 3, fields, control), zip(*wanted))
    numbers = [1 + i / 16 for i in range(16)]
    wanted = [move(a, b, 0.1, factor, control=control) for a, b, factor in zip(p, g, numbers)]
    check(run(library.move, (p, g), 1, [0.1], control, numbers), [wanted])


def test_what_decides(tmp_path):
    library = cuda_on_cpu.build("training/finite.cuh", """
void gathered(const float* a, const double* b, double extra, double* to) {
    jea::gather_scalars(jea::Scalars{{a, b}, {false, true}, 2, extra}, to);
}
void judged(const double* values, long count, const float* before, float* next) {
    jea::judge_scalars(values, count, before, next);
}
void limited(const double* squares, long count, double largest, const float* before, float* next, double* norm) {
    jea::limit_norm(squares, count, largest, before, next, norm);
}
""", tmp_path)

    def at(array):
        return ctypes.c_void_p(array.ctypes.data)
    told = np.full(3, np.nan)
    library.gathered(at(np.array([1.5], np.float32)), at(np.array([2.5])), ctypes.c_double(3.5), at(told))
    assert told.tolist() == [1.5, 2.5, 3.5]
    for values, before, said in (([1.0, 2.0], 1, 1), ([1.0, np.nan], 1, 0), ([-np.inf, 2.0], 1, 0), ([1.0, 2.0], 0, 0)):
        before, control = np.array([before, 0.5], np.float32), np.full(2, np.nan, np.float32)
        library.judged(at(np.array(values)), ctypes.c_long(2), at(before), at(control))
        assert control.tolist() == [said, 1]
        control, norm = np.full(2, np.nan, np.float32), np.full(1, np.nan)
        library.limited(at(np.array(values) ** 2), ctypes.c_long(2), ctypes.c_double(1.0), at(before), at(control),
                        at(norm))
        assert control[0] == said and (np.isnan(norm[0]) if not np.isfinite(values).all() else
                                       control[1] == pytest.approx(1 / np.sqrt(5), rel=1e-5))
