"""Clouds and meshes of any form as points."""
from __future__ import annotations

from pathlib import Path
from typing import Callable

import numpy as np

from jea.data.files.clouds.npy import read_npy
from jea.data.files.clouds.obj import read_obj
from jea.data.files.clouds.off import read_off
from jea.data.files.clouds.pcd import read_pcd
from jea.data.files.clouds.ply import read_ply
from jea.data.files.clouds.stl import read_stl
from jea.data.files.clouds.text import check_cloud, read_text
from jea.data.views.clouds import sample_surface
from jea.errors import DataError

MESH_POINTS = 10_000  # sampled on the surface of a mesh; as many as modelnet40_normal_resampled has

READERS: dict[str, Callable] = {".npy": read_npy, ".ply": read_ply, ".off": read_off, ".obj": read_obj,
                                ".stl": read_stl,
                                ".pcd": read_pcd}
SUFFIXES = (".txt", ".xyz", ".pts", ".csv", *READERS)
# What people also have; read as text it would give a message of no use.
UNREAD = {".las": "LAS", ".laz": "LAZ", ".e57": "E57", ".npz": "NumPy archive", ".mat": "MATLAB", ".h5": "HDF5",
          ".hdf5": "HDF5", ".glb": "glTF", ".gltf": "glTF", ".fbx": "FBX", ".dae": "Collada", ".vtk": "VTK",
          ".vtp": "VTK", ".3ds": "3D Studio", ".wrl": "VRML", ".x3d": "X3D", ".3mf": "3MF", ".step": "STEP",
          ".stp": "STEP", ".bag": "ROS bag", ".pcap": "pcap", ".fls": "FARO", ".rcp": "ReCap", ".pkl": "pickle",
          ".pt": "PyTorch", ".zip": "zip archive", ".gz": "gzip", ".bin": "binary"}


def read_cloud(path: str | Path, *, mesh_points: int = MESH_POINTS) -> np.ndarray:
    """Read a cloud: (N, 3) float64 (maps' coordinates need its digits), N >= 1, all finite.

    .npy        array (N, 3 or more columns) of numbers, the first three columns count; or (3, N)
    .ply        ASCII or binary, either byte order; x, y, z of the element "vertex"
    .off        Object File Format, also ModelNet's own files, whose counts stand on the line of "OFF"
    .obj, .stl  vertices and faces; STL ASCII or binary
    .pcd        ASCII or binary, not compressed
    otherwise   text: a point per line, three or more numbers between blanks or commas; # starts a comment. A first line
                of names ("x,y,z,intensity") says which columns count; a first line of one number is the count of the
                points, as in Leica's .pts

    A mesh becomes `mesh_points` points on its surface, the same ones at every call.
    Raises DataError: no such file, not such a file, cut off, empty, over the limits, a decimal comma, a coordinate that
    is not finite.
    """
    suffix = Path(path).suffix.lower()
    if suffix in UNREAD:
        raise DataError(f"{path}: a {UNREAD[suffix]} file, which is not read; convert it to one of "
                        f"{', '.join(SUFFIXES)}")
    if suffix not in READERS:
        points, lines = read_text(path)
        return check_cloud(points, path, lines)
    points, triangles = READERS[suffix](path)
    points = check_cloud(points, path)
    if len(triangles):
        rng = np.random.Generator(np.random.PCG64(0))
        try:
            points = sample_surface(points, triangles, mesh_points, rng)[0]
        except ValueError as error:
            raise DataError(f"{path}: {error}") from None
    return points.astype(np.float64)
