"""A kernel that does not compile says which operator it is of, at which line of its header, and what to do."""
import gc

import pytest

from jea._jittor import jt
from jea.ops import double_norm, farthest_point_sample
from jea.ops.common import builds, sources


@pytest.fixture
def broken(monkeypatch):
    """broken(header, text, other): the header with another text in the place of one of its own."""
    def change(name, text, other):
        read = sources._read
        assert text in read(name)
        monkeypatch.setattr(sources, "_read", lambda n: read(n).replace(text, other, 1) if n == name else read(n))
        sources.header.cache_clear()
    yield change
    sources.header.cache_clear()
    gc.collect()
    jt.clean_graph()  # what could not be compiled would be tried again by the next test that looks at something


def line_of(name, text):
    return next(i for i, line in enumerate(sources._read(name).splitlines(), 1) if text in line)


@pytest.mark.parametrize("ask", [lambda y: y.numpy(), lambda y: y.sync(), lambda y: y.data, lambda y: y.sum().item(),
                                 lambda y: jt.sync([y])], ids=["numpy", "sync", "data", "item", "jt.sync"])
def test_the_operator_the_line_and_the_way_out(broken, ask):
    with jt.flag_scope(use_cuda=0):
        broken("attention/double_norm.h", "const DoubleNorm& d", "const DoubleNorn& d")
        line = line_of("attention/double_norm.h", "DoubleNorn")
        with pytest.raises(builds.BuildError) as caught:
            ask(double_norm(jt.randn(2, 8, 63)))
    text = str(caught.value)
    assert text.startswith("double_norm: the kernel in jea/ops/attention/double_norm.h could not be compiled.\n")
    assert f"jea/ops/attention/double_norm.h:{line}:" in text and "DoubleNorn" in text
    assert "JEA_OPS=ref does without" in text and len(text.splitlines()) <= builds.LINES + 3 and "\x1b" not in text


def test_an_error_in_a_neighbour_has_the_neighbours_name(broken):
    with jt.flag_scope(use_cuda=0):
        broken("common/exp.h", "namespace jea {", "namespace jea { int no_end")
        with pytest.raises(builds.BuildError, match=r"jea/ops/common/exp\.h:\d+:"):
            double_norm(jt.randn(2, 8, 65)).numpy()


def test_of_a_header_with_several_operators_the_one_is_named(broken):
    with jt.flag_scope(use_cuda=0):
        broken("points/points.h", "inline void farthest_points(", "inline viod farthest_points(")
        with pytest.raises(builds.BuildError, match="^farthest_point_sample: the kernel in jea/ops/points/points.h"):
            farthest_point_sample(jt.rand(1, 9, 3), 2).numpy()


def test_other_errors_stay_what_they_are():
    assert builds.explained(RuntimeError("Wrong inputs arguments")) is None
    with pytest.raises(RuntimeError) as caught:
        jt.code((1,), "float32", [], cpu_src="nonsense;").numpy()
    assert not isinstance(caught.value, builds.BuildError)


def test_lines_of_headers_stay_theirs():
    lines = sources.header("attention/double_norm.h").splitlines()
    own = sources._read("attention/double_norm.h").splitlines()
    number, name, seen = 0, "", 0
    for line in lines:
        if line.startswith("#line"):
            _, number, name = line.split()
            number = int(number)
            continue
        if name == '"jea/ops/attention/double_norm.h"' and line:
            assert line == own[number - 1].strip()
            seen += 1
        number += 1
    assert seen > 100
