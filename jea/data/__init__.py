"""Data sets (numpy out, no Jittor), transforms and the batch loader."""
from .ade20k import ADE20K, ADE20K_CLASSES
from .cifar import CIFAR10, CIFAR100
from .cityscapes import CITYSCAPES_CLASSES, Cityscapes
from .coco import COCO
from .errors import DataError
from .folder import list_inputs
from .image_folder import ImageFolder
from .images import read_image, read_label, write_image, write_index_png
from .loader import Loader, map_ordered
from .modelnet import ModelNet40
from .palette import VOC_CLASSES, colour_to_index, voc_palette
from .plain_shapes import PlainShapes
from .segmentation_folder import SegmentationFolder
from .shape_classes import ShapeClasses
from .shapes import Shapes, make_shapes
from .shapenet_part import ShapeNetPart
from .solids import SolidParts, Solids
from .tiny_imagenet import TinyImageNet
from .voc import VOCSegmentation

DATASETS = {
    "voc": VOCSegmentation,
    "shapes": Shapes,
    "ade20k": ADE20K,
    "cityscapes": Cityscapes,
    "coco": COCO,
    "segmentation_folder": SegmentationFolder,
    "shape_classes": ShapeClasses,
    "plain_shapes": PlainShapes,
    "image_folder": ImageFolder,
    "cifar10": CIFAR10,
    "cifar100": CIFAR100,
    "tiny_imagenet": TinyImageNet,
    "modelnet40": ModelNet40,
    "shapenet_part": ShapeNetPart,
    "solids": Solids,
    "solid_parts": SolidParts,
}

__all__ = [
    "ADE20K", "ADE20K_CLASSES", "CIFAR10", "CIFAR100", "CITYSCAPES_CLASSES", "COCO", "Cityscapes", "DATASETS",
    "DataError", "ImageFolder", "Loader", "ModelNet40", "SegmentationFolder", "ShapeClasses", "ShapeNetPart", "Shapes",
    "SolidParts", "Solids", "TinyImageNet", "VOCSegmentation", "VOC_CLASSES", "colour_to_index", "list_inputs", "make_shapes", "map_ordered", "read_image",
    "read_label", "voc_palette", "write_image", "write_index_png",
]
