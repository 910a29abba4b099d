"""What was found and chosen on this machine."""
from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Decisions:
    """What `prepare` found and chose, each with its reason: the material of `jea info`."""
    device: str = "cpu"  # "cpu" or "cuda": what `--device auto` will use
    device_reason: str = ""
    cuda_broken: bool = False  # a GPU is there, but Jittor cannot use it
    nvcc: str = ""
    fitting: str = ""  # which of NVIDIA's sets of wheels the driver and its cards take; "" without any
    tf32_off: bool = False  # CUDA's libraries are told to keep float32
    onednn: str = ""  # version, "jittor's own download" or "" when there is none
    onednn_reason: str = ""
    notes: list = field(default_factory=list)
