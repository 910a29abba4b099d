"""Data sets (numpy out, no Jittor), transforms and the batch loader."""
from .errors import DataError
from .folder import list_inputs
from .images import read_image, read_label, write_image, write_index_png
from .loader import Loader, map_ordered
from .palette import VOC_CLASSES, colour_to_index, voc_palette
from .shapes import Shapes, make_shapes
from .voc import VOCSegmentation

DATASETS = {
    "voc": VOCSegmentation,
    "shapes": Shapes,
}

__all__ = [
    "DATASETS", "DataError", "Loader", "Shapes", "VOCSegmentation", "VOC_CLASSES", "colour_to_index",
    "list_inputs", "make_shapes", "map_ordered", "read_image", "read_label", "voc_palette",
    "write_image", "write_index_png",
]
