"""What the operators on point clouds check."""
from __future__ import annotations


def check_clouds(operator: str, **clouds) -> None:
    """ValueError, with the arguments' names, unless all are (B, N, 3) of one batch size and not empty."""
    shapes = {name: tuple(cloud.shape) for name, cloud in clouds.items()}
    for name, shape in shapes.items():
        if len(shape) != 3 or shape[2] != 3 or min(shape) < 1:
            raise ValueError(f"{operator}: {name} has shape {shape}; expected (B, N, 3), at least one point each")
    if len({shape[0] for shape in shapes.values()}) > 1:
        raise ValueError(f"{operator}: batch sizes differ: "
                         + ", ".join(f"{name} {shape}" for name, shape in shapes.items()))
