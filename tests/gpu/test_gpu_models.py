"""The models on a GPU against the CPU: the same weights, the same inputs, outputs and gradients.

The CPU's side is kept (tests/fixtures/gpu_models.npz: 300 values of each and the largest), so that a GPU machine need
not compile and run it: `python tests/gpu/test_gpu_models.py` makes it anew, and a test compares it with what the CPU
computes now.
"""
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(Path(__file__).parent), str(ROOT), str(ROOT / "tests" / "fixtures")]
import parts  # noqa: E402  (the inputs of each family)
import recipe  # noqa: E402

from jea import create_model  # noqa: E402
from jea._jittor import jt  # noqa: E402

KEPT = ROOT / "tests" / "fixtures" / "gpu_models.npz"
MODELS = ("eanet_tiny", "eanet_resnet50", "eanet_jseg_resnet50", "eamlp_7", "t2t_vit_7", "t2t_vit_t_14", "eamlp_14_se",
          "eamlp_dense", "eamlp_16_ghost", "ea_pct_cls", "ea_pct_cls_simple", "ea_pct_partseg", "ea_sagan_cifar10",
          "ea_sagan_tiny_imagenet", "inception_fid")


def values_of(name: str) -> dict:
    """"output" and "gradient" of a model whose weights and inputs are functions of their names, on the device that is
    on."""
    model = create_model(name)
    entries = [{"key": key, "shape": var.shape, "dtype": str(var.dtype)} for key, var in model.state_dict().items()]
    model.load_state_dict({key: jt.array(value) for key, value in recipe.fill_state(entries).items()})
    model.eval()
    inputs = [recipe.input_array(f"{name}/{i}", var.shape) if "float" in str(var.dtype) else var.numpy()
              for i, var in enumerate(parts.inputs(name))]
    inputs = [jt.array(value) for value in inputs]
    y = model(*inputs)
    return {"output": y.numpy(), "gradient": jt.grad((y * y).mean(), inputs[0]).numpy()}


def sampled(name: str, values: dict) -> dict:
    """300 values of each, and the largest magnitude."""
    found = {}
    for what, array in values.items():
        flat = array.reshape(-1)
        index = recipe.sample_indices(f"{name}/{what}", flat.size, 300)
        found[f"{name}/{what}"] = np.append(flat[index], np.abs(flat).max()).astype(np.float32)
    return found


def compare(name: str, tolerance: float) -> None:
    with np.load(KEPT) as kept:
        for key, got in sampled(name, values_of(name)).items():
            wanted = kept[key].astype(np.float64)
            assert got.shape == wanted.shape
            error = np.abs(got - wanted).max() / wanted[-1]
            assert error <= tolerance, f"{key}: {error:.1e} of the largest"


@pytest.mark.cuda
@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("name", MODELS)
def test_equals_the_cpu(name):
    compare(name, 1e-4)


@pytest.mark.parametrize("name", ("eanet_tiny", "ea_pct_cls"))
def test_what_is_kept_is_what_the_cpu_computes(name):
    with jt.flag_scope(use_cuda=0):
        compare(name, 1e-5)
    with np.load(KEPT) as kept:
        assert {key.split("/")[0] for key in kept.files} == set(MODELS)


def test_compile_knows_every_model():
    """tests/gpu/compile.py makes inputs for all families but detectors, which decide on the host what runs next."""
    from jea.models import MODELS as ALL
    families = {family: name for name, family in ALL.items() if family != "detection"}
    for name in families.values():
        assert parts.inputs(name)
    assert {ALL[name] for name in MODELS} == set(families)  # and each is compared above


if __name__ == "__main__":
    kept = {}
    for model in MODELS:
        kept.update(sampled(model, values_of(model)))
        print(model, {key: float(value[-1]) for key, value in kept.items() if key.startswith(model + "/")}, flush=True)
        jt.gc()
    np.savez_compressed(KEPT, **kept)
