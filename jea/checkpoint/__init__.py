"""Checkpoints: read any safely, load them strictly, write them atomically.

>>> checkpoint = jea.checkpoint.read("eanet.pth")           # numpy arrays; needs neither PyTorch nor Jittor
>>> print(jea.checkpoint.load_weights(model, "eanet.pth"))  # into a Jittor model, by name, all or nothing
>>> jea.checkpoint.save_weights(model, "eanet.npz")         # or .pkl, .pth, .safetensors

Importing this package imports numpy alone.
"""
from jea.checkpoint.choosing import Checkpoint
from jea.checkpoint.identity import git_blob_id
from jea.checkpoint.keymap import KeyMap
from jea.checkpoint.loading import LoadReport, load_weights, save_weights
from jea.checkpoint.reader import outline, read
from jea.checkpoint.readers.npz import load_npz
from jea.checkpoint.writers.npz import save_npz
from jea.errors import CheckpointError

__all__ = ["Checkpoint", "CheckpointError", "KeyMap", "LoadReport", "git_blob_id", "load_npz", "load_weights",
           "outline", "read", "save_npz", "save_weights"]
