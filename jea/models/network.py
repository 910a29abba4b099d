"""What a task knows of a model."""
from __future__ import annotations

from jea.nn.fold import Foldable


class Network(Foldable):
    """Base of all models that tasks run.

    `solves` names the task that the model is for: "segmentation", "classification", "generation",
    "point_classification", "part_segmentation", "detection"; "features" for a network that measures others. A model of
    your own says it too: a task refuses what solves something else. What else a task asks of its models is written at
    the task.
    """

    solves = ""

    def attention_places(self, positions: int, *inputs) -> dict:
        """Where so many positions of an attention lie, for jea.attention_maps: {"grid": (h, w)} of tokens, {"points":
        (B, N, 3)} of clouds, or {} where there is nothing to say. inputs: the network's."""
        return {}
