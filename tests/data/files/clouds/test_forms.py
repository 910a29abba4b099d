"""The forms of clouds that other programs write, right values in each; what is not read is named."""
import struct

import numpy as np
import pytest

from jea.data import DataError
from jea.data.files.clouds.reading import SUFFIXES, UNREAD, read_cloud
from jea.data.files.clouds.text import read_table

POINTS = np.array([[0, 0, 0], [1, 0.5, -2], [0.25, -7.25, 3]])
SQUARE = [(0, 0, 0), (2, 0, 0), (2, 2, 0), (0, 2, 0)]


def write(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def on_square(cloud):
    """Uniform over the square, both halves of it."""
    assert len(cloud) == 10_000 and (cloud[:, 2] == 0).all() and cloud.min() >= 0 and cloud.max() <= 2
    counts = np.histogram2d(cloud[:, 0], cloud[:, 1], bins=2)[0]
    return counts.min() > 2300


# -- text ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("text", [
    "0,5 1,25 2,75\n", "1 2 3\n0,5 1,25 2,75\n", "0,5;1,25;2,75\n", "0,5\t1,25\t2,75\n", "-0,5 +1,25 2,75e-1\n",
    "1 2 3,5\n", "  1,5 2 3\n", "# c\n\n1 2,5 3\n", "1,5 2,5 3,5 255 0 0\n", "1,5, 2,5, 3,5\n", "1;2;3,5;\n",
    "1,0;2,0;3,0\r\n",
    "x;y;z\n0,5;1,25;2,75\n", "2\n0,5 1,25 2,75\n1,5 1,5 1,5\n",
])
@pytest.mark.parametrize("read", [read_cloud, read_table])
def test_a_comma_that_can_be_a_decimal_sign(tmp_path, text, read):
    if read is read_table and text[0] in "x2":
        pytest.skip("tables of data sets have neither names nor counts")
    with pytest.raises(DataError, match=r"line \d: '.*,.*' can be one number with a decimal comma or two.*decimal "
                                        r"points"):
        read(write(tmp_path, "a.txt", text))


def test_the_line_of_the_comma_is_named(tmp_path):
    with pytest.raises(DataError, match=r"line 3: '0,5' .* such as 0\.5"):
        read_cloud(write(tmp_path, "a.txt", "1 2 3\n4 5 6\n0,5 1,25 2,75\n"))


@pytest.mark.parametrize("text", ["1,2,3\n4,5,6\n", "1, 2, 3\n4, 5, 6\n", "1 ,2 ,3\n4 ,5 ,6\n", "1;2;3\n4;5;6",
                                  "1,2,3 \n 4,5,6\n",
                                  "1.0,2.0,3.0\n4,5,6\n", "1,2,3\t# 1,5\n4,5,6\n", "1\t2\t3\n4\t5\t6",
                                  "1, 2, 3,\n4, 5, 6,\n"])
def test_commas_between_numbers_stay(tmp_path, text):
    assert read_cloud(write(tmp_path, "a.csv", text)).tolist() == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize("text", [
    "\ufeff1 2 3\n4 5 6\n", "1 2 3\r4 5 6\r", "1 2 3\r\n4 5 6\r\n", "1 2 3\n4 5 6\r", "\ufeff# x\r1 2 3\r4 5 6",
    "x,y,z\n1,2,3\n4,5,6\n", "X Y Z\n1 2 3\n4 5 6\n", '"x","y","z"\n1,2,3\n4,5,6',
    "//X Y Z R G B\n1 2 3 9 9 9\n4 5 6 9 9 9\n",
    "z,y,x,intensity\n3,2,1,7\n6,5,4,7\n", "id;x;y;z\n0;1;2;3\n1;4;5;6\n", "\ufeffx\ty\tz\n1\t2\t3\n4\t5\t6\n",
    "Points:0,Points:1,Points:2\n1,2,3\n4,5,6\n", "\n\nx y z\n1 2 3\n\n4 5 6\n",
    "2\n1 2 3\n4 5 6\n", "2\r\n1 2 3 -1000 12 13 14\r\n4 5 6 -1000 12 13 14\r\n", "1\n1 2 3\n1\n4 5 6\n",
], ids=range(17))
def test_what_programs_write(tmp_path, text):
    assert read_cloud(write(tmp_path, "a.pts", text)).tolist() == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize("text, said", [
    ("3\n1 2 3\n4 5 6\n", "line 1: 3; expected the number of the points that follow, which are 2"),
    ("1\n1 2 3\n4 5 6\n", "line 3: 4; expected the number"), ("2.5\n1 2 3\n4 5 6\n", "line 1: 2.5; expected"),
    ("-1\n1 2 3\n", "line 1: -1; expected"), ("0\n1 2 3\n", "line 1: 0; expected"),
    ("nan\n1 2 3\n", "line 1: nan; expected"),
    ("2\n1 2 3\n4 5 6 7\n", "line 3: 4 numbers; expected 3"), ("1\n1 2\n", "line 2: 2 numbers; expected at least"),
    ("a,b,c\n1,2,3\n", "line 1: the columns are named a, b, c; expected x, y and z"),
    ("x,y\n1,2\n", "line 1: 'x' is not a number"), ("x,y,z\n", "empty"), ("x,y,z\n1,2,3\n4,5\n", "line 3: 2 numbers"),
    (b"\xff\xfe1\x00 \x002\x00", "UTF-16; save it as UTF-8"),
    (b"LASF\x00\x00\x00\x00\x01\x02\x00\x00", "not a text file"),
    ("<html><body>not found</body></html>", "line 1: .*is not a number"),
])
def test_text_that_is_no_cloud(tmp_path, text, said):
    with pytest.raises(DataError, match=said):
        read_cloud(write(tmp_path, "a.pts", text))


# -- .npy ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16])
@pytest.mark.parametrize("rows", [3, 6])
def test_npy_with_a_row_per_coordinate(tmp_path, dtype, rows):
    points = np.arange(40 * rows).reshape(40, rows).astype(dtype)
    np.save(tmp_path / "a.npy", points.T)
    assert np.array_equal(read_cloud(tmp_path / "a.npy"), points[:, :3])
    np.save(tmp_path / "b.npy", np.ones((3, 3)) * [1, 2, 3])  # a point per row where both can be meant
    assert read_cloud(tmp_path / "b.npy")[0].tolist() == [1, 2, 3]


@pytest.mark.parametrize("shape", ["(True, 3)", "(3, True)", "(2.0, 3)", "('a', 3)", "(2, 3, 1)", "(2, 100)", "()",
                                   "None",
                                   "(1e9, 3)", "(2, -3)", f"({'9' * 4000}, 3)"])
def test_odd_shapes_of_npy(tmp_path, shape):
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    path = write(tmp_path, "a.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(24))
    with pytest.raises(DataError, match="holds float32|not a NumPy file|cut off"):
        read_cloud(path)


# -- .ply ------------------------------------------------------------------------------------------------------------

VERTEX = "element vertex {}\nproperty float x\nproperty float y\nproperty float z\n"
FACE = "element face {}\nproperty list uchar int vertex_indices\n"


def ply(form, *parts):
    """Parts: (header, [row, ...]); a row is [(struct code, number), ...]."""
    header = f"ply\nformat {form} 1.0\n" + "".join(head.format(len(rows)) for head, rows in parts) + "end_header\n"
    rows = [row for _, rows in parts for row in rows]
    if form == "ascii":
        return header.encode() + "".join(" ".join(f"{v:g}" for _, v in row) + "\n" for row in rows).encode()
    order = "<" if "little" in form else ">"
    return header.encode() + b"".join(struct.pack(order + code, v) for row in rows for code, v in row)


CORNERS = [[("f", v) for v in corner] for corner in SQUARE]
TWO = [[("B", 3), ("i", 0), ("i", 1), ("i", 2)], [("B", 3), ("i", 0), ("i", 2), ("i", 3)]]
FORMS = ["ascii", "binary_little_endian", "binary_big_endian"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("faces", [
    TWO, [[("B", 4), *(("i", k) for k in range(4))]],
    [*TWO, [("B", 0)], [("B", 2), ("i", 0), ("i", 1)]],  # lists of several lengths
], ids=["triangles", "quad", "mixed"])
def test_ply_with_faces_before_the_vertices(tmp_path, form, faces):
    for name, parts in (("a.ply", ((FACE, faces), (VERTEX, CORNERS))), ("b.ply", ((VERTEX, CORNERS), (FACE, faces)))):
        assert on_square(read_cloud(write(tmp_path, name, ply(form, *parts))))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("extra", ["before", "after", "list before", "list after"])
def test_ply_with_more_than_the_indices_in_a_face(tmp_path, form, extra):
    scalar, texture = [("B", 7)], [("B", 2), ("f", 0.5), ("f", 0.25)]
    prop = "property uchar flags\n" if "list" not in extra else "property list uchar float texcoord\n"
    more = scalar if "list" not in extra else texture
    indices = "property list uchar int vertex_index\n"
    head = "element face {}\n" + (prop + indices if "before" in extra else indices + prop)
    faces = [[*more, *face] if "before" in extra else [*face, *more] for face in TWO]
    mixed = [*faces, [*more, ("B", 0)] if "before" in extra else [("B", 0), *more]]
    for rows in (faces, mixed):
        assert on_square(read_cloud(write(tmp_path, "a.ply", ply(form, (VERTEX, CORNERS), (head, rows)))))


@pytest.mark.parametrize("form", FORMS)
def test_ply_strips_and_other_elements(tmp_path, form, caplog):
    strips = ("element tristrips {}\nproperty list int int vertex_indices\n",
              [[("i", 8), *(("i", v) for v in (0, 1, 2, -1, 0, 2, 3, -1))]])
    camera = ("element camera {}\nproperty float focus\n", [[("f", 1)]])
    edges = ("element edge {}\nproperty list uchar int vertex_indices\n", [[("B", 2), ("i", 0), ("i", 1)], [("B", 0)]])
    cloud = read_cloud(write(tmp_path, "a.ply", ply(form, camera, edges, (VERTEX, CORNERS), strips)))
    assert on_square(cloud)
    assert "only vertices and faces are read, not camera (1), edge (2)" in caplog.text


def test_ply_faces_without_a_name(tmp_path):
    head = "element face {}\nproperty list uchar int a\nproperty list uchar int b\n"
    rows = [[*face, ("B", 0)] for face in TWO]
    with pytest.raises(DataError, match="element face has the properties a, b; expected a list vertex_indices"):
        read_cloud(write(tmp_path, "a.ply", ply("ascii", (VERTEX, CORNERS), (head, rows))))
    head = head.replace(" a\n", " corners\n").replace("property list uchar int b\n", "")
    assert on_square(read_cloud(write(tmp_path, "a.ply", ply("binary_big_endian", (VERTEX, CORNERS), (head, TWO)))))


@pytest.mark.parametrize("index", [4, -1, float("nan"), 0.5, 1e30])
@pytest.mark.parametrize("form", FORMS)
def test_ply_indices_that_are_none(tmp_path, form, index):
    head = FACE.replace("int vertex", "double vertex")
    rows = [[("B", 3), ("d", 0), ("d", 1), ("d", index)]]
    with pytest.raises(DataError, match="a face has the corner .*; expected whole numbers from 0 to 3"):
        read_cloud(write(tmp_path, "a.ply", ply(form, (VERTEX, CORNERS), (head, rows))))


# -- .obj, .stl, .off, .pcd ------------------------------------------------------------------------------------------

V = "".join(f"v {x} {y} {z}\n" for x, y, z in SQUARE)


@pytest.mark.parametrize("text", [
    V + "f 1 2 3\nf 1 3 4\n", V + "f 1 2 3 4\n", V + "f -4 -3 -2 -1\n", V + "f 1/1 2/2 3/3 4/4\n",
    V + "f 1/1/1 2/2/2 3//3 4//\n", "# c\nmtllib a.mtl\no x\n" + V + "vt 0 0\nvn 0 0 1\ns off\nusemtl m\nf 1 2 3 \\\n "
                                                                     "4\n",
    V.replace("\n", "\r\n") + "f 1 2 3 4\r\n", V + "v 9 9 0 1 0 0\nf -5 -4 -3 -2\n",
    "g a\n" + V.replace("v ", "  v\t") + "f  1 2  3\t4",
    V + "f 1 2\nf 1 2 3 4\nl 1 2\np 1\n",
], ids=range(10))
def test_obj(tmp_path, text):
    assert on_square(read_cloud(write(tmp_path, "a.obj", text)))


def test_obj_without_faces_is_its_vertices(tmp_path):
    assert read_cloud(write(tmp_path, "a.obj",
                            "v 0 0 0 1 1 1\nv 1 .5 -2 1 1 1\nv 0.25 -7.25 3 0 0 0")).tolist() == POINTS.tolist()


@pytest.mark.parametrize("text, said", [
    (V + "f 1 2 5\n", "line 5: a face has the corner 4; expected whole numbers from 0 to 3"),
    (V + "f 1 2 0\n", "line 5: a face has the corner -1"), (V + "\nf 1 2 -5\n", "line 6: a face has the corner -1"),
    ("f 1 2 3\n", "has no line \"v x y z\""), ("v 1 2\n", "line 1: 2 numbers; expected at least 3"),
    (V + "f 1 2 a\n", "line 5: 'a' is not a number"), ("# c\nv 1 x 2\n", "line 2: 'x' is not a number"),
    (V + "f 1 2 1.5\n", "line 5: a face has the corner 0.5"), ("v 0 0 0\nv 1 nan 0\n", "point 1: .*not a finite place"),
])
def test_broken_obj(tmp_path, text, said):
    with pytest.raises(DataError, match=said):
        read_cloud(write(tmp_path, "a.obj", text))


def binary_stl(triangles, head=b"made by hand"):
    body = b"".join(struct.pack("<12fH", 0, 0, 1, *np.ravel(t), 0) for t in triangles)
    return head.ljust(80, b"\0") + struct.pack("<I", len(triangles)) + body


def text_stl(triangles, name="square"):
    facets = "".join(" facet normal 0 0 1\n  outer loop\n" + "".join(f"   vertex {x} {y:e} {z}\n" for x, y, z in t)
                     + "  endloop\n endfacet\n" for t in triangles)
    return f"solid {name}\n{facets}endsolid {name}\n"


TRIANGLES = [[SQUARE[0], SQUARE[1], SQUARE[2]], [SQUARE[0], SQUARE[2], SQUARE[3]]]


@pytest.mark.parametrize("content", [
    binary_stl(TRIANGLES), binary_stl(TRIANGLES, b"solid but binary"), text_stl(TRIANGLES), text_stl(TRIANGLES).upper(),
    text_stl(TRIANGLES).replace("\n", "\r\n"), "\n  " + text_stl(TRIANGLES, "with a name"),
])
def test_stl(tmp_path, content):
    assert on_square(read_cloud(write(tmp_path, "a.stl", content)))


@pytest.mark.parametrize("content, said", [
    (binary_stl(TRIANGLES)[:-1], "183 bytes are not those of 2 facets"), (binary_stl([]), "not an STL file"),
    (b"x" * 50, "not an STL file"), ("solid a\nendsolid a\n", "0 lines \"vertex x y z\"; expected three"),
    (text_stl(TRIANGLES).replace("   vertex 0 0", "   vortex 0 0", 1), "5 lines"),
    ("solid\nvertex 1 2\nvertex 1 2\nvertex 1 2", "2 numbers"),
    (text_stl(TRIANGLES).replace("vertex 2 0", "vertex a 0", 1), "line 5: 'a' is not a number"),
    (binary_stl([[(0, 0, 0)] * 3]), "the surface has no area"),
    (binary_stl([[(0, 0, np.nan)] * 3]), "not a finite place"),
])
def test_broken_stl(tmp_path, content, said):
    with pytest.raises(DataError, match=said):
        read_cloud(write(tmp_path, "a.stl", content))


def pcd(data, fields="x y z", size="4 4 4", kind="F F F", count="1 1 1", points=3, extra=""):
    return (f"# .PCD v0.7\nVERSION 0.7\nFIELDS {fields}\nSIZE {size}\nTYPE {kind}\nCOUNT {count}\nWIDTH "
            f"{points}\nHEIGHT 1\n"
            f"VIEWPOINT 0 0 0 1 0 0 0\nPOINTS {points}\nDATA {data}\n{extra}").encode()


ROWS = "".join(f"{x} {y} {z}\n" for x, y, z in POINTS)
BINARY = {"fields": "i x _ y z", "size": "2 4 1 8 4", "kind": "I F U F F", "count": "1 1 3 1 1"}
PACKED = b"".join(struct.pack("<hf3xdf", 9, x, y, z) for x, y, z in POINTS)


@pytest.mark.parametrize("content", [
    pcd("ascii", extra=ROWS), pcd("ascii", extra=ROWS.replace("\n", "\r\n")), pcd("binary", extra="").rstrip() + b"\n"
    + POINTS.astype("<f4").tobytes(), pcd("binary", **BINARY) + PACKED,
    pcd("ascii", "rgb z y x", "4 4 4 4", "U F F F", "2 1 1 1",
        extra="".join(f"1 2 {z} {y} {x}\n" for x, y, z in POINTS)),
    pcd("binary", **BINARY).replace(b"POINTS 3\n", b"") + PACKED + b"more",
], ids=range(6))
def test_pcd(tmp_path, content):
    assert np.array_equal(read_cloud(write(tmp_path, "a.pcd", content)), POINTS)


@pytest.mark.parametrize("content, said", [
    (pcd("ascii", extra=ROWS[:12]), "3 points announced, 1 lines follow"),
    (pcd("binary") + bytes(35), "35 bytes follow: cut off"),
    (pcd("binary_compressed") + bytes(99), "DATA binary_compressed; ascii and binary are read"),
    (b"x", "not a PCD file"),
    (pcd("ascii", "x y", "4 4", "F F", "1 1"), "has no field z; it has x, y"),
    (pcd("ascii", size="4 4"), "do not fit together"),
    (pcd("binary", size="4 4 9"), "do not fit together"), (pcd("binary", kind="F F X"), "do not fit together"),
    (pcd("binary", points=-3), "do not fit together"), (pcd("binary", points=10 ** 15) + bytes(99), "cut off"),
    (pcd("binary", count="1 1 0"), "do not fit together"),
    (pcd("binary", count="1 1 999999999"), "do not fit together"),
    (pcd("ascii", "x x y z"[:5], extra=ROWS), "do not fit together"),
    (pcd("binary", points="9" * 5000), "do not fit together"),
    (pcd("ascii", extra="1 2 3\n1 2\n1 2 3\n"), "2 numbers"), (pcd("binary") + b"\xff" * 36, "not a finite place"),
])
def test_broken_pcd(tmp_path, content, said):
    with pytest.raises(DataError, match=said):
        read_cloud(write(tmp_path, "a.pcd", content))


@pytest.mark.parametrize("head, more", [("COFF", " 1 0 0 1"), ("NOFF", " 0 0 1"), ("CNOFF", " 1 0 0 1 0 0 1"),
                                        ("STOFF", " 0.5 0.5")])
def test_off_with_more_than_places(tmp_path, head, more):
    text = f"{head}\n4 1 0\n" + "".join(f"{x} {y} {z}{more}\n" for x, y, z in SQUARE) + "4 0 1 2 3 255 0 0\n"
    assert on_square(read_cloud(write(tmp_path, "a.off", text)))


# -- what is not read ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("suffix", UNREAD)
def test_other_forms_are_named(tmp_path, suffix):
    with pytest.raises(DataError, match=rf"a {UNREAD[suffix]} file, which is not read; convert it to one of \.txt, "
                                        rf".*\.obj"):
        read_cloud(write(tmp_path, f"a{suffix.upper()}", b"LASF" + bytes(400)))
    assert suffix not in SUFFIXES


# -- damage ----------------------------------------------------------------------------------------------------------

SOUND = {
    "a.obj": V + "f 1/1 2/2 3/3\nf 1 3 4\nf -4 -3 -2\n", "b.stl": text_stl(TRIANGLES), "c.stl": binary_stl(TRIANGLES),
    "d.pcd": pcd("ascii", extra=ROWS), "e.pcd": pcd("binary", **BINARY) + PACKED, "f.pts": "2\n1 2 3\n4 5 6\n",
    "g.csv": "x,y,z\n1,2,3\n4,5,6\n", "h.txt": "\ufeff1 2 3\r4.5 5 6\r",
    "i.ply": ply("ascii", (FACE, [*TWO, [("B", 0)]]), (VERTEX, CORNERS)),
    "j.ply": ply("binary_big_endian", (FACE, [*TWO, [("B", 0)]]), (VERTEX, CORNERS)),
    "k.ply": ply("binary_little_endian", (VERTEX, CORNERS), ("element tristrips {}\nproperty list int int "
                                                             "vertex_indices\n",
                                                             [[("i", 4), *(("i", v) for v in (0, 1, 2, -1))]])),
}


@pytest.mark.parametrize("name", SOUND)
def test_any_damage_is_a_data_error_or_a_sound_cloud(tmp_path, name):
    content, random = SOUND[name], np.random.default_rng(5)
    content = content if isinstance(content, bytes) else content.encode()
    path = tmp_path / name
    for trial in range(400):
        data = bytearray(content)
        if trial % 3 == 0:
            del data[random.integers(len(data)):]
        for _ in range(random.integers(1, 5)):
            if data:
                place = int(random.integers(len(data)))
                data[place:place + int(random.integers(0, 3))] = random.choice(
                    [b"9", b"-", b" ", b"\n", b",", b"/", b"e", b"\0", b"\xff", b"999999999", b"nan"])
        path.write_bytes(bytes(data))
        try:
            cloud = read_cloud(path, mesh_points=20)
        except DataError as error:
            assert str(error).startswith(str(path))
        else:
            assert cloud.ndim == 2 and cloud.shape[1] == 3 and len(cloud) and np.isfinite(cloud).all()
