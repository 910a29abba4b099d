"""Files that PyTorch itself wrote, and files of ours that it reads. PyTorch runs in a process of its own."""
import importlib.util
import subprocess
import sys

import checkpoint_forge as forge
import numpy as np
import pytest

from jea.checkpoint import read, save_npz
from jea.checkpoint.loading import write

pytestmark = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")

MAKE = r"""
import argparse, json, sys
from collections import OrderedDict
import numpy as np, torch
folder = sys.argv[1]
torch.manual_seed(0)
base = torch.randn(6, 8)
shared = torch.randn(5)
sd = OrderedDict(
    plain=base, transposed=base.t(), sliced=torch.randn(9, 9)[2:7:2, 1::3], expanded=torch.randn(3, 1).expand(3, 4),
    permuted=torch.randn(2, 3, 4).permute(2, 0, 1), scalar=torch.tensor(2.5), empty=torch.zeros(0, 4), one=shared,
    two=shared, part=shared[1:3], parameter=torch.nn.Parameter(torch.randn(3)), f64=torch.randn(2).double(),
    half=torch.randn(7).half(), bf16=torch.randn(7).bfloat16(), i64=torch.tensor([-1, 2 ** 40]),
    i32=torch.tensor([-3], dtype=torch.int32), i16=torch.tensor([-3], dtype=torch.int16),
    i8=torch.tensor([-3, 100], dtype=torch.int8), u8=torch.tensor([200], dtype=torch.uint8),
    flag=torch.tensor([True, False]), strides=torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last))
for p in (torch.nn.Linear(2, 2),):
    sd["linear"] = p.state_dict()["weight"]
sd._metadata = OrderedDict({"": {"version": 1}})
halves = (torch.half, torch.bfloat16)
np.savez(folder + "/expected.npz", **{k: (v.detach().float() if v.dtype in halves else v.detach()).numpy()
                                      for k, v in sd.items()})
net = torch.nn.Linear(3, 2)
optimizer = torch.optim.AdamW(net.parameters())
net(torch.randn(4, 3)).sum().backward(); optimizer.step()
full = {"state_dict": sd, "epoch": 3, "arch": "x", "version": 2, "metric": np.float64(0.25), "count": np.int64(7),
        "args": argparse.Namespace(lr=0.1, name="a", sizes=[1, 2], none=None, dtype=torch.float32,
                                   device=torch.device("cuda:1"), shape=torch.Size([1, 2])),
        "optimizer": optimizer.state_dict(), "curve": np.arange(3.0)}
for name, obj in (("bare", sd), ("net", {"net": sd, "step": 30000}), ("full", full)):
    torch.save(obj, f"{folder}/{name}-zip.pth")
    torch.save(obj, f"{folder}/{name}-legacy.pth", _use_new_zipfile_serialization=False)
for protocol in (3, 4, 5):
    torch.save(sd, f"{folder}/protocol{protocol}-legacy.pth", pickle_protocol=protocol,
               _use_new_zipfile_serialization=False)
    torch.save(sd, f"{folder}/protocol{protocol}-zip.pth", pickle_protocol=protocol)
"""
CHECK = r"""
import sys
import numpy as np, torch
path, expected, wrapper = sys.argv[1:]
loaded = torch.load(path, weights_only=True)
if wrapper:
    loaded = loaded[wrapper]
expected = np.load(expected)
assert type(loaded).__name__ == "OrderedDict" and list(loaded) == [k for k in expected.files if k != "__meta__"]
for key, tensor in loaded.items():
    want = expected[key]
    assert tensor.is_contiguous() and tuple(tensor.shape) == want.shape, key
    assert tensor.numpy().dtype == want.dtype and tensor.numpy().tobytes() == want.tobytes(), key
torch.load(path, weights_only=True, mmap=True)
"""


def python(code, *arguments):
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True,
                          env=forge.ENVIRONMENT)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("torch")
    python(MAKE, folder)
    return folder


@pytest.mark.parametrize("container", ["zip", "legacy"])
@pytest.mark.parametrize("kind", ["bare", "net", "full", "protocol3", "protocol4", "protocol5"])
def test_reads_what_torch_wrote(made, kind, container):
    checkpoint = read(made / f"{kind}-{container}.pth")
    expected = np.load(made / "expected.npz")
    assert checkpoint.format == f"torch-{container}"
    assert checkpoint.wrapper == {"net": "net", "full": "state_dict"}.get(kind, "")
    assert list(checkpoint.tensors) == expected.files
    for key, array in checkpoint.tensors.items():
        assert array.dtype == expected[key].dtype and array.shape == expected[key].shape, key
        assert array.tobytes() == expected[key].tobytes(), key
    if kind == "net":
        assert checkpoint.meta == {"step": 30000}
    if kind == "full":
        assert checkpoint.meta == {
            "epoch": 3, "arch": "x", "version": 2, "metric": 0.25, "count": 7,
            "args": {"lr": 0.1, "name": "a", "sizes": [1, 2], "none": None, "dtype": "torch.float32",
                     "device": "cuda:1", "shape": [1, 2]}}
        assert any("optimizer, curve" in note for note in checkpoint.notes)


@pytest.mark.parametrize("wrapper", ["", "net"])
def test_torch_reads_what_we_wrote(made, tmp_path, wrapper):
    tensors = read(made / "bare-zip.pth").tensors
    save_npz(tmp_path / "expected.npz", tensors)
    write(tmp_path / "ours.pth", tensors, wrapper=wrapper)
    python(CHECK, tmp_path / "ours.pth", tmp_path / "expected.npz", wrapper)
