"""The command line: the demo, errors as one line, and dry runs."""
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jea import environment
from jea.checkpoint import load_npz, save_npz
from jea.commands import cli, test, train
from jea.commands.common import console
from jea.config import load
from jea.data import make_shapes
from jea.draw.palettes import voc_palette
from jea.errors import ConfigError
from jea.files import find_config

ROOT = Path(__file__).parent.parent.parent
CONFIGS = sorted(p.stem for p in (ROOT / "configs").glob("*.yaml"))


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp("data") / "shapes", num_train=4, num_val=3, num_test=2)


@pytest.fixture(autouse=True)
def home(demo_home, monkeypatch):
    monkeypatch.setenv("JEA_HOME", str(demo_home))


@pytest.mark.usefixtures("no_orthogonal_start")
@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("main", [train.main, test.main])
def test_dry_run_of_every_config(config, main, capsys):
    arguments = ["--config", config, "--dry-run"]
    backbone = load(find_config(config))["train"].get("init_weights")
    if backbone and main is train.main:  # of another project, to be downloaded first
        assert main(arguments) == 2 and f"{backbone}: no such file" in capsys.readouterr().err
        arguments.append("train.init_weights=null")
    assert main(arguments) == 0
    said = capsys.readouterr().err
    assert "dry run" in said and "parameters" in said


def test_demo_weights_score_on_a_few_pictures(shapes, tmp_path, capsys):
    assert test.main(["--data", str(shapes), "--out", str(tmp_path), "--json", "data.name=voc", "data.num_classes=7",
                          "data.scales=null"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["images"] == 3 and result["mIoU"] > 0.6 and set(result) >= {"pAcc", "mAcc", "fwIoU", "IoU"}
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 3


def test_submission_for_the_voc_server(shapes, tmp_path, capsys):
    arguments = ["--data", str(shapes), "--out", str(tmp_path), "--split", "test", "data.name=voc",
                 "data.num_classes=7",
                 "data.scales=null", "eval.pictures=0"]
    assert test.main(arguments) == 0
    folder = tmp_path / "results/VOC2012/Segmentation/comp6_test_cls"
    files = sorted(folder.glob("*.png"))
    assert len(files) == 2
    picture = Image.open(files[0])
    assert picture.mode == "P"
    assert np.array_equal(np.array(picture.getpalette()).reshape(-1, 3)[:21], voc_palette()[:21])
    with tarfile.open(tmp_path / "results.tar") as tar:
        names = [f"results/VOC2012/Segmentation/comp6_test_cls/{file.name}" for file in files]
        assert tar.getnames() == names
        assert tar.extractfile(names[0]).read() == files[0].read_bytes()
    first = (tmp_path / "results.tar").read_bytes()
    assert test.main(arguments) == 0 and (tmp_path / "results.tar").read_bytes() == first


def test_pictures_of_any_kind(tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (40, 7, 3), np.uint8)).save(folder / "narrow.png")
    Image.fromarray(rng.integers(0, 255, (31, 50), np.uint8)).save(folder / "grey.jpg")
    Image.fromarray(rng.integers(0, 255, (20, 30, 4), np.uint8), "CMYK").save(folder / "cmyk.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    Image.fromarray(rng.integers(0, 255, (24, 48, 3), np.uint8)).save(folder / "turned.jpg", exif=exif)
    assert test.main(["--input", str(folder), "--out", str(tmp_path / "out"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 4
    sizes = {p.stem: Image.open(tmp_path / "out" / f"{p.stem}.png").size for p in folder.iterdir()}
    assert sizes == {"narrow": (7, 40), "grey": (50, 31), "cmyk": (30, 20), "turned": (24, 48)}
    assert (tmp_path / "out" / "grey_overlay.png").is_file()


def test_a_picture_is_not_overwritten_by_its_prediction(tmp_path, capsys):
    Image.fromarray(np.full((40, 56, 3), 128, np.uint8)).save(tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    assert test.main(["--input", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert f"would overwrite the input {tmp_path / 'a.png'}; choose another --out" in capsys.readouterr().err
    assert (tmp_path / "a.png").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_multi_scale_runs_through_the_same_path(tmp_path, capsys):
    Image.fromarray(np.full((40, 56, 3), 128, np.uint8)).save(tmp_path / "a.png")
    assert test.main(["--input", str(tmp_path / "a.png"), "--out", str(tmp_path / "out"), "--multi-scale"]) == 0
    assert "a.png ->" in capsys.readouterr().out


@pytest.mark.parametrize("arguments, said", [
    (["--config", "nothing"], "no such config"),
    (["--device", "cuda"], "--device cuda: "),
    (["--input", "no/such/picture.jpg"], "no/such/picture.jpg: no such picture or folder"),
    (["--weights", "no.pth"], "no.pth"),
    (["--data", "/nowhere", "data.name=voc"], "/nowhere: no VOC data there"),
    (["--config", "segmentation_eanet_resnet50_voc"], "no weights are bundled for this config: say --weights FILE"),
    (["model.output_stride=7"], "output_stride is 7; expected 8 or 16"),
    (["model.num_classes=5"], "does not fit the model"),
])
def test_errors_are_one_message_without_traceback(arguments, said, tmp_path, capsys):
    if "--device" in arguments and environment.prepare().device == "cuda":
        pytest.skip("this machine has a GPU")
    arguments = arguments + (["--out", str(tmp_path)] if "--out" not in arguments else [])
    assert test.main(arguments) == 2
    err = capsys.readouterr().err
    assert said in err and "jea test: error: " in err and "Traceback" not in err


@pytest.mark.parametrize("command", [
    ["train", "--config", "nothing"], ["test", "--config", "nothing"], ["data", "check", "nothing"],
    ["inspect", "no.pth"], ["convert", "no.pth", "x.npz"],
    ["convert", "weights/eamlp_tiny_shapes.npz", "x.npz", "--model", "eamlp"],
    ["doctor", "--device", "cuda"], ["bench", "--out", "setup.py/bench"]])
def test_every_command_ends_with_2_on_errors(command, capsys, monkeypatch):
    if "cuda" in command and environment.prepare().device == "cuda":
        pytest.skip("this machine has a GPU")
    monkeypatch.chdir(ROOT)
    assert cli.main(command) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"jea {command[0]}: error: ") and "Traceback" not in err


def test_what_is_no_error_of_the_user_keeps_its_traceback():
    def broken(arguments):
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError):
        console.run("test", broken, None)
    assert console.run("test", lambda arguments: None, None) == 0


@pytest.mark.parametrize("error", [ValueError("no user's mistake"), KeyError("x"), TypeError("y")])
def test_a_fault_in_a_constructor_keeps_its_traceback(error, tmp_path, monkeypatch):
    """Every ValueError of a constructor was once told as the user's mistake."""
    def broken(self, *arguments, **keywords):
        raise error
    from jea.models.eanet import EANet
    monkeypatch.setattr(EANet, "__init__", broken)
    for main in (train.main, test.main):
        with pytest.raises(type(error)):
            main(["--dry-run", "--out", str(tmp_path)])
    with pytest.raises(type(error)):
        source = str(ROOT / "weights/eanet_tiny_shapes.npz")
        cli.main(["convert", source, str(tmp_path / "x.npz"), "--model", "eanet_tiny"])


def test_device_and_tf32_are_decided_before_the_config_is_read(tmp_path, monkeypatch):
    """A task of one's own imports Jittor when the config is checked, and CUDA's libraries read TF32 when they load."""
    steps = []
    monkeypatch.setattr("jea.environment.choose_device", lambda wanted: steps.append(wanted) or "cpu")
    monkeypatch.setattr("jea.environment.allow_tf32", lambda: steps.append("tf32"))

    def load(*arguments, **keywords):
        steps.append("config")
        raise ConfigError("end")
    monkeypatch.setattr("jea.config.load", load)
    for main in (train.main, test.main):
        assert main(["--device", "cpu", "--tf32", "--dry-run"]) == 2
    assert steps == ["cpu", "tf32", "config"] * 2


@pytest.mark.parametrize("config", ["classification_eamlp_tiny_shapes", "generation_ea_sagan_tiny_plain_shapes"])
def test_a_check_of_no_part_of_the_data_is_an_error(config, capsys):
    """It once read nothing and found no problems."""
    command = ["data", "check", config, "--num-workers", "0", "data.split=null", "eval.split=null"]
    assert cli.main(command) == 2
    said = capsys.readouterr()
    assert "null" in said.err and "no problems" not in said.out


@pytest.mark.parametrize("main", [train.main, test.main])
def test_a_dry_run_reads_the_weights(main, tmp_path, capsys):
    config = ["--config", "classification_eamlp_tiny_shapes", "--dry-run", "--out", str(tmp_path)]
    weights = str(ROOT / "weights/eamlp_tiny_shapes.npz")
    assert main([*config, "--weights", weights]) == 0
    assert f"{weights} (npz, 86 tensors); data: " in capsys.readouterr().err
    cut = tmp_path / "cut.npz"
    cut.write_bytes(Path(weights).read_bytes()[:-300])
    (tmp_path / "page.pth").write_text("<html>")
    for path, said in ((tmp_path / "no.pth", "no such file"), (cut, "incomplete zip archive"),
                       (tmp_path / "page.pth", "web page"), (tmp_path, "is a folder")):
        assert main([*config, "--weights", str(path)]) == 2
        assert f"error: {path}: " in (err := capsys.readouterr().err) and said in err


def test_a_dry_run_of_resuming_reads_what_is_there(tmp_path, capsys):
    command = ["--dry-run", "--resume", "--out", str(tmp_path)]
    assert train.main(command) == 2
    assert f"error: {tmp_path / 'last.npz'}: no such file" in capsys.readouterr().err
    save_npz(tmp_path / "last.npz", {"model/a": np.zeros(1)}, {"kind": "training"})
    assert train.main(command) == 0
    assert f"would train on from {tmp_path / 'last.npz'} (npz, 1 tensors)" in capsys.readouterr().err


def test_weights_of_which_some_fit(shapes, tmp_path, capsys):
    command = ["--data", str(shapes), "--out", str(tmp_path), "--json", "--limit", "1", "data.name=voc",
               "eval.pictures=0", "data.num_classes=7", "data.scales=null"]
    tensors, _ = load_npz(ROOT / "weights/eanet_tiny_shapes.npz")
    tensors["fc3.bias"] = tensors.pop("fc2.bias")
    save_npz(tmp_path / "x.npz", tensors)
    command += ["--weights", str(tmp_path / "x.npz")]
    assert test.main(command) == 2
    assert "strict=False (train.py and test.py: --no-strict)" in capsys.readouterr().err
    assert test.main([*command, "--no-strict"]) == 0
    said = capsys.readouterr()
    assert f"{len(tensors) - 1} tensors loaded" in said.err and json.loads(said.out)["images"] == 1
    assert "1 not in the file:\n    fc2.bias\n  1 not in the model:\n    fc3.bias" in said.err


@pytest.mark.parametrize("config", ["classification_eamlp_tiny_shapes", "part_segmentation_ea_pct_tiny_solids"])
def test_scores_in_bfloat16(config, tmp_path, capsys):
    from jea.ops.convolution.conv import bfloat16_unavailable
    if bfloat16_unavailable():
        pytest.skip(bfloat16_unavailable())
    command = ["--config", config, "--out", str(tmp_path), "--json", "--limit", "100", "eval.num_workers=0"]
    scores = []
    for dtype in ("float32", "bfloat16"):
        assert test.main([*command, "--precision", dtype]) == 0
        scores.append(next(iter(json.loads(capsys.readouterr().out).values())))
    assert scores[0] == pytest.approx(scores[1], abs=0.01) and scores[0] > 0.8  # of 100; all of them agree to 0.002
    assert test.main([*command, "--precision", "bfloat16", "--no-fuse"]) == 2
    assert "leave --no-fuse out" in capsys.readouterr().err


def test_pixels_in_bfloat16(shapes):
    """The class of at least 999 pixels of 1000 is float32's."""
    import jea
    from jea._jittor import jt
    from jea.ops.convolution.conv import bfloat16_unavailable
    if bfloat16_unavailable():
        pytest.skip(bfloat16_unavailable())
    from jea.data.views.crops import normalise
    weights = ROOT / "weights" / "eanet_tiny_shapes.npz"
    found = jea.models.infer_kwargs("eanet_tiny", jea.checkpoint.read(weights).tensors)
    model = jea.create_model("eanet_tiny", **found)
    jea.load_weights(model, weights)
    model.eval()
    files = sorted(path for path in Path(shapes).rglob("*.*") if "mages" in str(path.parent))[:4]
    pictures = [normalise(np.asarray(Image.open(path).convert("RGB"))).transpose(2, 0, 1)[None] for path in files]
    found = []
    for dtype in ("float32", "bfloat16"):
        fused = jea.fuse(model, precision=dtype)
        found.append(np.concatenate([fused(jt.array(np.ascontiguousarray(picture,
                                                                         np.float32))).numpy().argmax(1).reshape(-1)
                                     for picture in pictures]))
    assert len(np.unique(found[0])) > 3 and (found[0] == found[1]).mean() >= 0.999


@pytest.mark.parametrize("config", ["classification_eamlp_tiny_shapes", "point_classification_ea_pct_tiny_solids",
                                    "part_segmentation_ea_pct_tiny_solids"])
def test_the_fused_network_is_tested_unless_it_must_not(config, tmp_path, capsys, monkeypatch):
    from jea.nn import fold as fused
    runs, guarded = [], fused.Fused._guarded
    monkeypatch.setattr(fused.Fused, "_guarded", lambda *a, **k: runs.append(1) or guarded(*a, **k))
    command = ["--config", config, "--out", str(tmp_path), "--json", "--limit", "20", "eval.num_workers=0"]
    command += [] if config.startswith("class") else ["eval.pictures=0"]
    results = []
    for more in ([], ["--no-fuse"]):
        runs.clear()
        assert test.main([*command, *more]) == 0
        result = json.loads(capsys.readouterr().out)
        results.append(next(iter(result.values())))
        assert bool(runs) == (not more)
    assert results[0] == pytest.approx(results[1], abs=0.01) and results[0] > 0.8


def test_options_and_overrides_in_any_order(tmp_path, capsys):
    arguments = ["train.lr=0.5", "--dry-run", "train.steps=2", "--out", str(tmp_path / "x"), "model.num_classes=7"]
    assert train.main(arguments) == 0
    assert f"output {tmp_path / 'x'}" in capsys.readouterr().err


def test_commands_and_help(capsys):
    assert cli.main(["--version"]) == 0
    assert cli.main(["--help"]) == 0 and "example" in capsys.readouterr().out
    assert cli.main(["tset"]) == 2 and "unknown command" in capsys.readouterr().err
    for command in ("train", "test", "convert", "inspect", "info"):
        with pytest.raises(SystemExit) as end:
            cli.main([command, "--help"])
        out = capsys.readouterr().out
        assert end.value.code == 0 and "example" in out and len(out.splitlines()) <= 50, command


def test_the_scripts_at_the_top_are_the_same_code():
    for name in ("train", "test"):
        text = (ROOT / f"{name}.py").read_text()
        assert f"from jea.commands.{name} import main" in text and len(text.splitlines()) <= 40
        done = subprocess.run([sys.executable, f"{name}.py", "--help"], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0 and f"jea {name}" in done.stdout


def test_convert_with_a_model_proves_every_tensor(write_pth, tmp_path, capsys):
    source, out, back = write_pth("eanet50_s16", wrap="net", prefix="module."), tmp_path / "x.npz", tmp_path / "b.pth"
    assert cli.main(["convert", str(source), str(out), "--model", "eanet_resnet50"]) == 0
    assert "bit-identical" in capsys.readouterr().out
    assert cli.main(["convert", str(out), str(back)]) == 0
    assert cli.main(["inspect", str(back)]) == 0
    assert "extractor.0.0.weight" in capsys.readouterr().out


def test_python_m_jea():
    done = subprocess.run([sys.executable, "-m", "jea", "--version"], cwd=ROOT, capture_output=True, text=True,
                          env=dict(os.environ))
    assert done.returncode == 0 and done.stdout.strip().count(".") == 2
