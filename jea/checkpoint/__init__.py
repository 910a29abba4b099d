"""Checkpoints: read any safely, load them strictly, write them atomically.

>>> checkpoint = jea.checkpoint.read("eanet.pth")           # numpy arrays; needs neither PyTorch nor Jittor
>>> print(jea.checkpoint.load_weights(model, "eanet.pth"))  # into a Jittor model, by name, all or nothing
>>> jea.checkpoint.save_weights(model, "eanet.npz")         # or .pkl, .pth, .safetensors

Importing this package imports numpy alone.
"""
from .errors import CheckpointError
from .identity import git_blob_id
from .keymap import KeyMap
from .loading import LoadReport, load_weights, save_weights
from .reader import Checkpoint, outline, read
from .store import load_npz, save_npz

__all__ = ["Checkpoint", "CheckpointError", "KeyMap", "LoadReport", "git_blob_id", "load_npz", "load_weights",
           "outline", "read", "save_npz", "save_weights"]
