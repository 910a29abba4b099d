"""The models on a GPU against the CPU: the same weights, the same inputs, outputs and gradients."""
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import compile as gpu  # noqa: E402  (the inputs of each family)

from jea import create_model  # noqa: E402
from jea._jittor import jt  # noqa: E402

MODELS = ("eanet_tiny", "eanet_resnet50", "eanet_jseg_resnet50", "eamlp_7", "t2t_vit_7", "t2t_vit_t_14", "eamlp_14_se",
          "eamlp_dense", "eamlp_16_ghost", "ea_pct_cls", "ea_pct_cls_simple", "ea_pct_partseg", "ea_sagan_cifar10",
          "ea_sagan_tiny_imagenet", "inception_fid")


@pytest.mark.cuda
@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("name", MODELS)
def test_equals_the_cpu(name):
    with jt.flag_scope(use_cuda=0):
        jt.set_global_seed(0)
        model = create_model(name)
        model.eval()
        state = {key: var.numpy() for key, var in model.state_dict().items()}
        arguments = [var.numpy() for var in gpu.inputs(name)]
    results = []
    for use_cuda in (0, 1):
        with jt.flag_scope(use_cuda=use_cuda):
            model = create_model(name)
            model.load_state_dict({key: jt.array(value) for key, value in state.items()})
            model.eval()
            inputs = [jt.array(value) for value in arguments]
            y = model(*inputs)
            gradient = jt.grad((y * y).mean(), inputs[0])
            results.append((y.numpy(), gradient.numpy()))
    for what, on_cpu, on_gpu in zip(("output", "gradient"), *results):
        error = np.abs(on_gpu - on_cpu).max() / np.abs(on_cpu).max()
        assert error <= 1e-4, f"{what}: {error:.1e} of the largest"


def test_compile_knows_every_model():
    """tests/gpu/compile.py makes inputs for all families."""
    from jea.models import MODELS as ALL
    for name in {family: name for name, family in ALL.items()}.values():
        assert gpu.inputs(name)
    assert {ALL[name] for name in MODELS} == set(ALL.values())  # and every family is compared above
