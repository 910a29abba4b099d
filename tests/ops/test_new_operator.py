"""The operator of jea/ops/README.md, made of that page's lines."""
import re
from pathlib import Path

import numpy as np
import pytest

from jea._jittor import jt
from jea.ops import kernels
from jea.ops.common import declared, sources

PAGE = (Path(kernels.__file__).parent / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def softplus(tmp_path, monkeypatch):
    """The function, and the list of kernels that ran."""
    (cpp,), (python,) = (re.findall(rf"^```{kind}\n(.*?)^```", PAGE, re.M | re.S) for kind in ("cpp", "python"))
    (tmp_path / "shapes").mkdir()
    (tmp_path / "shapes" / "softplus.h").write_text(cpp)
    (tmp_path / "shapes" / "softplus.py").write_text(python)
    monkeypatch.setattr(sources, "FOLDER", tmp_path)
    assert declared.declarations(tmp_path) == [declared.Support("softplus", cpu=("float32",))]
    ran, original = [], kernels.cpu_code
    monkeypatch.setattr(kernels, "cpu_code", lambda *a, **k: ran.append(k["kernel"]) or original(*a, **k))
    found = {}
    exec(compile(python, "softplus.py", "exec"), found)
    sources.header.cache_clear()
    yield found["softplus"], ran
    sources.header.cache_clear()


@pytest.mark.parametrize("shape", [(1,), (3, 7), (2, 3, 5)])
@pytest.mark.parametrize("impl", ["fused", "ref"])
def test_values_gradient_and_that_the_kernel_ran(softplus, shape, impl):
    function, ran = softplus
    with jt.flag_scope(use_cuda=0):
        x, g = np.random.default_rng(0).standard_normal((2, *shape)).astype(np.float32)
        jt.sync([jt.full(shape, float("nan")) for _ in range(4)])  # what outputs then start with
        var = jt.array(x)
        y = function(var, impl=impl)
        dx = jt.grad((y * jt.array(g)).sum(), var)
        wide = x.astype(np.float64)
        assert np.abs(y.numpy() - np.log1p(np.exp(wide))).max() < 1e-6
        assert np.abs(dx.numpy() - g / (1 + np.exp(-wide))).max() < 1e-6
    assert ran == ["shapes/softplus.h"] * (2 if impl == "fused" else 0)


def test_it_refuses_what_it_cannot_take(softplus):
    with jt.flag_scope(use_cuda=0), pytest.raises(ValueError,
                                                  match="softplus: no fused kernel here: it takes float32 on the CPU"):
        softplus[0](jt.zeros((2,)).float64(), impl="fused")


def test_the_struct_of_modules_on_the_page_is_that_of_the_folder():
    folder = Path(kernels.__file__).parent
    for name in re.findall(r"^\| `([\w./]+)` \|", PAGE, re.M):
        assert (folder / name).exists(), name
