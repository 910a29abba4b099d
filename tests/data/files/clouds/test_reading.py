"""Reading clouds and meshes: every form, every fault."""
import io
import struct
import tracemalloc

import numpy as np
import pytest

from jea.data import DataError, list_inputs
from jea.data.files.clouds import numbers, ply_binary, text
from jea.data.files.clouds.reading import SUFFIXES, read_cloud
from jea.data.files.clouds.text import read_table
from jea.data.views.clouds import (
    normalise_cloud,
)

POINTS = np.array([[0, 0, 0], [1, 0.5, -2], [1e-3, -7.25, 3]])
CUBE = [(x, y, z) for z in (0, 1) for y in (0, 1) for x in (0, 1)]
QUADS = [(0, 1, 3, 2), (4, 5, 7, 6), (0, 1, 5, 4), (2, 3, 7, 6), (0, 2, 6, 4), (1, 3, 7, 5)]


def rng(seed=0):
    return np.random.default_rng(seed)


def write(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def lines_of(rows):
    return "".join(" ".join(str(v) for v in row) + "\n" for row in rows)


# -- sound files -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("text", [
    "0 0 0\n1 0.5 -2\n1e-3 -7.25 3\n",
    "0,0,0\r\n1,.5,-2.0\r\n0.001,-7.25,3",
    "# x y z\n\n 0\t0  0 \n1;0.5;-2 # second\n\n+1E-3 -725e-2 3\n\n",
    "0 0 0 9 9\n1 0.5 -2 9 9\n0.001 -7.25 3 9 9\n",
])
def test_text(tmp_path, text):
    assert np.array_equal(read_cloud(write(tmp_path, "a.txt", text)), POINTS)


@pytest.mark.parametrize("array", [
    POINTS, POINTS.astype(">f8"), np.asfortranarray(np.hstack([POINTS, POINTS])), (POINTS * 8).round().astype(np.int16),
    POINTS.astype(np.float16),
])
def test_npy(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    assert np.array_equal(read_cloud(tmp_path / "a.npy"), array[:, :3].astype(np.float64))


def test_large_coordinates_keep_their_digits(tmp_path):
    cloud = read_cloud(write(tmp_path, "a.xyz", "4649776.001 0 0\n4649776.003 0 0\n"))
    assert cloud[1, 0] - cloud[0, 0] == pytest.approx(0.002, rel=1e-6)
    assert normalise_cloud(cloud)[:, 0] == pytest.approx([-1, 1])


def ply(form, order="<", faces=(), comment="made by hand"):
    """x and z stand apart and in different types, so that an offset that is wrong by a field shows."""
    head = (f"ply\nformat {form} 1.0\ncomment {comment}\nelement vertex {len(CUBE)}\nproperty float x\n"
            f"property uchar red\nproperty double y\nproperty float z\n"
            f"element face {len(faces)}\nproperty list uchar int vertex_indices\n"
            "property uchar flag\nend_header\n").encode()
    if form == "ascii":
        return head + (lines_of((x, 7, y, z) for x, y, z in CUBE)
                       + lines_of((len(f), *f, 1) for f in faces)).encode()
    body = b"".join(struct.pack(f"{order}fBdf", x, 7, y, z) for x, y, z in CUBE)
    return head + body + b"".join(struct.pack(f"{order}B{len(f)}iB", len(f), *f, 1) for f in faces)


MIXED = [(0, 1, 3), *QUADS[1:], (0, 3, 2)]


@pytest.mark.parametrize("form, order", [("ascii", ""), ("binary_little_endian", "<"), ("binary_big_endian", ">")])
def test_ply(tmp_path, form, order):
    assert np.array_equal(read_cloud(write(tmp_path, "a.ply", ply(form, order))), CUBE)
    for faces in (QUADS, MIXED):
        cloud = read_cloud(write(tmp_path, "b.ply", ply(form, order, faces)), mesh_points=6000)
        assert cloud.shape == (6000, 3) and on_cube(cloud).all()
        # A sixth on each side; 5 standard deviations of that binomial are 145.
        sides = [(np.abs(cloud[:, axis] - side) < 1e-6).sum() for axis in range(3) for side in (0, 1)]
        assert all(abs(count - 1000) < 150 for count in sides)


def on_cube(cloud):
    assert ((cloud > -1e-6) & (cloud < 1 + 1e-6)).all()
    return (np.minimum(np.abs(cloud), np.abs(cloud - 1)) < 1e-6).any(1)


@pytest.mark.parametrize("head", ["OFF\n8 6 12\n", "OFF8 6 0\n", "OFF 8 6 0\n", "# c\nOFF\n# c\n\n8 6\n",
                                  "\n COFF\n8 6 0\n"])
def test_off(tmp_path, head):
    text = head + lines_of(CUBE) + lines_of((4, *f, 255, 0, 0) for f in QUADS)
    path = write(tmp_path, "a.off", text)
    cloud = read_cloud(path)
    assert cloud.shape == (10_000, 3) and on_cube(cloud).all()
    assert np.array_equal(cloud, read_cloud(path))


def test_off_without_faces_is_its_vertices(tmp_path):
    assert np.array_equal(read_cloud(write(tmp_path, "a.off", "OFF\n8 0 0\n" + lines_of(CUBE))), CUBE)


def test_faces_that_are_no_triangles_do_not_count(tmp_path):
    text = "OFF\n5 3 0\n0 0 0\n1 0 0\n0 1 0\n9 9 9\n8 8 8\n1 3\n2 3 4\n3 0 1 2\n"
    cloud = read_cloud(write(tmp_path, "a.off", text))
    assert (cloud[:, 2] == 0).all() and cloud[:, :2].min() >= 0 and cloud[:, :2].sum(1).max() <= 1 + 1e-6


def test_table_stops_after_the_rows_that_are_wanted(tmp_path):
    path = write(tmp_path, "a.txt", "1,2,3\n4,5,6\nbroken")
    table, lines = read_table(path, rows=2)
    assert table.tolist() == [[1, 2, 3], [4, 5, 6]] and lines.tolist() == [1, 2]


def test_inputs_of_a_folder(tmp_path):
    for name in ("b.PLY", "a.txt", ".c.txt", "d.png"):
        write(tmp_path, name, "")
    assert [p.name for p in list_inputs(tmp_path, SUFFIXES, "cloud")] == ["a.txt", "b.PLY"]
    with pytest.raises(DataError, match="no such cloud or folder"):
        list_inputs(tmp_path / "x", SUFFIXES, "cloud")


# -- broken and hostile files ----------------------------------------------------------------------------------------

def npy(header, data=b"", version=b"\x01\x00"):
    header = header.encode()
    return b"\x93NUMPY" + version + struct.pack("<H" if version == b"\x01\x00" else "<I", len(header)) + header + data


def saved(array):
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


PLY_HEAD = ("ply\nformat binary_little_endian 1.0\nelement vertex {}\nproperty float x\nproperty float y\n"
            "property float z\n")

BROKEN = [
    ("a.txt", "", "is empty"), ("a.txt", " \n# none\n", "is empty"), ("a.npy", "", "is empty"),
    ("a.txt", "1 2\n", "line 1: 2 numbers; expected at least x, y and z"),
    ("a.txt", "1 2 3\n\n1 2 3\n4 5\n", "line 4: 2 numbers; expected 3"),
    ("a.txt", "1 2 3\n1 2 3 4\n", "line 2: 4 numbers; expected 3"),
    ("a.txt", "1 2 3\n4 x 6\n", "line 2: 'x' is not a number"),
    ("a.txt", "1 2 3\n4 5 6.0.1\n", "line 2: '6.0.1' is not a number"),
    ("a.txt", "1 2 3\n4 5 0x1f\n", "line 2: '0x1f' is not a number"),
    ("a.txt", "1 2 3\n4 1_0 6\n", "line 2: '1_0' is not a number"),
    ("a.txt", b"1 2 3\n4 5 \xff\xfe\n", "line 2: .* is not a number"),
    ("a.txt", b"1 2 3\n4 5\x00 6\n", "line 2: .* is not a number"),
    ("a.txt", "x,y,z\n1,2,u\n", "line 2: 'u' is not a number"),
    ("a.txt", "1 2 3\n\n4 nan 6\n7 8 inf\n", r"line 3: \(4, nan, 6\) is not a finite place \(2 such points\)"),
    ("a.txt", "1 2 3\n4 5 1e400\n", "line 2: .*is not a finite place"),
    ("a.txt", "1 2 3\n4 5 1e39\n", "line 2: .*is not a finite place"),
    ("a.npy", "something else", "not a NumPy file"),
    ("a.npy", saved(np.zeros((4, 2))), r"holds float64 \(4, 2\); expected numbers \(N, 3"),
    ("a.npy", saved(np.zeros(3)), "expected numbers"), ("a.npy", saved(np.zeros((0, 3))), "is empty"),
    ("a.npy", saved(np.array([{}] * 3, object)), "holds object"), ("a.npy", saved(np.array([["a"] * 3])), "holds <U1"),
    ("a.npy", saved(np.full((2, 3), np.nan, np.float32)), "point 0: .*is not a finite place"),
    ("a.npy", saved(np.zeros((9, 3)))[:-1], "cut off"),
    ("a.npy", npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 3)}\n"), "cut off"),
    ("a.npy", npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 3)}\n"), "holds float32 .-1, 3.; expected"),
    ("a.npy", npy("(" * 9000), "not a NumPy file"), ("a.npy", npy("__import__('os').getcwd()\n"), "not a NumPy file"),
    ("a.npy", npy("", version=b"\x02\x00")[:-4] + b"\xff\xff\xff\xff", "unusual header"),
    ("a.npy", npy("", version=b"\x09\x00"), "not a NumPy file"),
    ("a.off", "PFF\n", "does not begin with OFF"), ("a.off", "OFF\n", "numbers of vertices and faces are missing"),
    ("a.off", "OFF BINARY\n", "does not begin with OFF"), ("a.off", "4OFF\n1 0 0\n", "does not begin with OFF"),
    ("a.off", "OFF\n999999999999 9 0\n0 0 0\n", "line 2: 1e[+]12 vertices and 9 faces announced, 1 lines follow"),
    ("a.off", "OFF\n-1 0 0\n", "line 2: -1 vertices"),
    ("a.off", "OFF\n1.5 0 0\n1 1 1\n1 1 1\n", "line 2: 1.5 vertices"),
    ("a.off", "OFF\nnan 0 0\n", "line 2: nan vertices"), ("a.off", "OFF\n0 0 0\n", "is empty"),
    ("a.off", "OFF\n3 1 0\n0 0 0\n1 0\n0 1 0\n3 0 1 2\n", "line 4: 2 numbers"),
    ("a.off", "OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 3\n", "line 6: a face has the corner 3; expected whole numbers "
                                                            "from 0 to 2"),
    ("a.off", "OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 -1\n", "line 6: a face has the corner -1"),
    ("a.off", "OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n4 0 1 2\n", "line 6: a face of 4 vertices in 4 numbers"),
    ("a.off", "OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n9e99 0 1 2\n", "line 6: a face of 9e[+]99 vertices"),
    ("a.off", "OFF\n3 1 0\n0 0 0\n1 0 0\n2 0 0\n3 0 1 2\n", "the surface has no area"),
    ("a.off", "OFF\n3 1 0\n0 0 0\n1 0 nan\n2 0 0\n3 0 1 2\n", "point 1: .*is not a finite place"),
    ("a.ply", "plx\n", "not a PLY file"), ("a.ply", "ply\nformat ascii 1.0\nelement vertex 1\n", "no end_header"),
    ("a.ply", "ply\nelement vertex 1\nproperty float x\nend_header\n1\n", "no line .format"),
    ("a.ply", "ply\nformat ascii 1.0\nelement vertex x\nend_header\n", "line 3: 'element vertex x' is not a line"),
    ("a.ply", "ply\nformat ascii 1.0\nproperty float x\nend_header\n", "line 3: .*is not a line"),
    ("a.ply", "ply\nformat ascii 1.0\nelement vertex 1\nproperty text x\nend_header\n1\n", "line 4: .*is not a line"),
    ("a.ply", "ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nend_header\n1\n", "expected x, y, z"),
    ("a.ply", "ply\nformat ascii 1.0\nelement vertex 5\n\nend_header\n", "without properties"),
    ("a.ply", "ply\nformat ascii 1.0\nelement face 0\nproperty list uchar int i\nend_header\n", "no element vertex"),
    ("a.ply", "ply\nformat ascii 1.0\nelement vertex 1\nproperty list uchar int x\nproperty int y\nproperty int z\n"
     "end_header\n1 1 1 1\n", "and no list"),
    ("a.ply", PLY_HEAD.format(4_000_000_000) + "end_header\n" + "x" * 99, "4000000000 x vertex of 12 bytes announced, "
                                                                          "but only 99"),
    ("a.ply", PLY_HEAD.format(9) + "end_header\n" + "x" * 99, "9 x vertex of 12 bytes announced, but only 99"),
    ("a.ply", PLY_HEAD.format(0) + "end_header\n", "is empty"),
    ("a.ply", ply("ascii").replace(b"1 7 1 1", b""), "8 x vertex announced, but only 7 lines follow"),
    ("a.ply", PLY_HEAD.format(1).encode() + b"element face 2\nproperty list int int i\nend_header\n" + bytes(12)
     + struct.pack("<ii", 2_000_000_000, 0), "a list of 2000000000 entries"),
    ("a.ply", PLY_HEAD.format(1).encode() + b"element face 2\nproperty list int int i\nend_header\n" + bytes(12)
     + struct.pack("<ii", -5, 0), "a list of -5 entries"),
    ("a.ply", PLY_HEAD.format(1).encode() + b"element face 1\nproperty list uchar int i\nend_header\n" + bytes(12)
     + struct.pack("<Biii", 3, 0, 0, 1), "a face has the corner 1"),
]


@pytest.mark.parametrize("name, content, said", BROKEN, ids=[f"{k}-{case[0]}" for k, case in enumerate(BROKEN)])
def test_broken_files_are_named(tmp_path, name, content, said):
    path = write(tmp_path, name, content)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=said) as caught:
            read_cloud(path)
        assert tracemalloc.get_traced_memory()[1] < 20e6  # what a header announces is not allocated
    finally:
        tracemalloc.stop()
    assert str(caught.value).startswith(str(path))


def test_what_is_not_a_file(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        read_cloud(tmp_path / "x.txt")
    with pytest.raises(DataError, match="is a folder; expected a regular file"):
        read_cloud(tmp_path)


def test_limits(tmp_path, monkeypatch):
    path = write(tmp_path, "a.txt", "1 2 3\n" * 50)
    monkeypatch.setattr(text, "MAX_POINTS", 49)
    with pytest.raises(DataError, match="50 points, over the limit of 49"):
        read_cloud(path)
    monkeypatch.setattr(numbers, "MAX_BYTES", 599)
    with pytest.raises(DataError, match="300 bytes of text, over the limit of 299"):
        read_cloud(path)
    monkeypatch.setattr(ply_binary, "MAX_MIXED", 5)
    with pytest.raises(DataError, match="7 x face with lists of different lengths, over the limit of 5"):
        read_cloud(write(tmp_path, "b.ply", ply("binary_little_endian", "<", MIXED)))


@pytest.mark.parametrize("name, content", [
    ("a.ply", ply("ascii", "", MIXED)), ("a.ply", ply("binary_big_endian", ">", MIXED)),
    ("a.off", b"OFF\n8 6 0\n" + (lines_of(CUBE) + lines_of((4, *f) for f in QUADS)).encode()),
    ("a.npy", saved(POINTS)), ("a.txt", lines_of(POINTS).encode()),
])
def test_any_damage_is_a_data_error_or_a_sound_cloud(tmp_path, name, content):
    random = rng(3)
    for trial in range(250):
        data = bytearray(content)
        if trial % 2:
            del data[random.integers(len(data)):]
        for _ in range(random.integers(0 if trial % 2 else 1, 4)):
            if data:
                data[random.integers(len(data))] = random.integers(256)
        path = write(tmp_path, name, bytes(data))
        try:
            cloud = read_cloud(path, mesh_points=50)
        except DataError as error:
            assert str(error).startswith(str(path))
        else:
            assert cloud.ndim == 2 and cloud.shape[1] == 3 and len(cloud) and np.isfinite(cloud).all()
