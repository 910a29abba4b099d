"""Data sets (numpy out, no Jittor), transforms and the batch loader."""
from __future__ import annotations

from jea.data.classification.base import ClassificationDataset
from jea.data.classification.cifar import CIFAR10, CIFAR100
from jea.data.classification.digits import Digits
from jea.data.classification.folder import ImageFolder
from jea.data.classification.shapes import ShapeClasses
from jea.data.classification.tiny_imagenet import TinyImageNet
from jea.data.dataset import Batch, Dataset
from jea.data.detection.base import DetectionDataset
from jea.data.detection.coco import COCODetection, COCOJson
from jea.data.detection.scenes import ShapeScenes
from jea.data.detection.voc import VOCDetection
from jea.data.files.inputs import list_inputs
from jea.data.files.labels import colour_to_index, read_label, write_index_png
from jea.data.files.pictures import read_image, write_image
from jea.data.generation.shapes import PlainShapes
from jea.data.loader import Loader, map_ordered
from jea.data.points.base import PointCloudDataset
from jea.data.points.modelnet import ModelNet40
from jea.data.points.shapenet_part import ShapeNetPart
from jea.data.points.solids import SolidParts, Solids
from jea.data.segmentation.ade20k import ADE20K, ADE20K_CLASSES
from jea.data.segmentation.base import SegmentationDataset
from jea.data.segmentation.cityscapes import CITYSCAPES_CLASSES, Cityscapes
from jea.data.segmentation.coco import COCO
from jea.data.segmentation.folder import SegmentationFolder
from jea.data.segmentation.shapes import Shapes, make_shapes
from jea.data.segmentation.voc import VOC_CLASSES, VOCSegmentation
from jea.draw.palettes import voc_palette
from jea.errors import ConfigError, DataError, nearest, quoted
from jea.named import find_class

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
    "digits": Digits,
    "modelnet40": ModelNet40,
    "shapenet_part": ShapeNetPart,
    "solids": Solids,
    "solid_parts": SolidParts,
    "coco_detection": COCODetection,
    "coco_json": COCOJson,
    "voc_detection": VOCDetection,
    "shape_scenes": ShapeScenes,
}


def dataset_class(name: str) -> type[Dataset]:
    """The class of a data set: one of DATASETS, or the user's own "module:Class", found on Python's path."""
    if name not in DATASETS and ":" not in name:
        raise ConfigError(f"data.name: unknown {quoted(name)}; there are {', '.join(DATASETS)}, or module:Class for "
                          f"one of your own{nearest(name, DATASETS)}")
    return DATASETS.get(name) or find_class(name, "data.name")


__all__ = [
    "ADE20K", "ADE20K_CLASSES", "Batch", "CIFAR10", "CIFAR100", "CITYSCAPES_CLASSES", "COCO", "COCODetection",
    "COCOJson", "Cityscapes",
    "ClassificationDataset", "DATASETS", "DataError", "Dataset", "Digits", "DetectionDataset", "ImageFolder", "Loader",
    "ModelNet40",
    "PointCloudDataset", "SegmentationDataset", "SegmentationFolder", "ShapeClasses", "ShapeScenes", "ShapeNetPart",
    "Shapes",
    "SolidParts", "Solids", "TinyImageNet", "VOCDetection", "VOCSegmentation", "VOC_CLASSES", "colour_to_index",
    "dataset_class",
    "list_inputs",
    "make_shapes", "map_ordered", "read_image", "read_label", "voc_palette", "write_image", "write_index_png",
]
