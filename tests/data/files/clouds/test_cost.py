"""Time and memory of the readers of clouds grow with the file's size alone, whatever is in the file."""
import struct
import time
import tracemalloc

import numpy as np
import pytest

from jea.data import DataError
from jea.data.files.clouds.reading import read_cloud

PLY = ("ply\nformat binary_little_endian 1.0\nelement vertex 3\nproperty float x\nproperty float y\nproperty float z\n"
       "element face {}\nproperty list {} {} vertex_indices\nend_header\n")
THREE = struct.pack("<9f", 0, 0, 0, 1, 0, 0, 0, 1, 0)
OFF = "OFF\n3 {} 0\n0 0 0\n1 0 0\n0 1 0\n"


def mixed_faces(n):
    """Polygons of 0 to 6 corners, none like the one before."""
    count = n // 13
    rows = b"".join(struct.pack(f"<B{k % 7}i", k % 7, *(j % 3 for j in range(k % 7))) for k in range(70))
    return PLY.format(count, "uchar", "int").encode() + THREE + (rows * (count // 70 + 1))


def sizes_that_all_differ(n):
    sizes = range(int((n / 4) ** 0.5))
    return OFF.format(len(sizes)) + "".join(f"{k}{' 1' * k}\n" for k in sizes)


# name -> text or bytes of about n bytes
FILES = {
    "one face of many corners.off": lambda n: OFF.format(1) + f"{n // 2 - 20}" + " 0" * (n // 2 - 20),
    "faces of many sizes.off": sizes_that_all_differ,
    "triangles.off": lambda n: OFF.format(n // 8) + "3 0 1 2\n" * (n // 8),
    "polygons that differ.ply": mixed_faces,
    "one long list.ply": lambda n: PLY.format(2, "int", "uchar").encode() + THREE + struct.pack("<i",
                                                                                                n - 9) + bytes(n - 9)
    + struct.pack("<i", 0),
    "one strip.ply": lambda n: PLY.format(1, "int", "int").replace("face", "tristrips").encode() + THREE
    + struct.pack("<i", n // 4) + b"\0\0\0\0\1\0\0\0\2\0\0\0\0\0\0\0" * (n // 16 + 1),
    "vertices.ply": lambda n: PLY.split("element face")[0].replace("vertex 3", f"vertex {n // 12}").encode()
    + b"end_header\n" + bytes(n),
    "one-digit numbers.txt": lambda n: "1\n" * (n // 2), "short lines.txt": lambda n: "1 2 3\n" * (n // 6),
    "empty lines.txt": lambda n: "\n" * n, "blanks.txt": lambda n: " " * n, "one word.txt": lambda n: "9" * n,
    "one line.txt": lambda n: "1 " * (n // 2), "comments.txt": lambda n: "#\n" * (n // 2),
    "commas.txt": lambda n: "1,2,3\n" * (n // 6),
    "commas and blanks.txt": lambda n: "1, 2, 3\n" * (n // 8), "blanks after a comma.txt": lambda n: "1,2" + " " * n,
    "long words with commas.txt": lambda n: "1 " + "1,1" * (n // 3), "carriage returns.txt": lambda n: "\r" * n,
    "counts.pts": lambda n: "1\n1 2 3\n" * (n // 8), "names.csv": lambda n: "x" + ",x" * (n // 2),
    "vertices.obj": lambda n: "v 1 2 3\n" * (n // 8),
    "faces.obj": lambda n: "v 0 0 0\nv 0 1 0\nv 1 0 0\n" + "f 1 2 3\n" * (n // 8),
    "one face.obj": lambda n: "v 0 0 0\nv 0 1 0\nv 1 0 0\nf" + " 1" * (n // 2),
    "slashes.obj": lambda n: "v 1 2 3\nf " + "1/" * (n // 2),
    "negative.obj": lambda n: "v 0 0 0\nv 0 1 0\nv 1 0 0\n" + "f -1 -2 -3\n" * (n // 11),
    "joined.obj": lambda n: "\\\n" * (n // 2),
    "other lines.obj": lambda n: "v 1 2 3\n" + "vn\n" * (n // 3),
    "vertices.stl": lambda n: "solid\n" + "vertex 1 2 3\n" * (n // 39 * 3),
    "other lines.stl": lambda n: "solid\n" + "a\n" * (n // 2),
    "binary.stl": lambda n: bytes(80) + struct.pack("<I", n // 50) + bytes(n // 50 * 50),
    "ascii.pcd": lambda n: "FIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nPOINTS {0}\nDATA ascii\n".format(n // 6)
    + "1 2 3\n" * (n // 6), "bytes.npy": lambda n: b"\x93NUMPY\x01\x00" + struct.pack("<H", 70)
    + f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({n // 3}, 3)}}".ljust(69).encode() + b"\n" + bytes(n),
}


def read(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    started = time.process_time()
    try:
        read_cloud(path, mesh_points=10)
    except DataError:
        pass
    return time.process_time() - started


@pytest.mark.parametrize("name", FILES)
def test_time_and_memory(tmp_path, name):
    small, large = 400_000, 1_600_000
    path = tmp_path / name
    read(path, FILES[name](10_000))
    times = [min(read(path, FILES[name](n)) for _ in range(2)) for n in (small, large)]
    assert times[1] < 0.05 + 8 * times[0], times  # four times the bytes; quadratic would be sixteen times
    content = FILES[name](4_000_000)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    tracemalloc.start()
    try:
        read_cloud(path, mesh_points=10)
    except DataError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    size = path.stat().st_size
    print(f"{name:32} {1e9 * times[1] / large:6.0f} ns/byte {peak / size:6.1f} bytes/byte")
    assert peak < 30 * size + 50e6, peak / size
    assert np.isfinite(times).all()
