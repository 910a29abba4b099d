"""ShapeNetPart on small trees in the two published layouts."""
import json

import numpy as np
import pytest

from jea.data import DATASETS, DataError, ShapeNetPart
from jea.data.points.shapenet_part import CATEGORIES, PART_COUNTS, part_ranges

# Not in alphabetical order, so that a category taken by its line would show.
SYNSETS = {"Table": "04379243", "Airplane": "02691156", "Mug": "03797390"}
SHAPES = {"train": [("Table", "t1"), ("Airplane", "a1")], "val": [("Mug", "m1")], "test": [("Airplane", "a2")]}
PARTS = {"Table": (47, 48, 49), "Airplane": (0, 1, 2, 3), "Mug": (36, 37)}


def shape(category, token):
    random = np.random.default_rng(sum(map(ord, token)))
    points = random.uniform(-2, 3, (50, 3)).astype(np.float32)
    return points, np.resize(PARTS[category], 50)


def make_text(root):
    folder = root / "shapenetcore_partanno_segmentation_benchmark_v0_normal"
    (folder / "train_test_split").mkdir(parents=True)
    lines = [f"{name}\t{synset}\n" for name, synset in SYNSETS.items()]
    (folder / "synsetoffset2category.txt").write_text("".join(lines))
    for split, shapes in SHAPES.items():
        entries = [f"shape_data/{SYNSETS[category]}/{token}" for category, token in shapes]
        (folder / "train_test_split" / f"shuffled_{split}_file_list.json").write_text(json.dumps(entries))
        for category, token in shapes:
            points, parts = shape(category, token)
            (folder / SYNSETS[category]).mkdir(exist_ok=True)
            np.savetxt(folder / SYNSETS[category] / f"{token}.txt", np.hstack([points, points * 0, parts[:, None]]),
                       fmt="%.6f")
    return folder


def make_hdf5(root, name="shapenet_part_seg_hdf5_data"):
    h5py = pytest.importorskip("h5py")
    folder = root / name
    folder.mkdir()
    for split, shapes in SHAPES.items():
        found = [shape(*entry) for entry in shapes]
        with h5py.File(folder / f"ply_data_{split}0.h5", "w") as file:
            file["data"] = np.stack([points for points, _ in found])
            file["pid"] = np.stack([parts for _, parts in found]).astype(np.int32)
            file["label"] = np.array([[CATEGORIES.index(category.lower())] for category, _ in shapes], np.uint8)
    return folder


def test_category_and_part_tables():
    ranges = part_ranges()
    assert len(CATEGORIES) == len(ranges) == 16 and list(CATEGORIES) == sorted(CATEGORIES)
    assert [own[0] for own in ranges] == [0, 4, 6, 8, 12, 16, 19, 22, 24, 28, 30, 36, 38, 41, 44, 47]
    assert sum(PART_COUNTS) == 50 and ranges[10] == (30, 31, 32, 33, 34, 35) and ranges[15] == (47, 48, 49)
    assert len(ShapeNetPart.part_names) == 50 and ShapeNetPart.part_names[36] == "mug 1"


def test_hdf5(tmp_path):
    folder = make_hdf5(tmp_path)
    assert len(ShapeNetPart(root=folder, split="train", num_points=40)) == 2
    data = DATASETS["shapenet_part"](root=tmp_path, num_points=40)  # train and val together, as published recipes train
    assert (data.split, len(data), data.root) == ("trainval", 3, folder)
    for k, entry in enumerate((*SHAPES["train"], *SHAPES["val"])):
        points, parts = shape(*entry)
        sample = data.test_sample(k)
        assert np.array_equal(sample["points"], points[:40].T) and np.array_equal(sample["parts"], parts[:40])
        assert sample["category"] == (15, 0, 11)[k] and sample["parts"].dtype == np.int32
    assert [ShapeNetPart(root=tmp_path, split=split, num_points=40).test_sample(0)["category"]
            for split in ("val", "test")] == [11, 0]


def test_text(tmp_path):
    folder = make_text(tmp_path)
    data = ShapeNetPart(root=tmp_path, num_points=80)
    assert (len(data), data.root) == (3, folder)
    for k, entry in enumerate((*SHAPES["train"], *SHAPES["val"])):
        points, parts = shape(*entry)
        points = points - points.mean(0, dtype=np.float64)
        points = points / np.sqrt((points ** 2).sum(1)).max()
        sample = data.test_sample(k)
        assert sample["points"].shape == (3, 80) and sample["category"] == (15, 0, 11)[k]  # as in hdf5
        distance = np.linalg.norm(sample["points"].T[:, None] - points[None], axis=2)
        source = distance.argmin(1)
        assert distance.min(1).max() < 3e-6 and np.array_equal(sample["parts"], parts[source])
        assert 25 < len(set(source.tolist())) < 50  # with replacement
        assert np.array_equal(sample["points"], data.test_sample(k)["points"])
    first, second = (data.train_sample(0, np.random.default_rng(seed)) for seed in (1, 2))
    assert first["points"].shape == (3, 80) and not np.array_equal(np.sort(first["parts"]), np.sort(second["parts"]))
    assert len(ShapeNetPart(root=folder, num_points=10)._clouds) == 3
    assert sorted(p.name for p in (folder / ".jea").iterdir()) == ["trainval"]  # one cache for any num_points


def test_both_forms_agree(tmp_path):
    make_text(tmp_path / "text")
    make_hdf5(tmp_path)
    text, hdf5 = (ShapeNetPart(root=root, split="train", num_points=40) for root in (tmp_path / "text", tmp_path))
    assert [text.test_sample(k)["category"] for k in (0, 1)] == [hdf5.test_sample(k)["category"] for k in (0, 1)]


def said(root, message, **options):
    with pytest.raises(DataError, match=message):
        ShapeNetPart(root=root, **{"num_points": 40, **options})


def test_faults_of_the_text_form(tmp_path):
    said(tmp_path, "no ShapeNetPart there; looked for synsetoffset2category.txt")
    folder = make_text(tmp_path)
    said(tmp_path, "unknown split 'valid'.*did you mean val", split="valid")
    path = folder / SYNSETS["Mug"] / "m1.txt"
    good = path.read_text()
    line = good.splitlines()[1]
    for changed, message in (("1 2 3 0 0 0", "line 2: 6 numbers; expected 7"),
                             (f"{line[:-9]}35.000000", "line 2: part 35 of a mug; expected 36 to 37"),
                             (f"{line[:-9]}36.500000", "line 2: part 36.5 of a mug"),
                             (f"{line[:-9]}nan", "line 2: part nan"),
                             (f"nan {line.split(' ', 1)[1]}", r"line 2: \(nan,")):
        path.write_text(good.replace(line, changed))
        said(tmp_path, f"m1.txt, {message}")
    path.write_text("")
    said(tmp_path, "m1.txt: cloud is empty")
    path.unlink()
    said(tmp_path, "m1.txt: cloud does not exist, but .*shuffled_val_file_list.json lists it")
    listing = folder / "train_test_split" / "shuffled_val_file_list.json"
    for text, message in (("[", "cannot read the list"), ("[]", "expected a list of at least one"),
                          ("{}", "expected a list"),
                          ("[3]", "'3'; expected"), ('["shape_data/1/x"]', "with a synset of"),
                          ('["shape_data/03797390/.."]', "expected .shape_data"),
                          ("[" * 100_000, "cannot read the list")):
        listing.write_text(text)
        said(tmp_path, f"shuffled_val_file_list.json: .*{message}")
    (folder / "synsetoffset2category.txt").write_text("Airplane 1\nHouse 2\n")
    said(tmp_path, "synsetoffset2category.txt, line 2: 'House 2'; expected one of the categories airplane")


def test_faults_of_the_hdf5_form(tmp_path):
    h5py = pytest.importorskip("h5py")
    folder = make_hdf5(tmp_path, "hdf5_data")
    with h5py.File(folder / "ply_data_val0.h5", "a") as file:
        file["pid"][0, 3] = 38
    said(tmp_path, "ply_data_val0.h5, cloud 0, point 3: part 38 of a mug; expected 36 to 37")
    with h5py.File(folder / "ply_data_val0.h5", "a") as file:
        del file["pid"]
    said(tmp_path, "has no array 'pid'; it has data, label")
    (folder / "ply_data_val0.h5").unlink()
    said(tmp_path, r"no files \*val\*.h5")
    said(tmp_path, r"data has shape \(2, 50, 3\); expected \(n, 51 or more, 3\)", split="train", num_points=51)
