"""Pictures whose EXIF data ask to be turned: one's own are, those of published data sets are not; the data check says
so."""
import numpy as np
import pytest
from PIL import Image
from segmentation_trees import make_ade20k, save

from jea.data import ADE20K, DataError, ImageFolder, SegmentationFolder, VOCSegmentation, read_image
from jea.data.check import check_splits
from jea.data.files.pictures import is_rotated

# What the stored pixels look like upright, by the EXIF standard: which of the picture's corners row 0, column 0 is.
TURNED = {1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
          5: lambda a: a.transpose(1, 0, 2), 6: lambda a: np.rot90(a, -1), 7: lambda a: a[::-1, ::-1].transpose(1, 0,
                                                                                                                2),
          8: lambda a: np.rot90(a)}


def photo(path, orientation, size=(6, 9)):
    """A PNG, so that its pixels are exact; the tag is the one that cameras write."""
    pixels = np.random.default_rng(orientation).integers(0, 255, (*size, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, exif=exif)
    return pixels


@pytest.mark.parametrize("orientation", TURNED)
def test_a_label_drawn_on_the_upright_picture_fits(tmp_path, orientation):
    pixels = TURNED[orientation](photo(tmp_path / "images/train/a.png", orientation))
    label = (pixels[:, :, 0] > 127).astype(np.uint8)  # drawn by a tool that turns pictures
    save(tmp_path / "labels/train/a.png", label)
    (tmp_path / "classes.yaml").write_text("- dark\n- light\n")
    sample = SegmentationFolder(root=tmp_path).test_sample(0)
    assert np.array_equal(sample["image"], pixels) and np.array_equal(sample["label"], label)
    assert ((sample["image"][:, :, 0] > 127) == sample["label"]).all()
    report = check_splits(SegmentationFolder, {"root": str(tmp_path)}, ["train"], num_workers=0, shown=False)
    assert report.problems == []
    turned = [note for note in report.notes if "1 pictures of split train ask in their EXIF data to be turned" in note]
    assert len(turned) == (orientation != 1) and all("are turned upright" in n and "a.png" in n for n in turned)


def test_a_label_drawn_on_the_stored_picture_is_told(tmp_path):
    photo(tmp_path / "images/train/a.png", 6)
    save(tmp_path / "labels/train/a.png", np.ones((6, 9), np.uint8))
    (tmp_path / "classes.yaml").write_text("- dark\n- light\n")
    with pytest.raises(DataError, match="label is 9 x 6, its picture .* is 6 x 9, turned upright as its EXIF data ask; "
                                        "draw"):
        SegmentationFolder(root=tmp_path).test_sample(0)
    report = check_splits(SegmentationFolder, {"root": str(tmp_path)}, ["train"], num_workers=0, shown=False)
    assert any("turned upright as its EXIF data ask" in problem for problem in report.problems)


@pytest.mark.parametrize("orientation", TURNED)
def test_class_folders_are_read_as_input_is(tmp_path, orientation):
    pixels = TURNED[orientation](photo(tmp_path / "train/a/x.png", orientation))
    data = ImageFolder(root=tmp_path)
    assert np.array_equal(data.load(0)[0], pixels)
    assert np.array_equal(data.load(0)[0], read_image(tmp_path / "train/a/x.png", exif=True))
    found = data.examine(0)
    assert found.rotated == (orientation != 1) and found.name.endswith("x.png") and found.size == pixels.shape[:2]


def test_published_data_sets_are_read_as_stored(tmp_path):
    make_ade20k(tmp_path / "ade", train=1, val=1, test=0)
    path = next((tmp_path / "ade").rglob("images/training/*.jpg"))
    height, width = np.array(Image.open(path)).shape[:2]
    pixels = photo(path.with_suffix(".png"), 6, (height, width))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(path, exif=exif, quality=95)
    path.with_suffix(".png").unlink()
    assert is_rotated(path)
    data = ADE20K(root=tmp_path / "ade")
    assert data.test_sample(0)["image"].shape == (height, width, 3)
    report = check_splits(ADE20K, {"root": str(tmp_path / "ade")}, ["train"], num_workers=0, shown=False)
    assert any("are read as they are stored, as the tools of this data set" in note for note in report.notes)
    assert not VOCSegmentation.follows_exif
