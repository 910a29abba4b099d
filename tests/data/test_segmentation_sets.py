"""ADE20K, Cityscapes, COCO and folder pairs: published layouts, label tables, submissions."""
import json
import pickle
import zipfile
import zlib

import numpy as np
import pytest
import yaml
from PIL import Image
from segmentation_trees import make_ade20k, make_cityscapes, save

from jea.data import ADE20K, COCO, DATASETS, Cityscapes, DataError, Loader, SegmentationFolder
from jea.data.segmentation import coco as coco_module
from jea.data.segmentation.palette import VOC_CLASSES


def rng(*seed):
    return np.random.Generator(np.random.PCG64(seed))


# -- ADE20K -------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def ade(tmp_path_factory):
    root = tmp_path_factory.mktemp("ade")
    return root, make_ade20k(root)


def test_ade20k_labels_are_the_files_minus_one(ade):
    root, labels = ade
    for place in (root, root / "ADEChallengeData2016"):
        data = ADE20K(root=place, split="val")
        assert data.ids == ["ADE_val_00000001", "ADE_val_00000002"]
        for k, id in enumerate(data.ids):
            sample = data.test_sample(k)
            stored = labels[id].astype(int)
            assert sample["id"] == id and (stored == 0).any() and (stored > 1).any()
            assert np.array_equal(sample["label"], np.where(stored == 0, 255, stored - 1))
            assert sample["image"].shape == (*stored.shape, 3)
    assert len(ADE20K(root=root)) == 4 and len(ADE20K(root=root, split="trainval")) == 6


def test_ade20k_tables():
    assert len(ADE20K.class_names) == len(set(ADE20K.class_names)) == 150 == ADE20K.num_classes
    known = {0: "wall", 1: "building", 7: "bed", 12: "person", 44: "chest of drawers", 89: "television receiver",
             110: "stool", 136: "traffic light", 149: "flag"}
    assert {place: ADE20K.class_names[place] for place in known} == known
    colours = {0: (120, 120, 120), 1: (180, 120, 120), 2: (6, 230, 230), 6: (140, 140, 140), 48: (140, 140, 140),
               99: (255, 112, 0), 100: (143, 255, 0), 149: (92, 0, 255)}
    assert {place: tuple(ADE20K.palette[place]) for place in colours} == colours
    assert ADE20K.palette.shape == (256, 3) and ADE20K.palette.dtype == np.uint8
    assert len({tuple(colour) for colour in ADE20K.palette[:150].tolist()}) == 149  # road and skyscraper share one
    # The whole tables, as in the published code.
    assert zlib.crc32(",".join(ADE20K.class_names).encode()) == 3338853938
    assert zlib.crc32(ADE20K.palette[:150].tobytes()) == 3620555175


def test_ade20k_submission(ade, tmp_path):
    data = ADE20K(root=ade[0] / "ADEChallengeData2016", split="test")
    assert data.ids == ["ADE_test_00000001"] and data.test_sample(0)["label"] is None
    prediction = np.arange(150, dtype=np.uint8).reshape(10, 15)
    file = data.submission.write(tmp_path, data.ids[0], prediction, data.palette)
    stored = Image.open(file)
    assert stored.mode == "L" and np.array_equal(np.array(stored), prediction + 1)
    with zipfile.ZipFile(data.submission.pack(tmp_path, data.ids)) as archive:
        assert archive.namelist() == ["ADE_test_00000001.png"]
        assert archive.read("ADE_test_00000001.png") == file.read_bytes()
    with pytest.raises(DataError, match="split test has no labels to train on"):
        data.train_sample(0, rng(0))


def test_ade20k_faults(ade, tmp_path):
    with pytest.raises(DataError, match="no ADE20K data there.*it is not a folder.*looked for the folders images"):
        ADE20K(root=tmp_path / "nowhere")
    with pytest.raises(DataError, match="unknown split 'vall'; there are train, val, trainval and test"):
        ADE20K(root=ade[0], split="vall")
    root = tmp_path / "ADEChallengeData2016"
    save(root / "images/training/a.jpg", np.zeros((4, 5, 3), np.uint8))
    (root / "annotations/training").mkdir(parents=True)
    with pytest.raises(DataError, match=r"images/training/a.jpg: has no label; expected .*annotations/training/a.png"):
        ADE20K(root=tmp_path)
    save(root / "annotations/training/a.png", np.full((4, 5), 151, np.uint8))
    with pytest.raises(DataError, match="label value 151 at row 0, column 0"):
        ADE20K(root=tmp_path).test_sample(0)
    save(root / "annotations/training/b.png", np.zeros((4, 5), np.uint8))
    with pytest.raises(DataError, match="b.png: belongs to no picture in .*images/training"):
        ADE20K(root=tmp_path)


# -- Cityscapes -----------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def cityscapes(tmp_path_factory):
    root = tmp_path_factory.mktemp("cityscapes")
    return root, make_cityscapes(root)


# The published table of the data set's scripts: id -> train id, where not void
TRAIN_IDS = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13, 27: 14,
             28: 15, 31: 16, 32: 17, 33: 18}


def test_cityscapes_label_ids(cityscapes, tmp_path):
    root, labels = cityscapes
    data = Cityscapes(root=root, split="val")
    assert data.ids == ["frankfurt_000000_000019", "frankfurt_000001_000019"]
    sample = data.test_sample(1)
    wanted = np.vectorize(lambda id: TRAIN_IDS.get(id, 255))(labels[data.ids[1]])
    assert np.array_equal(sample["label"], wanted) and (wanted == 255).sum() >= 5 and len(np.unique(wanted)) > 2
    # every id that a file can have
    for id in range(34):
        save(tmp_path / "gtFine/train/x/x_000000_000000_gtFine_labelIds.png", np.full((2, 2), id, np.uint8))
        save(tmp_path / "leftImg8bit/train/x/x_000000_000000_leftImg8bit.png", np.zeros((2, 2, 3), np.uint8))
        assert (Cityscapes(root=tmp_path).test_sample(0)["label"] == TRAIN_IDS.get(id, 255)).all()
    save(tmp_path / "gtFine/train/x/x_000000_000000_gtFine_labelIds.png", np.full((2, 2), 34, np.uint8))
    with pytest.raises(DataError, match="label value 34 at row 0, column 0"):
        Cityscapes(root=tmp_path).test_sample(0)


def test_cityscapes_train_ids_and_splits(cityscapes, tmp_path):
    root, labels = cityscapes
    assert len(Cityscapes(root=root)) == 4 and len(Cityscapes(root=root, split="trainval")) == 6
    with pytest.raises(DataError, match=r"has no label; expected .*_gtFine_labelTrainIds.png"):
        Cityscapes(root=root, labels="labelTrainIds")
    with pytest.raises(DataError, match="labels is 'ids'; expected labelIds or labelTrainIds"):
        Cityscapes(root=root, labels="ids")
    with pytest.raises(DataError, match="unknown split 'x'"):
        Cityscapes(root=root, split="x")
    name = "x_000000_000000"
    save(tmp_path / f"cityscapes/leftImg8bit/val/x/{name}_leftImg8bit.png", np.zeros((1, 20, 3), np.uint8))
    save(tmp_path / f"cityscapes/gtFine/val/x/{name}_gtFine_labelTrainIds.png", np.r_[0:19, 255].astype(np.uint8)[None])
    data = Cityscapes(root=tmp_path, split="val", labels="labelTrainIds")
    assert data.test_sample(0)["label"].tolist() == [[*range(19), 255]]


def test_cityscapes_names_and_colours():
    assert len(Cityscapes.class_names) == 19
    assert Cityscapes.class_names[:3] == ("road", "sidewalk", "building") and Cityscapes.class_names[18] == "bicycle"
    assert tuple(Cityscapes.palette[13]) == (0, 0, 142) and tuple(Cityscapes.palette[0]) == (128, 64, 128)


def test_cityscapes_submission_is_in_label_ids(cityscapes, tmp_path):
    data = Cityscapes(root=cityscapes[0], split="test")
    assert data.ids == ["berlin_000000_000019"] and data.test_sample(0)["label"] is None
    prediction = np.arange(19, dtype=np.uint8)[None]
    file = data.submission.write(tmp_path, data.ids[0], prediction, data.palette)
    stored = Image.open(file)
    assert stored.mode == "L" and np.array(stored)[0].tolist() == sorted(TRAIN_IDS)
    archive = data.submission.pack(tmp_path, data.ids)
    first = archive.read_bytes()
    with zipfile.ZipFile(archive) as opened:
        assert opened.namelist() == ["berlin_000000_000019.png"]
    assert data.submission.pack(tmp_path, data.ids).read_bytes() == first


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
    mask = coco_module.fill_polygon(corners, 14, 23)
    wanted = [[inside(corners.tolist(), x + 0.5, y + 0.5) for x in range(23)] for y in range(14)]
    assert np.array_equal(mask, wanted) and mask.any()


def test_polygon_by_hand():
    # The rectangle of columns 1 to 3 and rows 2 to 3, and the same moved by less than half a pixel
    for shift in (0, 0.4, -0.4):
        box = np.array([[1, 2], [4, 2], [4, 4], [1, 4]]) + shift
        wanted = np.zeros((6, 7), bool)
        wanted[2:4, 1:4] = True
        assert np.array_equal(coco_module.fill_polygon(box, 6, 7), wanted)


def test_run_lengths():
    # column by column: 2 off, 3 on, 4 off in a picture of 3 x 3
    wanted = np.array([[0, 1, 0], [0, 1, 0], [1, 0, 0]], bool)
    assert np.array_equal(coco_module.decode_runs([2, 3, 4], 3, 3), wanted)
    assert coco_module.decode_runs([0, 6], 2, 3).all()
    # COCO's compressed text: plain numbers, then differences to the number two before. 48 + value, 32 = more, 16 = sign
    assert coco_module.decompress_counts("234") == [2, 3, 4]
    assert coco_module.decompress_counts("2341") == [2, 3, 4, 3 + 1]
    assert coco_module.decompress_counts("234O") == [2, 3, 4, 3 - 1]
    assert coco_module.decompress_counts("PP1") == [512 * 2]  # 0 | more, 0 | more, 1: 1 << 10
    assert coco_module.decompress_counts(chr(48 + 32 + 17) + "1") == [17 + 32]


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


# -- folder pairs -----------------------------------------------------------------------------------------------------

@pytest.fixture
def folder(tmp_path):
    (tmp_path / "classes.yaml").write_text(yaml.safe_dump(["background", "road", "roof"]))
    for split, names in (("train", ("a.jpg", "deep/b.png")), ("val", ("c.jpg",))):
        for k, name in enumerate(names):
            save(tmp_path / "images" / split / name, np.full((6, 8, 3), 40 * k, np.uint8))
            label = np.full((6, 8), k, np.uint8)
            label[0] = 255
            save((tmp_path / "labels" / split / name).with_suffix(".png"), label)
    save(tmp_path / "images/test/d.png", np.zeros((6, 8, 3), np.uint8))
    return tmp_path


def test_folder_pair(folder):
    data = SegmentationFolder(root=folder)
    assert data.ids == ["a", "deep/b"] and data.class_names == ("background", "road", "roof") and data.num_classes == 3
    assert data.background == 0 and tuple(data.palette[1]) == (128, 0, 0)  # VOC's colours
    assert (data.test_sample(1)["label"][1:] == 1).all() and (data.test_sample(1)["label"][0] == 255).all()
    assert SegmentationFolder(root=folder, split="test").test_sample(0)["label"] is None
    assert DATASETS["segmentation_folder"] is SegmentationFolder


def test_folder_with_lists_and_colours(folder, tmp_path):
    (folder / "classes.yaml").write_text("road: [128, 64, 128]\nroof: [0, 1, 2]\n")
    (folder / "few.txt").write_text("train/deep/b\n\nval/c\n")
    data = SegmentationFolder(root=folder, split="few")
    assert data.ids == ["train/deep/b", "val/c"] and data.background is None
    assert data.palette[:2].tolist() == [[128, 64, 128], [0, 1, 2]]
    assert (data.test_sample(1)["label"][1:] == 0).all()
    (folder / "bad.txt").write_text("train/a\ntrain/x\n")
    with pytest.raises(DataError, match="bad.txt, line 2: 'train/x' has no picture in"):
        SegmentationFolder(root=folder, split="bad")
    with pytest.raises(DataError, match="no split 'trian': there is no folder .*images/trian"):
        SegmentationFolder(root=folder, split="trian")


def test_a_list_of_classes_of_which_some_have_colours(folder):
    (folder / "classes.yaml").write_text("- background\n- road: [128, 64, 129]\n- 3")
    names, palette = SegmentationFolder.legend(root=folder)
    assert names == ("background", "road", "3")
    assert palette[:3].tolist() == [[0, 0, 0], [128, 64, 129], [0, 128, 0]]


@pytest.mark.parametrize("text, said", [
    ("a: [1, 2]", "the colour of a is"), ("- a\n- a", "class names must be different"),
    ("just text", "expected a list of 1 to 255"),
    ("- a\n- b: red", "the colour of b is 'red'"), ("- a\n- [b]", "different pieces of text"),
    ("- a\n- a: [1, 2, 3]", "class names must be different"),
    ("- {a: [1, 2, 3], b: [1, 2, 3]}", "different pieces of text"),
    ("[", "not valid YAML"), ("[]", "expected a list"), ("a: [0, 0, 256]", "whole numbers from 0 to 255"),
])
def test_class_lists(folder, text, said):
    (folder / "classes.yaml").write_text(text)
    with pytest.raises(DataError, match=said):
        SegmentationFolder(root=folder)


def test_folder_faults(folder):
    save(folder / "images/train/a.png", np.zeros((6, 8, 3), np.uint8))
    with pytest.raises(DataError, match="a.png: .*images/train/a.jpg has the same name"):
        SegmentationFolder(root=folder)
    (folder / "classes.yaml").unlink()
    with pytest.raises(DataError, match="classes.yaml: cannot read the list of classes"):
        SegmentationFolder(root=folder)


@pytest.mark.parametrize("settings, said", [
    ({"scales": (1.0,), "scale_range": (0.5, 2)}, "both scales and scale_range"),
    ({"scales": ()}, "one or more positive"), ({"scale_range": (2, 1)}, "0 < low <= high"),
    ({"fit": (0, 5)}, "expected two sides"), ({"crop_size": 0}, "at least 1"),
    ({"max_class_share": 0}, "0 < share <= 1"),
])
def test_augmentation_settings(folder, settings, said):
    with pytest.raises(DataError, match=said):
        SegmentationFolder(root=folder, **settings)


def test_training_batches_with_all_of_the_augmentation(folder):
    data = SegmentationFolder(root=folder, crop_size=9, scale_range=(0.5, 2.0), fit=(16, 12), max_class_share=0.75,
                              photometric=True)
    with Loader(data, batch_size=2, seed=3, num_workers=1) as loader, Loader(data, batch_size=2, seed=3) as same:
        batch, again = next(iter(loader.epoch(0))), next(iter(same.epoch(0)))
    assert batch["image"].shape == (2, 3, 9, 9) and batch["image"].dtype == np.float32
    assert batch["label"].shape == (2, 9, 9) and batch["label"].dtype == np.int32
    assert set(np.unique(batch["label"])) <= {0, 1, 255}
    assert all(np.array_equal(batch[key], again[key]) for key in batch)


def test_without_photometric_it_is_vocs_augmentation(folder):
    from jea.data.views import crops as T
    data = SegmentationFolder(root=folder, crop_size=7)
    sample, raw = data.train_sample(1, rng(5)), data.test_sample(1)
    image, label = T.train_augment(T.normalise(raw["image"]), raw["label"], rng(5), crop_size=7)
    assert np.allclose(sample["image"], image.transpose(2, 0, 1), atol=1e-5) and np.array_equal(sample["label"], label)
