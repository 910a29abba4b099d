"""Pictures of many pixels: --input fits them, says so once, and its memory is bounded."""
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from jea.draw.comparisons import shrunk
from jea.tasks import segmentation
from jea.tasks.picture_logits import PictureLogits
from jea.tasks.segmentation import Segmentation

CODE = """
import sys
import numpy as np
from pathlib import Path
from jea.tasks.outputs import predict_files
from jea.tasks.segmentation import Segmentation
from jea.training.memory import peak_memory_mb
task = Segmentation(model={"name": "eanet_tiny", "num_classes": 21}, data={"name": "voc", "root": "unused"},
                    eval={"mode": sys.argv[3]})
task.classes(np.zeros((65, 65, 3), np.uint8))
before = peak_memory_mb()
predict_files(task, sys.argv[1], sys.argv[2], progress=False)
print(peak_memory_mb() - before)
"""


def picture(height, width):
    """Colours that change slowly from place to place."""
    y, x = np.mgrid[:height, :width].astype(np.float32) / max(height, width)
    return (np.stack([np.sin(9 * x), np.sin(7 * y), np.sin(5 * (x + y))], 2) * 127 + 128).astype(np.uint8)


@pytest.mark.parametrize("mode", ["whole", "slide"])
def test_memory_of_twelve_megapixels(tmp_path, mode):
    Image.fromarray(picture(3000, 4000)).save(tmp_path / "a.png")
    done = subprocess.run([sys.executable, "-c", CODE, str(tmp_path), str(tmp_path / "out"), mode], capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 1000  # the logits of all pixels alone are 1008 MB
    assert Image.open(tmp_path / "out" / "a.png").size == (4000, 3000)
    assert done.stderr.count("4000 x 3000: pictures of more than 2,097,152 pixels are fitted into as many") == 1


def task(**evaluation):
    return Segmentation(model={"name": "eanet_tiny", "num_classes": 7}, data={"name": "voc", "root": "unused"},
                        eval=evaluation)


def test_a_large_picture_is_segmented_as_its_smaller_copy(monkeypatch, capsys):
    monkeypatch.setattr(segmentation, "LARGE", 120 * 160)
    found, image = task(), picture(240, 320)
    assert np.array_equal(found.classes_any_size(image[:120, :160]), found.classes(image[:120, :160]))
    assert capsys.readouterr().err == ""
    large, small = found.classes_any_size(image), found.classes(shrunk(image, 120 * 160))
    assert large.shape == (240, 320) and shrunk(image, 120 * 160).shape == (120, 160, 3)
    nearest = np.rint(np.linspace(0, 119, 240)).astype(int)[:, None], np.rint(np.linspace(0, 159, 320)).astype(int)
    assert (large == small[nearest]).mean() > 0.97
    found.classes_any_size(image)
    assert capsys.readouterr().err.count("are fitted into as many") == 1


@pytest.mark.parametrize("options", [{"mode": "slide", "window": 97, "window_stride": 65}, {"fit": (160, 120)}],
                         ids=str)
def test_what_the_config_says_about_size_holds(monkeypatch, options):
    monkeypatch.setattr(segmentation, "LARGE", 240 * 320 // 4)
    found, image = task(**options), picture(240, 320)
    sparse = found._run(image, stride=2)
    assert np.array_equal(found.classes_any_size(image), sparse.argmax()) and len(sparse.rows) == 121
    assert (sparse.argmax() == found.classes(image)).mean() > 0.97


def test_stretched_logits_are_interpolated_corner_to_corner():
    logits = PictureLogits(2, (3, 2), 1)
    logits.values[:] = np.arange(12).reshape(2, 3, 2)
    full = logits.stretch((5, 4)).full()
    assert full.shape == (2, 5, 4)
    assert np.allclose(full[0], np.arange(5)[:, None] + np.arange(4) / 3) and np.allclose(full[1], full[0] + 6)
    assert logits.argmax().tolist() == [[1] * 4] * 5


@pytest.mark.parametrize("size", [(1, 5_000_000), (5_000_000, 1), (2000, 3000)], ids=str)
def test_shrunk_pictures_have_few_pixels(size):
    small = shrunk(np.zeros((*size, 3), np.uint8), 2 ** 21)
    assert 1 <= small.shape[0] * small.shape[1] <= 2 ** 21


# -- the other tasks on pictures --------------------------------------------------------------------------------------

OTHERS = """
import json
import sys
from pathlib import Path
import numpy as np
from PIL import Image
from jea.data import write_image
from jea.tasks.classification import Classification
from jea.tasks.detection import InstanceSegmentation
from jea.tasks.outputs import predict_files
from jea.training.memory import peak_memory_mb
folder = Path(sys.argv[1])
tasks = {"classification": Classification(model={"name": "eamlp_tiny", "num_classes": 10, "img_size": 32},
                                          data={"name": "shape_classes"}),
         "detection": InstanceSegmentation(
             model={"name": "ea_maskrcnn_tiny", "num_classes": 3, "rpn_pre_nms": [100, 300], "rpn_post_nms": [40, 100]},
             data={"name": "coco_json", "root": "unused", "min_size": 64, "max_size": 96}, eval={"min_score": 0.0})}
peaks = {}
for name, task in tasks.items():
    write_image(folder / "small.png", np.zeros((64, 64, 3), np.uint8))
    predict_files(task, folder / "small.png", folder / "warm", progress=False)
    before = peak_memory_mb()
    found = predict_files(task, folder / "many", folder / name, progress=False)
    peaks[name] = peak_memory_mb() - before, found
print(json.dumps(peaks, default=str))
"""


def test_memory_of_classification_and_detection(tmp_path):
    """12 and 64 megapixels run, as many masks as a picture may have included; 100 megapixels are refused in one line,
    and the others go on."""
    (tmp_path / "many").mkdir()
    Image.fromarray(picture(3000, 4000)).save(tmp_path / "many" / "a.png", compress_level=1)
    Image.new("1", (8192, 8192)).save(tmp_path / "many" / "b.png")
    Image.new("1", (10_000, 10_000)).save(tmp_path / "many" / "c.png")
    done = subprocess.run([sys.executable, "-c", OTHERS, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    peaks = json.loads(done.stdout.splitlines()[-1])
    for name, (peak, found) in peaks.items():
        assert found["images"] == 2 and len(found["failed"]) == 1, found
        assert found["failed"] == [{"input": str(tmp_path / "many" / "c.png"), "reason": "picture of 10000 x 10000 "
                                    "pixels is over the limit of 67108864 pixels; make it smaller first"}]
        assert peak < 1500, (name, peak)  # 64 megapixels are 192 MB, read 4 times; 90 masks of as many pixels are 6 GB
    objects = peaks["detection"][1]["files"][0]["objects"]
    assert len(objects) > 30 and max(thing["box"][2] for thing in objects) > 2000  # in the picture's own pixels
    assert Image.open(tmp_path / "detection" / "a.png").width < 1000
