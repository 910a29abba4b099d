"""Synthetic point clouds, made on the fly: `solids` for classification and `solid_parts` for part segmentation.

A shape is a mesh with random proportions, turned at random about the vertical axis (z); points are uniform over its
surface, with noise. Shape k of a split depends on seed, split and k only.
"""
from __future__ import annotations

import math
from typing import Callable, Sequence

import numpy as np

from jea.data.dataset import check_split
from jea.data.points.base import PointCloudDataset
from jea.data.points.shapenet_part import part_ranges
from jea.data.views.clouds import normalise_cloud, sample_surface
from jea.errors import DataError

SPLITS = ("train", "val")
NOISE = 0.015  # standard deviation of each coordinate, in radii of the cloud
_AROUND = 24  # corners of what should be round

Mesh = tuple[np.ndarray, np.ndarray]  # vertices (V, 3) float64, triangles (T, 3)


# -- pieces ----------------------------------------------------------------------------------------------------------

def revolved(profile: Sequence[tuple[float, float]]) -> Mesh:
    """The surface that a line of (radius, height) points leaves when it turns about the z axis."""
    profile = np.asarray(profile, np.float64)
    angle = 2 * math.pi * np.arange(_AROUND) / _AROUND
    radius, height = profile[:, :1], np.repeat(profile[:, 1:], _AROUND, axis=1)
    vertices = np.stack([radius * np.cos(angle), radius * np.sin(angle), height], 2).reshape(-1, 3)
    row = np.arange(_AROUND)
    square = np.stack([row, (row + 1) % _AROUND, (row + 1) % _AROUND + _AROUND, row + _AROUND], 1)
    squares = (square + _AROUND * np.arange(len(profile) - 1)[:, None, None]).reshape(-1, 4)
    return vertices, np.concatenate([squares[:, [0, 1, 2]], squares[:, [0, 2, 3]]])


def hull(vertices: Sequence[Sequence[float]], faces: Sequence[Sequence[int]]) -> Mesh:
    """A polyhedron of convex polygons."""
    triangles = [(face[0], face[k], face[k + 1]) for face in faces for k in range(1, len(face) - 1)]
    return np.asarray(vertices, np.float64), np.asarray(triangles)


def box(x: float, y: float, z: float) -> Mesh:
    """An upright box with these side lengths about the origin."""
    corners = [(a * x / 2, b * y / 2, c * z / 2) for c in (-1, 1) for b in (-1, 1) for a in (-1, 1)]
    return hull(corners, [(0, 1, 3, 2), (4, 5, 7, 6), (0, 1, 5, 4), (2, 3, 7, 6), (0, 2, 6, 4), (1, 3, 7, 5)])


def cylinder(radius: float, height: float, top: float | None = None) -> Mesh:
    """A closed cylinder about the origin; with another radius at the top, a frustum or a cone."""
    top = radius if top is None else top
    return revolved([(0, -height / 2), (radius, -height / 2), (top, height / 2), (0, height / 2)])


def moved(mesh: Mesh, x: float = 0, y: float = 0, z: float = 0) -> Mesh:
    return mesh[0] + (x, y, z), mesh[1]


def lying(mesh: Mesh) -> Mesh:
    """Turned so that its z axis becomes the x axis."""
    return mesh[0][:, [2, 0, 1]], mesh[1]


def joined(meshes: Sequence[Mesh]) -> Mesh:
    starts = np.cumsum([0, *(len(vertices) for vertices, _ in meshes)])
    return (np.concatenate([vertices for vertices, _ in meshes]),
            np.concatenate([triangles + start for (_, triangles), start in zip(meshes, starts)]))


def _arc(radius: float, start: float, end: float, count: int = 12, x: float = 0, z: float = 0) -> list:
    """(radius, height) points on a circle about (x, z), between two angles in turns; 0 is outward, 1/4 is up."""
    turns = np.linspace(start, end, count) * 2 * math.pi
    return [(max(0.0, x + radius * math.cos(a)), z + radius * math.sin(a)) for a in turns]


# -- classes ---------------------------------------------------------------------------------------------------------
# Each takes `between(low, high)`, a random number, and returns a mesh.

def _ball(between) -> Mesh:
    vertices, triangles = revolved(_arc(1, -0.25, 0.25))
    return vertices * (between(0.85, 1.15), between(0.85, 1.15), between(0.85, 1.15)), triangles


def _box(between) -> Mesh:
    return box(between(0.7, 1.4), between(0.7, 1.4), between(0.7, 1.6))


def _cylinder(between) -> Mesh:
    return cylinder(between(0.5, 0.8), between(1.2, 2.0))


def _cone(between) -> Mesh:
    return cylinder(between(0.6, 1.0), between(1.2, 2.0), 0.0)


def _torus(between) -> Mesh:
    return revolved(_arc(between(0.2, 0.35), 0, 1, 13, x=1))


def _pyramid(between) -> Mesh:
    a, b, h = between(0.6, 0.9), between(0.6, 0.9), between(1.1, 1.9)
    return hull([(a, b, 0), (-a, b, 0), (-a, -b, 0), (a, -b, 0), (0, 0, h)],
                [(0, 1, 2, 3), (0, 1, 4), (1, 2, 4), (2, 3, 4), (3, 0, 4)])


def _prism(between) -> Mesh:
    """A roof: a triangle, drawn along a horizontal axis."""
    a, b, h = between(0.6, 0.9), between(0.7, 1.2), between(0.9, 1.4)
    return hull([(-a, -b, 0), (a, -b, 0), (0, -b, h), (-a, b, 0), (a, b, 0), (0, b, h)],
                [(0, 1, 2), (3, 4, 5), (0, 1, 4, 3), (1, 2, 5, 4), (2, 0, 3, 5)])


def _octahedron(between) -> Mesh:
    a, b, h = between(0.8, 1.1), between(0.8, 1.1), between(0.9, 1.4)
    return hull([(a, 0, 0), (0, b, 0), (-a, 0, 0), (0, -b, 0), (0, 0, h), (0, 0, -h)],
                [(k, (k + 1) % 4, pole) for pole in (4, 5) for k in range(4)])


def _bowl(between) -> Mesh:
    """An open half of a sphere."""
    return revolved(_arc(1, -0.25, between(-0.03, 0.02)))


def _hourglass(between) -> Mesh:
    r, h = between(0.6, 0.9), between(0.8, 1.2)
    return revolved([(0, -h), (r, -h), (between(0.1, 0.25) * r, 0), (r, h), (0, h)])


SOLIDS: dict[str, Callable] = {"ball": _ball, "box": _box, "cylinder": _cylinder, "cone": _cone, "torus": _torus,
                               "pyramid": _pyramid, "prism": _prism, "octahedron": _octahedron, "bowl": _bowl,
                               "hourglass": _hourglass}


# -- composites ------------------------------------------------------------------------------------------------------
# Each returns the meshes of its parts, in order.

def _table(between) -> list[Mesh]:
    x, y, h, thick = between(1.2, 2.0), between(0.9, 1.3), between(0.8, 1.2), between(0.06, 0.12)
    legs = [moved(box(0.15, 0.15, h), a * (x / 2 - 0.1), b * (y / 2 - 0.1), -h / 2) for a in (-1, 1) for b in (-1, 1)]
    return [moved(box(x, y, thick), z=thick / 2), joined(legs)]


def _chair(between) -> list[Mesh]:
    x, y, h, back = between(0.8, 1.0), between(0.8, 1.0), between(0.6, 0.9), between(0.8, 1.1)
    legs = [moved(box(0.15, 0.15, h), a * (x / 2 - 0.08), b * (y / 2 - 0.08), -h / 2)
            for a in (-1, 1) for b in (-1, 1)]
    return [moved(box(0.1, y, back), 0.05 - x / 2, z=0.1 + back / 2), moved(box(x, y, 0.1), z=0.05), joined(legs)]


def _lamp(between) -> list[Mesh]:
    h, r, shade = between(1.1, 1.6), between(0.5, 0.75), between(0.5, 0.8)
    side = [(r, h - shade / 2), (between(0.5, 0.8) * r, h + shade / 2)]
    return [moved(cylinder(between(0.4, 0.6), 0.12), z=0.06), moved(cylinder(0.1, h - 0.12), z=h / 2 + 0.06),
            revolved(side)]


def _mug(between) -> list[Mesh]:
    r, h, thick = between(0.5, 0.7), between(1.0, 1.4), between(0.08, 0.11)
    handle, triangles = revolved(_arc(thick, 0, 1, 9, x=between(0.32, 0.42)))
    half = (handle[:, 1] >= -1e-9)[triangles].all(1)  # the half that stands out of the body
    upright = np.stack([handle[:, 1] + r, handle[:, 2], handle[:, 0]], 1)
    return [revolved([(0, -h / 2), (r, -h / 2), (r, h / 2)]), (upright, triangles[half])]


def _rocket(between) -> list[Mesh]:
    r, h, nose, fin = between(0.25, 0.35), between(1.2, 1.8), between(0.5, 0.8), between(0.4, 0.6)
    body = revolved([(0, 0), (r, 0), (r, h)])
    wing = hull([(r, 0, 0), (r + fin, 0, -0.15), (r + fin, 0, 0.2 * fin), (r, 0, 1.2 * fin)], [(0, 1, 2, 3)])
    fins = [wing, (wing[0] * (-1, 1, 1), wing[1]), (wing[0][:, [1, 0, 2]], wing[1]),
            (wing[0][:, [1, 0, 2]] * (1, -1, 1), wing[1])]
    return [body, revolved([(r, h), (0, h + nose)]), joined(fins)]


def _hammer(between) -> list[Mesh]:
    length, r, head = between(1.4, 2.0), between(0.1, 0.14), between(0.3, 0.4)
    return [moved(cylinder(r, length), z=-length / 2),
            moved(lying(cylinder(between(0.2, 0.26), between(0.8, 1.1))), z=head / 2)]


COMPOSITES: dict[str, tuple[Callable, tuple[str, ...]]] = {
    "table": (_table, ("top", "legs")),
    "chair": (_chair, ("back", "seat", "legs")),
    "lamp": (_lamp, ("foot", "pole", "shade")),
    "mug": (_mug, ("body", "handle")),
    "rocket": (_rocket, ("body", "nose", "fins")),
    "hammer": (_hammer, ("handle", "head")),
}


# -- data sets -------------------------------------------------------------------------------------------------------

class Solids(PointCloudDataset):
    """Ten classes of solids: splits train and val, of `num_train` and `num_val` clouds, as many of each class.

    num_points: points of a cloud. noise: standard deviation of each coordinate, in radii of the cloud. seed: of the
    whole data set. dropout, scale, shift, jitter: see PointCloudDataset; off by default, as the shapes vary themselves.
    """

    class_names: tuple[str, ...] = tuple(SOLIDS)
    root = "memory"
    _stream = 0  # tells the data sets of one seed apart

    def __init__(self, *, split: str = "train", num_points: int = 512, num_train: int = 4000, num_val: int = 400,
                 seed: int = 0, noise: float = NOISE, dropout: float = 0.0, scale: Sequence[float] = (1.0, 1.0),
                 shift: float = 0.0, jitter: float = 0.0):
        super().__init__(num_points=num_points, dropout=dropout, scale=scale, shift=shift, jitter=jitter)
        check_split(split, SPLITS, "solids")
        if min(num_train, num_val) < 1 or seed < 0 or noise < 0:
            raise DataError(f"num_train {num_train}, num_val {num_val}, seed {seed}, noise {noise}; expected at least "
                            "one cloud in each split, and seed and noise of at least 0")
        self.split, self.seed, self.noise = split, seed, noise
        self.num_classes = len(self.class_names)
        self._count = num_train if split == "train" else num_val

    def __len__(self) -> int:
        return self._count

    def cloud(self, index: int, rng: np.random.Generator | None = None):
        if not 0 <= index < self._count:
            raise IndexError(f"{index}; split {self.split} has {self._count} clouds")
        own = np.random.Generator(np.random.PCG64((self.seed, self._stream, SPLITS.index(self.split), index + 1)))
        category = index % self.num_classes
        vertices, triangles, part_of = self._shape(category, lambda low, high: low + (high - low) * own.random())
        points, chosen = sample_surface(vertices, triangles, self.num_points, own)
        angle = 2 * math.pi * own.random()
        cos, sin = math.cos(angle), math.sin(angle)
        points = normalise_cloud(points @ np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]]))
        points += (self.noise * own.standard_normal(points.shape)).astype(np.float32)
        parts = None if part_of is None else part_of[chosen].astype(np.int32)
        return points, category, parts, f"{self.split}_{index:04d}"

    def _shape(self, category: int, between):
        """Vertices, triangles, and the part of each triangle."""
        return (*SOLIDS[self.class_names[category]](between), None)


class SolidParts(Solids):
    """Six categories of composites with 15 parts in all, numbered through as in ShapeNetPart. Keywords as Solids."""

    class_names = tuple(COMPOSITES)
    parts = part_ranges([len(names) for _, names in COMPOSITES.values()])
    part_names = tuple(f"{category} {name}" for category, (_, names) in COMPOSITES.items() for name in names)
    _stream = 1

    def _shape(self, category: int, between):
        meshes = COMPOSITES[self.class_names[category]][0](between)
        own = self.parts[category]
        return (*joined(meshes), np.repeat(own, [len(triangles) for _, triangles in meshes]))
