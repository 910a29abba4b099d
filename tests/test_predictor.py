"""jea.Predictor: what it finds is what `jea test --input` writes, for every task, from files, arrays and lists."""
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import jea
from jea import config
from jea.commands import test
from jea.data.detection.scenes import draw_scene
from jea.errors import UserError
from jea.files import shared_folder

SEGMENTATION = "segmentation_eanet_tiny_shapes"
CLASSIFICATION = "classification_eamlp_tiny_shapes"
DETECTION = "instance_segmentation_ea_maskrcnn_tiny_shapes"
CLOUD_CLASS = "point_classification_ea_pct_tiny_solids"
CLOUD_PARTS = "part_segmentation_ea_pct_tiny_solids"
GENERATION = "generation_ea_sagan_tiny_plain_shapes"
ON_PICTURES, ON_CLOUDS = (SEGMENTATION, CLASSIFICATION, DETECTION), (CLOUD_CLASS, CLOUD_PARTS)


def cloud(seed, count):
    points = np.random.default_rng(seed).standard_normal((count, 3))
    return points / np.linalg.norm(points, axis=1, keepdims=True) * 7 + 100


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Pictures, of which two have one size and one is turned by its EXIF data; clouds."""
    pictures, clouds = tmp_path_factory.mktemp("pictures"), tmp_path_factory.mktemp("clouds")
    for k in range(2):
        Image.fromarray(draw_scene(np.random.default_rng(k))[0]).save(pictures / f"scene{k}.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(draw_scene(np.random.default_rng(5))[0][:100]).save(pictures / "turned.jpg", exif=exif)
    np.save(clouds / "a.npy", cloud(0, 600))
    np.savetxt(clouds / "b.txt", cloud(1, 1500))
    return {**dict.fromkeys(ON_PICTURES, pictures), **dict.fromkeys(ON_CLOUDS, clouds)}


@pytest.fixture(scope="module")
def predictors():
    """One of each config, made when it is first asked for."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = jea.Predictor(name)
        return made[name]
    return get


def arrays_of(result):
    """All numbers of a result that it was not given."""
    return [np.asarray(value) for name, value in sorted(vars(result).items())
            if name in ("classes", "probabilities", "boxes", "scores", "labels", "masks", "parts")]


def equal(one, other):
    pairs = list(zip(arrays_of(one), arrays_of(other)))
    return bool(pairs) and all(a.shape == b.shape and np.array_equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", [*ON_PICTURES, *ON_CLOUDS])
def test_a_result_is_what_the_command_writes(name, folders, predictors, tmp_path, capsys):
    assert test.main(["--config", name, "--input", str(folders[name]), "--out", str(tmp_path / "out"), "--json"]) == 0
    wanted = json.loads(capsys.readouterr().out)["files"]
    predictor, written = predictors(name), {}
    for entry in wanted:
        result = predictor(entry["input"])
        assert result.save(tmp_path / "own") == tmp_path / "own"
        stem = Path(entry["input"]).stem
        found = json.loads((tmp_path / "own" / f"{stem}.json").read_text())
        for side, folder in ((entry, "out"), (found, "own")):
            if "prediction" in side:
                side["prediction"] = str(Path(side["prediction"]).relative_to(tmp_path / folder))
        assert found == entry
        written.update({f"{stem}{suffix}": result for suffix in result.suffixes})
    for file in written:
        assert (tmp_path / "own" / file).read_bytes() == (tmp_path / "out" / file).read_bytes(), file
    lists = {file.name for file in (tmp_path / "out").glob("*.json")}
    assert {file.name for file in (tmp_path / "out").iterdir()} - lists == set(written)
    assert wanted and lists == ({result.list_name} if result.list_name else set())


@pytest.mark.parametrize("name", [*ON_PICTURES, *ON_CLOUDS])
def test_files_arrays_and_lists_say_the_same(name, folders, predictors):
    predictor, files = predictors(name), sorted(folders[name].iterdir())
    single = [predictor(file) for file in files]
    arrays = [one.image if name in ON_PICTURES else one.points for one in single]
    assert all(equal(predictor(array), one) for array, one in zip(arrays, single))
    for many in (predictor(files), predictor(str(folders[name])), predictor(tuple(map(str, files))), predictor(arrays)):
        assert len(many) == len(files)
        for one, own in zip(single, many):  # a batch rounds differently
            assert type(own) is type(one) and repr(own).partition(":")[0].startswith(type(own).__name__)
            for a, b in zip(arrays_of(own), arrays_of(one)):
                assert a.shape == b.shape
                if a.dtype.kind == "f":
                    assert np.abs(a - b).max(initial=0) < 1e-3
                else:
                    assert (a == b).mean() > 0.999
    assert [one.source for one in predictor(files)] == files
    together = [array for array in arrays if array.shape == arrays[0].shape]
    assert len(predictor(np.stack(together))) == len(together) == (2 if name in ON_PICTURES else 1)


def test_a_pil_picture_is_turned_as_its_file_is(folders, predictors):
    predictor, file = predictors(SEGMENTATION), folders[SEGMENTATION] / "turned.jpg"
    with Image.open(file) as image:
        assert equal(predictor(image), predictor(file)) and predictor(file).classes.shape == (160, 100)


def test_batches_are_of_the_asked_size(folders, monkeypatch):
    predictor = jea.Predictor(CLASSIFICATION, batch_size=2)
    seen, inner = [], predictor.task.predict
    monkeypatch.setattr(predictor.task, "predict", lambda inputs: seen.append(len(inputs)) or inner(inputs))
    image = np.zeros((40, 50, 3), np.uint8)
    assert len(predictor([image] * 5)) == 5 and seen == [2, 2, 1]
    assert predictor([]) == []
    stream = predictor.stream(iter([image] * 3))
    next(stream)
    assert seen == [2, 2, 1, 2]  # the third is not looked at before it is asked for
    assert len(predictor(image for _ in range(3))) == 3


@pytest.mark.parametrize("name", [*ON_PICTURES, *ON_CLOUDS, GENERATION])
def test_notebooks_show_a_picture(name, folders, predictors, tmp_path):
    result = predictors(name)(3 if name == GENERATION else min(folders[name].iterdir()))
    with Image.open(io.BytesIO(result._repr_png_())) as image:
        assert image.format == "PNG" and np.array_equal(np.array(image), result.picture())
    assert np.array_equal(np.array(Image.open(result.save(tmp_path / "a.png"))), result.picture())
    assert Image.open(result.save(str(tmp_path / "a.jpg"))).size == result.picture().shape[1::-1]
    assert "\n" not in repr(result) and repr(result).startswith(f"{type(result).__name__}(")
    if name in ON_PICTURES:
        over = result.overlay()
        assert over.shape == result.image.shape and over.dtype == np.uint8 and not np.array_equal(over, result.image)


def test_what_else_is_saved(folders, predictors, tmp_path):
    image = folders[SEGMENTATION] / "scene0.png"
    found = predictors(SEGMENTATION)(image)
    assert np.array_equal(np.load(found.save(tmp_path / "a.npy")), found.classes)
    assert json.loads(found.save(tmp_path / "a.json").read_text()) == {"input": str(image), **found.entry()}
    assert sum(found.mask(name).sum() for name in found.names) == found.classes.size
    assert sum(found.shares.values()) == pytest.approx(1)
    found = predictors(CLOUD_PARTS)(cloud(0, 300))
    table = np.loadtxt(found.save(tmp_path / "parts.txt"))
    assert np.array_equal(table[:, 3], found.parts) and np.abs(table[:, :3] - found.points).max() < 1e-5
    assert found.save(tmp_path / "new" / "folder").is_dir()
    assert {file.name for file in (tmp_path / "new" / "folder").iterdir()} == {"array.png", "array_parts.txt",
                                                                               "array.json"}


def test_generation_makes_the_samples_that_are_scored(predictors, tmp_path, capsys):
    assert test.main(["--config", GENERATION, "--out", str(tmp_path / "out"), "eval.metrics=false", "eval.samples=13",
                      "eval.save=png"]) == 0
    predictor = predictors(GENERATION)
    found = predictor(count=13, seed=1)
    found.save(tmp_path / "own")
    files = sorted(file.name for file in (tmp_path / "out" / "samples").iterdir())
    assert len(files) == 13
    for file in files:
        assert np.array_equal(np.array(Image.open(tmp_path / "own" / file)),
                              np.array(Image.open(tmp_path / "out" / "samples" / file))), file
    with np.load(found.save(tmp_path / "a.npz")) as kept:
        assert np.array_equal(kept["images"], found.images) and np.array_equal(kept["labels"], found.labels)
    assert len(found) == 13 and not np.array_equal(found.images, predictor(13).images)
    assert np.array_equal(predictor(13).images, predictor(count=13, seed=0).images)
    by_name, by_number = predictor(4, labels="ring"), predictor(4, labels=[4, 4, 4, 4])
    assert np.array_equal(by_name.images, by_number.images) and by_name.labels.tolist() == [4] * 4
    assert repr(by_name) == "Samples(samples: 4 pictures of 32 x 32, seed 0: 4 ring)"
    mixed = predictor(4, labels=np.eye(6, dtype=np.float32)[[4] * 4])
    assert np.abs(mixed.images.astype(int) - by_name.images).max() <= 1 and mixed.save(tmp_path / "mixed").is_dir()


def test_a_config_by_path_or_loaded_and_with_options(folders, predictors):
    file = folders[SEGMENTATION] / "scene0.png"
    path, found = shared_folder("configs") / f"{SEGMENTATION}.yaml", predictors(SEGMENTATION)(file)
    weights = predictors(SEGMENTATION).weights
    assert equal(jea.Predictor(path)(file), found) and equal(jea.Predictor(str(path), weights)(file), found)
    loaded = config.load(path)
    before = json.dumps(loaded)
    assert equal(jea.Predictor(loaded, weights=weights)(file), found)
    plain = jea.Predictor(SEGMENTATION, fuse=False)(file)
    assert (plain.classes == found.classes).mean() > 0.999
    flipped = jea.Predictor(loaded, weights, overrides=["eval.flip=true", "eval.scales=[1.0, 1.5]"])
    assert flipped.task.eval.flip and json.dumps(loaded) == before and not equal(flipped(file), found)
    assert "segmentation_eanet_tiny_shapes" in repr(predictors(SEGMENTATION))
    assert predictors(SEGMENTATION).names[0] == "background"


def test_bfloat16_is_close(folders, predictors):
    from jea.nn.precision import unavailable
    if unavailable("bfloat16"):
        pytest.skip(unavailable("bfloat16"))
    file = folders[CLOUD_CLASS] / "a.npy"
    found, half = predictors(CLOUD_CLASS)(file), jea.Predictor(CLOUD_CLASS, precision="bfloat16")(file)
    assert np.abs(found.probabilities - half.probabilities).max() < 0.05


@pytest.mark.parametrize("arguments, options, said", [
    (["nothing"], {}, "nothing: no such config"),
    ([SEGMENTATION], {"weights": "no.pth"}, "no.pth: no such file"),
    (["segmentation_eanet_resnet50_voc"], {}, "no weights are bundled for this config: say weights=FILE"),
    ([{"task": "segmentation"}], {}, "model: missing"),
    ([7], {}, "config is a int; expected a name, a path, or what jea.config.load gave"),
    ([SEGMENTATION], {"device": "gpu"}, "device is 'gpu'; expected auto, cpu, cuda"),
    ([SEGMENTATION], {"precision": "half"}, "precision is 'half'; expected float32, bfloat16, float16"),
    ([SEGMENTATION], {"precision": "bfloat16", "fuse": False}, "leave fuse=False out"),
    ([SEGMENTATION], {"batch_size": 0}, "batch_size is 0; expected an integer of at least 1"),
    ([SEGMENTATION], {"overrides": ["eval.flop=true"]}, "eval.flop: unknown"),
    ([GENERATION], {"multi_scale": True}, "no such test for generation"),
])
def test_what_is_wrong_is_said_in_one_line(arguments, options, said):
    with pytest.raises(UserError, match=said.replace("(", r"\(")) as caught:
        jea.Predictor(*arguments, **options)
    assert "\n" not in str(caught.value)


def test_cuda_that_is_not_there():
    from jea import environment
    if environment.prepare().device == "cuda":
        pytest.skip("this machine has a GPU")
    with pytest.raises(UserError, match="^device cuda: .*Use device cpu, or mend that"):
        jea.Predictor(SEGMENTATION, device="cuda")


@pytest.mark.parametrize("name, arguments, options, said", [
    (SEGMENTATION, [], {}, "segmentation takes a picture: its path, an array, or a list of them"),
    (SEGMENTATION, ["no.jpg"], {}, "no.jpg: picture does not exist"),
    (SEGMENTATION, [np.zeros((4, 5, 3))], {}, r"array: is float64 \(4, 5, 3\); expected a picture, uint8 \(H, W, 3\)"),
    (SEGMENTATION, [[np.zeros((4, 5, 3), np.uint8), np.zeros((4, 5), np.uint8)]], {}, r"array 1: is uint8 \(4, 5\)"),
    (SEGMENTATION, [np.zeros((0, 5, 3), np.uint8)], {}, "expected a picture"),
    (SEGMENTATION, [3], {}, "array: is a int; expected the path of a picture"),
    (SEGMENTATION, ["a.jpg"], {"count": 3}, "count, seed and labels are for generation"),
    (CLOUD_CLASS, [np.zeros((40, 2))], {}, r"array: cloud has shape \(40, 2\); expected \(N, 3\)"),
    (CLOUD_CLASS, [np.full((40, 3), np.nan)], {}, "array, point 0: .* is not a finite place"),
    (CLOUD_CLASS, [np.eye(3)], {}, "array: cloud has 3 points; expected at least 32"),
    (CLOUD_CLASS, [[np.ones((40, 3))]], {}, "array 0: all 40 points are the same"),
    (CLOUD_CLASS, [np.array(["a"])], {}, "array: is <U1"),
    (GENERATION, [], {}, "count is None; expected an integer of at least 1"),
    (GENERATION, [3], {"count": 4}, "it got 3 and count=4"),
    (GENERATION, ["a.jpg"], {}, "count is 'a.jpg'"),
    (GENERATION, [3], {"seed": -1}, "seed is -1; expected an integer of at least 0"),
    (GENERATION, [3], {"labels": "rong"}, r"labels has 'rong'; there are disk, .* \(did you mean ring\?\)"),
    (GENERATION, [3], {"labels": [1, 2]}, r"labels is int64 \(2,\); expected 3 classes"),
    (GENERATION, [2], {"labels": [1, 6]}, "names or numbers below 6"),
    (GENERATION, [2], {"labels": [[1.0], [1.0, 2.0]]}, "or mixtures"),
], ids=str)
def test_what_is_wrong_with_an_input_is_said_in_one_line(name, arguments, options, said, predictors):
    with pytest.raises(UserError, match=said) as caught:
        predictors(name)(*arguments, **options)
    assert "\n" not in str(caught.value)


def test_what_is_wrong_with_a_place_is_said_in_one_line(folders, predictors, tmp_path):
    image = tmp_path / "a.png"
    image.write_bytes((folders[SEGMENTATION] / "scene0.png").read_bytes())
    before, found = image.read_bytes(), predictors(SEGMENTATION)(image)
    (tmp_path / "link.png").symlink_to(image)
    own = "is the input of this result"
    for target, said in ((image, own), (tmp_path / "link.png", own), (tmp_path, own),
                         (tmp_path / "a.xyz", "not written as .xyz; expected"),
                         (tmp_path / "no" / "a.png", "cannot be written: .*make the folder first"),
                         (image / "folder", "cannot be written")):
        with pytest.raises(UserError, match=said) as caught:
            found.save(target)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="no class 'rong'; there are background"):
        found.mask("rong")
    assert image.read_bytes() == before and {file.name for file in tmp_path.iterdir()} == {"a.png", "link.png"}


def test_a_task_of_ones_own_says_what_it_lacks():
    import toy
    with pytest.raises(UserError, match="line does not predict in Python"):
        toy.make().generate(3)
