"""ModelNet40, in either of the forms that are in use.

    modelnet40_ply_hdf5_2048/ply_data_train0.h5 ... ply_data_test1.h5     data (n, 2048, 3), label (n, 1)
                             shape_names.txt                              a class per line, in the labels' order
    modelnet40_normal_resampled/modelnet40_shape_names.txt
                                modelnet40_train.txt, modelnet40_test.txt      ids such as airplane_0001
                                <class>/<id>.txt                               10,000 lines x,y,z,nx,ny,nz
"""
from __future__ import annotations

from pathlib import Path
from typing import Sequence

import numpy as np

from jea.data.dataset import check_split
from jea.data.files.cache import cached, pack
from jea.data.files.clouds.text import check_cloud, read_table
from jea.data.files.hdf5 import check_hdf5_clouds, check_labels, hdf5_files, read_hdf5
from jea.data.files.lists import check_listed, read_list
from jea.data.points.base import PointCloudDataset
from jea.data.views.clouds import normalise_cloud
from jea.errors import DataError, quoted

MODELNET40_CLASSES = (
    "airplane", "bathtub", "bed", "bench", "bookshelf", "bottle", "bowl", "car", "chair", "cone", "cup", "curtain",
    "desk", "door", "dresser", "flower_pot", "glass_box", "guitar", "keyboard", "lamp", "laptop", "mantel", "monitor",
    "night_stand", "person", "piano", "plant", "radio", "range_hood", "sink", "sofa", "stairs", "stool", "table",
    "tent", "toilet", "tv_stand", "vase", "wardrobe", "xbox",
)
SPLITS = ("train", "test")


class ModelNet40(PointCloudDataset):
    """Shapes of 40 classes: 9,840 + 2,468 as hdf5, 9,843 + 2,468 as text.

    root: one of the two folders above, or the folder that holds it.
    split: train or test.
    num_points: the first so many rows of each shape, as in the published recipes; text is then moved into the unit
        sphere, as hdf5 already is.
    dropout, scale, shift, jitter: see PointCloudDataset; the defaults are the published recipe's.

    The clouds are read once and kept in root/.jea. Faults raise DataError.
    """

    class_names = MODELNET40_CLASSES  # of the published data; a data set's own are those of its list

    def __init__(self, *, root: str | Path, split: str = "train", num_points: int = 1024, dropout: float = 0.875,
                 scale: Sequence[float] = (2 / 3, 3 / 2), shift: float = 0.2, jitter: float = 0.0):
        super().__init__(num_points=num_points, dropout=dropout, scale=scale, shift=shift, jitter=jitter)
        check_split(split, SPLITS, "ModelNet40")
        self.split = split
        self.root, names = _find_root(Path(root).expanduser())
        self.class_names = read_list(names)
        self.num_classes = len(self.class_names)
        hdf5 = names.name == "shape_names.txt"
        sources, build = self._hdf5() if hdf5 else self._text()
        self._clouds = cached(self.root, f"{split}-{num_points}", [names, *sources], build)

    def __len__(self) -> int:
        return len(self._clouds)

    def cloud(self, index: int, rng: np.random.Generator | None = None):
        start, end = self._clouds.ends[index:index + 2]
        return (np.array(self._clouds.points[start:end]), int(self._clouds.labels[index]), None,
                f"{self.split}_{index:04d}")

    def _hdf5(self):
        files = hdf5_files(self.root, f"ply_data_{self.split}*.h5")

        def build() -> dict[str, np.ndarray]:
            points, labels = [], []
            for file in files:
                arrays = read_hdf5(file, {"data": (None, self.num_points, 3), "label": (None,)})
                check_labels(arrays["label"], self.num_classes, file)
                points += list(check_hdf5_clouds(arrays["data"], file))
                labels.append(arrays["label"])
            return pack(points, np.concatenate(labels))
        return files, build

    def _text(self):
        ids = read_list(self.root / f"modelnet40_{self.split}.txt")
        classes = [id.rpartition("_")[0] for id in ids]
        unknown = next((id for id, name in zip(ids, classes) if name not in self.class_names), None)
        if unknown is not None:
            raise DataError(f"{self.root / f'modelnet40_{self.split}.txt'}: {quoted(unknown)} belongs to none of the "
                            f"{self.num_classes} classes")
        files = [self.root / name / f"{id}.txt" for id, name in zip(ids, classes)]
        check_listed(files, self.root / f"modelnet40_{self.split}.txt")

        def build() -> dict[str, np.ndarray]:
            clouds = []
            for file in files:
                table, lines = read_table(file, rows=self.num_points)
                if len(table) < self.num_points:
                    raise DataError(f"{file}: cloud has {len(table)} points; expected at least {self.num_points}. "
                                    "Fetch it again, or set data.num_points")
                clouds.append(normalise_cloud(check_cloud(table[:, :3], file, lines)))
            return pack(clouds, [self.class_names.index(name) for name in classes])
        return files, build


def _find_root(root: Path) -> tuple[Path, Path]:
    """The folder of the data and its list of classes."""
    forms = (("modelnet40_ply_hdf5_2048", "shape_names.txt"),
             ("modelnet40_normal_resampled", "modelnet40_shape_names.txt"))
    for folder in (root, *(root / name for name, _ in forms)):
        for _, names in forms:
            if (folder / names).is_file():
                return folder, folder / names
    state = "" if root.is_dir() else " (it is not a folder)"
    raise DataError(f"{root}: no ModelNet40 there{state}; looked for shape_names.txt and modelnet40_shape_names.txt in "
                    f"it, in {' and '.join(name for name, _ in forms)}")
