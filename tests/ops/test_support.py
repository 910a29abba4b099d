"""jea.ops.support: what operators say of themselves, read without Jittor."""
import importlib
import subprocess
import sys

import pytest

from jea import ops
from jea.ops.common import declared


def test_the_sources_and_the_operators_say_the_same():
    found = {support.operator: support for support in declared.declarations()}
    for module in {f"jea.ops.{module}" for module in ops._OPERATORS}:
        said = getattr(importlib.import_module(module), "SUPPORT")
        for support in said if isinstance(said, tuple) else (said,):
            assert found[support.operator] == support
    helpers = {"can_block", "pack_conv", "conv_nhwc_unavailable"}
    assert set(ops.__all__) - helpers <= set(found), "each operator declares its kernels"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_rows(device):
    rows = {row.operator: row for row in ops.support(device)}
    assert rows["batch_norm"].dtypes == (declared.FLOATS if device == "cuda" else declared.FLOAT)
    assert (rows["external_attention"].reason == "") == (device == "cpu")
    assert all(bool(row.dtypes) or row.reason for row in rows.values())


def test_without_onednn():
    rows = {row.operator: row for row in declared.rows("cpu", onednn=False)}
    assert rows["linear"].reason == "Jittor runs without oneDNN" and rows["double_norm"].reason == ""


def test_the_rows_need_no_jittor():
    code = "import sys, jea.ops; assert jea.ops.support('cuda'); assert 'jittor' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_refusals():
    support = declared.Support("an_operator", cpu=declared.FLOAT, cuda=declared.FLOATS)
    assert support.refusal("cuda", ["float16"]) == ""
    assert support.refusal("cpu", ["float16"]) == "it takes float32 on the CPU"
    assert declared.Support("another",
                            cuda=declared.FLOAT).refusal("cpu") == "there is no kernel for the CPU, only for CUDA"
