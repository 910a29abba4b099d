"""COCO with VOC's labels: polygons, run lengths, broken annotations."""
import json
import pickle
import time
import tracemalloc

import numpy as np
import pytest
from segmentation_trees import save

from jea.data import COCO, DataError
from jea.data.segmentation import coco as coco_module
from jea.data.segmentation import outlines
from jea.data.segmentation.voc import VOC_CLASSES


def rng(*seed):
    return np.random.Generator(np.random.PCG64(seed))


# -- COCO -----------------------------------------------------------------------------------------------------------

def inside(corners, x, y):
    """Even-odd rule, one point, by definition."""
    result = False
    for (ax, ay), (bx, by) in zip(corners, [*corners[1:], corners[0]]):
        if (ay <= y) != (by <= y) and x > ax + (y - ay) * (bx - ax) / (by - ay):
            result = not result
    return result


@pytest.mark.parametrize("seed", range(6))
def test_polygons_fill_the_pixels_whose_centres_are_inside(seed):
    corners = rng(1, seed).random((7, 2)) * (30, 20) - (4, 4)  # parts lie outside of the picture
    mask = outlines.fill_polygon(corners, 14, 23)
    wanted = [[inside(corners.tolist(), x + 0.5, y + 0.5) for x in range(23)] for y in range(14)]
    assert np.array_equal(mask, wanted) and mask.any()


def test_polygon_by_hand():
    # The rectangle of columns 1 to 3 and rows 2 to 3, and the same moved by less than half a pixel
    for shift in (0, 0.4, -0.4):
        box = np.array([[1, 2], [4, 2], [4, 4], [1, 4]]) + shift
        wanted = np.zeros((6, 7), bool)
        wanted[2:4, 1:4] = True
        assert np.array_equal(outlines.fill_polygon(box, 6, 7), wanted)


def test_run_lengths():
    # column by column: 2 off, 3 on, 4 off in a picture of 3 x 3
    wanted = np.array([[0, 1, 0], [0, 1, 0], [1, 0, 0]], bool)
    assert np.array_equal(outlines.decode_runs([2, 3, 4], 3, 3), wanted)
    assert outlines.decode_runs([0, 6], 2, 3).all()
    # COCO's compressed text: plain numbers, then differences to the number two before. 48 + value, 32 = more, 16 = sign
    assert outlines.decompress_counts("234") == [2, 3, 4]
    assert outlines.decompress_counts("2341") == [2, 3, 4, 3 + 1]
    assert outlines.decompress_counts("234O") == [2, 3, 4, 3 - 1]
    assert outlines.decompress_counts("PP1") == [512 * 2]  # 0 | more, 0 | more, 1: 1 << 10
    assert outlines.decompress_counts(chr(48 + 32 + 17) + "1") == [17 + 32]


@pytest.fixture
def coco(tmp_path):
    """Two pictures in the published layout; one more has no class of VOC, and one too little of them."""
    def picture(id, height=8, width=10):
        save(tmp_path / f"train2017/{id:012d}.jpg", np.full((height, width, 3), id, np.uint8))
        return {"id": id, "file_name": f"{id:012d}.jpg", "height": height, "width": width, "license": 1}

    def annotation(id, image, category, segmentation, crowd=0, area=20.0):
        return {"id": id, "image_id": image, "category_id": category, "segmentation": segmentation, "iscrowd": crowd,
                "area": area, "bbox": [0, 0, 1, 1]}

    def box(x0, y0, x1, y1):
        return [x0, y0, x1, y0, x1, y1, x0, y1]
    content = {
        "info": {}, "licenses": [],
        "images": [picture(9), picture(25), picture(30), picture(42)],
        "categories": [{"id": 1, "name": "person", "supercategory": "person"}, {"id": 72, "name": "tv"},
                       {"id": 13, "name": "stop sign"}, {"id": 18, "name": "dog"}],
        "annotations": [
            annotation(1, 25, 1, [box(0, 0, 4, 4), box(6, 0, 8, 1)]),  # one person in two parts
            annotation(2, 25, 18, [box(2, 2, 6, 6)]),  # overlaps the person
            annotation(3, 25, 13, [box(0, 0, 10, 8)]),  # no class of VOC
            annotation(4, 9, 72, {"size": [8, 10], "counts": [8, 16, 56]}, crowd=1),
            annotation(5, 30, 13, [box(0, 0, 4, 4)]),
            annotation(6, 42, 1, [box(0, 0, 1, 1)], area=1.0),
        ]}
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/instances_train2017.json").write_text(json.dumps(content))
    return tmp_path


def rewrite(root, change):
    path = root / "annotations/instances_train2017.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_coco_becomes_voc(coco):
    data = COCO(root=coco, min_pixels=10)
    assert data.class_names == VOC_CLASSES and data.num_classes == 21
    assert data.ids == ["000000000009", "000000000025"]
    crowd = np.zeros((8, 10), int)
    crowd[:, 1:3] = 20  # tvmonitor: columns 1 and 2
    assert np.array_equal(data.test_sample(0)["label"], crowd)
    people = np.zeros((8, 10), int)
    people[0:4, 0:4] = 15  # person
    people[0, 6:8] = 15
    people[2:6, 2:6] = 12  # dog
    people[2:4, 2:4] = 255  # both
    assert np.array_equal(data.test_sample(1)["label"], people)
    assert COCO(root=coco, min_pixels=0).ids[-1] == "000000000042"
    copy = pickle.loads(pickle.dumps(data))  # as the workers get it
    assert np.array_equal(copy.test_sample(1)["label"], people)


def test_coco_category_ids():
    # VOC's classes in COCO, from the published list of COCO's 80 categories
    assert dict(zip(coco_module.COCO_NAMES, coco_module.COCO_IDS)) == {
        "person": 1, "bicycle": 2, "car": 3, "motorcycle": 4, "airplane": 5, "bus": 6, "train": 7, "boat": 9,
        "bird": 16, "cat": 17, "dog": 18, "horse": 19, "sheep": 20, "cow": 21, "bottle": 44, "chair": 62, "couch": 63,
        "potted plant": 64, "dining table": 67, "tv": 72}
    pairs = dict(zip(VOC_CLASSES[1:], coco_module.COCO_NAMES))
    same = {"bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "dog", "horse", "person", "sheep",
            "train"}
    assert all(pairs[name] == name for name in same)
    assert {k: v for k, v in pairs.items() if k not in same} == {
        "aeroplane": "airplane", "diningtable": "dining table", "motorbike": "motorcycle",
        "pottedplant": "potted plant", "sofa": "couch", "tvmonitor": "tv"}


def test_coco_stuff(coco):
    stored = np.zeros((8, 10), np.uint8)
    stored[0], stored[1], stored[2], stored[3] = 0, 71, 255, 181  # person, tv, unlabelled, the last stuff class
    stored[4:] = 12  # stop sign
    for id in (9, 25, 30, 42):
        save(coco / f"stuffthingmaps/train2017/{id:012d}.png", stored)
    label = COCO(root=coco, labels="stuffthingmaps").test_sample(3)["label"]
    assert [sorted(set(row)) for row in label[:5].tolist()] == [[15], [20], [255], [0], [0]]


@pytest.mark.parametrize("change, said", [
    (lambda c: c["categories"].append({"id": 16, "name": "cat"}), "category 16 is 'cat', in COCO it is 'bird'"),
    (lambda c: c.pop("annotations"), "not COCO's instances file"),
    (lambda c: c["annotations"][0]["segmentation"].append([1, 2, 3]), "annotation 1: a polygon of 3 numbers"),
    (lambda c: c["annotations"][3]["segmentation"].update(counts=[8, 16, 55]), "annotation 4: run lengths of 79 pix"),
    (lambda c: c["annotations"][0].update(image_id=7), "annotation 1 is of picture 7, which is not in the list"),
    (lambda c: c["images"][1].update(file_name="x.jpg"), "x.jpg: picture does not exist"),
])
def test_coco_faults(coco, change, said):
    rewrite(coco, change)
    with pytest.raises(DataError, match=said):
        COCO(root=coco, min_pixels=0)


def test_coco_label_of_another_size(coco):
    save(coco / "train2017/000000000009.jpg", np.zeros((8, 9, 3), np.uint8))
    with pytest.raises(DataError, match="label is 10 x 8, its picture .*000000000009.jpg is 9 x 8"):
        COCO(root=coco, min_pixels=10).test_sample(0)


def test_an_outline_in_its_box_is_the_outline_in_the_picture():
    random = np.random.default_rng(3)
    for _ in range(60):
        corners = (random.random((int(random.integers(3, 9)), 2)) * (40, 30) - 8).astype(np.float32)
        whole, box = outlines.fill_polygon(corners, 14, 23), outlines.box_of(corners, 14, 23)
        again = np.zeros((14, 23), bool)
        again[box] = outlines.fill_polygon(corners, 14, 23, box)
        assert np.array_equal(whole, again)


def test_many_crossings_in_pieces(monkeypatch):
    corners = np.random.default_rng(0).random((50, 2)).astype(np.float32) * 20
    whole = outlines.fill_polygon(corners, 20, 20)
    monkeypatch.setattr(outlines, "_CROSSINGS", 7)
    assert np.array_equal(outlines.fill_polygon(corners, 20, 20), whole) and whole.any()


def test_run_lengths_keep_all_their_digits():
    drawn = outlines.Outlines([[(3, True, [16777217, 1]), (2, False, [0, 0, 4, 0, 4, 1])]], [(2, 8388609)])
    label = drawn.draw(0)
    assert label[1, -1] == 3 and (label == 3).sum() == 1


ODD = [None, True, "a", "\0", -1, 0, 1.5, 1e400, 10 ** 400, [], {}, [[]], {"a": 1}, "9" * 5000, [1, 2], "../../x",
       10 ** 9]


@pytest.mark.parametrize("place", ["categories", "images", "annotations", "segmentation", "polygon", "runs"])
@pytest.mark.parametrize("value", range(len(ODD)))
def test_odd_values_are_told(coco, place, value):
    """Every field of every object, missing and with each odd value: a DataError, or a data set that can be read."""
    value, path = ODD[value], coco / "annotations/instances_train2017.json"
    sound = path.read_text()

    def targets(content):
        if place in ("categories", "images", "annotations"):
            yield content, place
            for entry in content[place][:2]:
                yield from ((entry, key) for key in list(entry))
            yield content[place], 0
        elif place == "segmentation":
            yield from ((entry, "segmentation") for entry in content["annotations"])
        elif place == "polygon":
            yield content["annotations"][0]["segmentation"], 0
            yield content["annotations"][0]["segmentation"][0], 1
        else:
            runs = content["annotations"][3]["segmentation"]
            yield from ((runs, key) for key in ("size", "counts"))
            yield runs["counts"], 1
            yield runs["size"], 0
    refused = 0
    for number in range(len(list(targets(json.loads(sound))))):
        for drop in (False, True):
            content = json.loads(sound)
            container, key = list(targets(content))[number]
            if drop:
                del container[key]
            else:
                container[key] = value
            path.write_text(json.dumps(content))
            try:
                data = COCO(root=coco, min_pixels=0)
                for k in range(len(data)):
                    data.test_sample(k)
            except DataError as error:
                refused += 1
                assert len(str(error)) < 1000 and "\0" not in str(error)
    assert refused > 0 or place == "segmentation"


@pytest.mark.parametrize("text, said", [
    ("", "empty"), ("[1]", "\"categories\" is not a list"), ("[" * 100_000,
                                                             "not COCO's instances file: RecursionError"),
    ("{", "not COCO's"), ("9" * 5000, "not COCO's"), ('{"categories": [], "images": [], "annotations": {}}',
                                                      "annotations"),
    ("\xff", "not COCO's"), ("null", "categories"),
])
def test_files_that_are_none(coco, text, said):
    (coco / "annotations/instances_train2017.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=said):
        COCO(root=coco)


def test_hostile_sizes_and_runs_are_refused_at_once(coco):
    def image(content, **change):
        content["images"][1].update(change)

    def runs(content, counts):
        content["annotations"][3]["segmentation"].update(counts=counts)
    for change, said in (
            (lambda c: image(c, height=1_000_000),
             "picture 25 has the size '.1000000, 10.'; expected height and width"),
            (lambda c: image(c, height=8192, width=8193), "at most 67108864 together"),
            (lambda c: runs(c, "o" * 1_000_000), "annotation 4: run lengths with 'o', or of more than"),
            (lambda c: runs(c, [10 ** 300]), "annotation 4: run lengths of 1000"),
            (lambda c: c["annotations"][0].update(segmentation=[[0, 0, 8e9, 0, 1, 1]]), "a corner beyond 1e.06 pixels"),
            (lambda c: c["annotations"][0].update(segmentation=[[0, float("nan"), 8, 0, 1, 1]]), "a corner beyond")):
        content = json.loads((coco / "annotations/instances_train2017.json").read_text())
        change(content)
        other = coco / "annotations/instances_val2017.json"
        other.write_text(json.dumps(content))
        (coco / "val2017").mkdir(exist_ok=True)
        tracemalloc.start()
        started = time.process_time()
        with pytest.raises(DataError, match=said):
            COCO(root=coco, split="val", min_pixels=0)
        assert time.process_time() - started < 5 and tracemalloc.get_traced_memory()[1] < 60e6
        tracemalloc.stop()


def test_outlines_that_cover_a_picture_too_often(coco, monkeypatch):
    monkeypatch.setattr(coco_module, "MAX_COVER", 20)
    with pytest.raises(DataError, match="the 3 outlines of picture 25 cover 87 pixels together, over the limit of 20"):
        COCO(root=coco, min_pixels=0)
