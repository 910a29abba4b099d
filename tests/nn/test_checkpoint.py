"""Activation checkpointing: the same numbers from less memory."""
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jea import create_model
from jea._jittor import jt, nn
from jea.models.eanet_jseg import JSegEANet
from jea.nn import Bottleneck, precision
from jea.nn.mode import checkpointed, freeze_batch_norm
from jea.ops import can_block

ROOT = Path(__file__).parents[2]


def step(model, x, forward):
    """Output, gradients of x and of all parameters, and the running statistics after it."""
    x = jt.array(x)
    y = forward(x)
    gradients = jt.grad((y * y).mean(), [x] + [var for var in model.parameters() if not var.is_stop_grad()])
    running = [var.numpy() for key, var in model.state_dict().items() if "running" in key]
    return [y.numpy()] + [g.numpy() for g in gradients] + running


def check_equal(ours, theirs):
    assert len(ours) == len(theirs) > 10
    for number, (a, b) in enumerate(zip(ours, theirs)):
        assert np.array_equal(a, b), number


def with_state(model, state):
    model.load_state_dict({key: jt.array(value) for key, value in state.items()})
    return model


@pytest.mark.parametrize("frozen", [False, True])
def test_blocks_equal_themselves(frozen):
    """Plain activations; two blocks in a row, the first with a stride and another shortcut."""
    jt.set_global_seed(0)
    model = nn.Sequential(Bottleneck(6, 5, stride=2), Bottleneck(20, 5, dilation=2))
    model.train()
    if frozen:
        freeze_batch_norm(model)
    state = {key: var.numpy() for key, var in model.state_dict().items()}
    x = np.random.default_rng(0).standard_normal((2, 6, 9, 11)).astype(np.float32)
    theirs = step(model, x, model)
    ours = step(with_state(model, state), x, lambda x: checkpointed(model[1], checkpointed(model[0], x)))
    check_equal(ours, theirs)
    moved = not np.array_equal(theirs[-1], state["1.bn3.running_var"])
    assert moved != frozen


MEMORY = """
import sys
import numpy as np
from jea._jittor import jt, nn
from jea.nn import BatchNorm2d
from jea.nn.mode import checkpointed
from jea.training.memory import peak_memory_mb
jt.flags.use_cuda = 0

class Block(nn.Module):
    def __init__(self):
        self.first, self.second, self.norm = nn.Conv(16, 16, 1), nn.Conv(16, 16, 1), BatchNorm2d(16)

    def execute(self, x):
        return nn.relu(self.norm(self.second(self.first(x))))

blocks = nn.ModuleList([Block() for _ in range(int(sys.argv[1]))])
blocks.train()
x = y = jt.array(np.zeros((1, 16, 512, 512), np.float32))  # 16 MB
for block in blocks:
    y = checkpointed(block, y)
jt.sync(jt.grad((y * y).sum(), [x, *(var for var in blocks.parameters() if not var.is_stop_grad())]))
print(peak_memory_mb())
"""


def printed(script, argument) -> int:
    """What a script prints in a process of its own."""
    done = subprocess.run([sys.executable, "-c", script, argument], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_one_activation_of_each_block_stays():
    few, many = printed(MEMORY, "4"), printed(MEMORY, "20")
    assert (many - few) / 16 < 2 * 16  # 15 to 22: allocators differ


def networks(auxiliary):
    yield create_model("eanet_tiny", auxiliary=auxiliary, dropout=0.0)
    yield JSegEANet(layers=(1, 2, 1, 1), width=16, head_channels=32, num_memories=32, dropout=0.0, auxiliary=auxiliary)


@pytest.mark.parametrize("auxiliary", [False, True])
def test_networks_equal_themselves(auxiliary, close):
    """Blocked activations, where this machine has them. With the auxiliary head layer3's gradient is a sum of three,
    added up in another order."""
    for model in networks(auxiliary):
        jt.set_global_seed(0)
        model.train()
        if auxiliary:
            model.auxiliary_head.dropout.p = 0.0
        state = {key: var.numpy() for key, var in model.state_dict().items()}
        x = np.random.default_rng(1).standard_normal((2, 3, 33, 33)).astype(np.float32)

        def forward(x):
            if not auxiliary:
                return model(x)
            logits, others = model.with_auxiliary(x)
            return logits + 0.4 * others
        theirs = step(model, x, forward)
        with_state(model, state).backbone.checkpoint_activations = True
        ours = step(model, x, forward)
        if auxiliary:
            for a, b in zip(ours, theirs):
                close(a, b, 1e-5)
        else:
            check_equal(ours, theirs)


def test_random_numbers_of_the_rest_stay():
    """Dropout after the backbone draws the same numbers."""
    model = create_model("eanet_tiny")
    model.train()
    state = {key: var.numpy() for key, var in model.state_dict().items()}
    x = np.random.default_rng(1).standard_normal((2, 3, 33, 33)).astype(np.float32)
    results = []
    for checkpoint in (False, True):
        model.backbone.checkpoint_activations = checkpoint
        jt.set_seed(7)
        results.append(step(with_state(model, state), x, model))
    check_equal(*results)


def test_the_second_run_has_the_precision_of_the_first():
    seen = []

    class Block(nn.Module):
        def __init__(self):
            self.weight = jt.ones((1,))

        def execute(self, x):
            seen.append(precision.current())
            return x * self.weight
    block = Block()
    with precision.autocast("bfloat16"):
        y = checkpointed(block, jt.ones((3,)))
    gradient = jt.grad(y.sum(), block.weight)
    assert gradient.item() == 3 and seen == ["bfloat16", "bfloat16"]


def test_evaluation_runs_once(monkeypatch):
    from jea.nn import resnet
    model = create_model("eanet_tiny")
    model.backbone.checkpoint_activations = True
    calls = []
    monkeypatch.setattr(resnet, "checkpointed", lambda block, x: calls.append(block) or block(x))
    x = jt.zeros((1, 3, 33, 33))
    model.eval()
    model(x)
    assert not calls
    model.train()
    model(x)
    assert len(calls) == 4


PEAK = """
import sys
import numpy as np
from jea._jittor import jt, nn
from jea.training.memory import peak_memory_mb
from jea.nn import Bottleneck
from jea.nn.mode import checkpointed
from jea.nn import formats
jt.flags.use_cuda = 0
blocks = [Bottleneck(64, 16) for _ in range(12)]
def step(size):
    y = formats.enter(jt.array(np.ones((2, 64, size, size), np.float32)), 64).to("blocked")
    for block in blocks:
        y = checkpointed(block, y) if sys.argv[1] == "checkpointed" else block(y)
    gradients = jt.grad((y.var * y.var).mean(), [p for b in blocks for p in b.parameters() if not p.is_stop_grad()])
    jt.sync_all()
step(9)  # compiles
before = peak_memory_mb()
step(129)
print(peak_memory_mb() - before)
"""


@pytest.mark.skipif(not can_block(64, 16), reason="Jittor runs without oneDNN")
def test_peak_memory():
    """Twelve blocks with 34 MB of blocked activations each, of which 8.5 MB stay: the input."""
    peaks = {kind: printed(PEAK, kind) for kind in ("checkpointed", "plain")}
    assert peaks["checkpointed"] < 0.6 * peaks["plain"], peaks
