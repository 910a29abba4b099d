"""`jea test --attention`: drawings beside the pictures, in the report, and numbers."""
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jea.commands import cli
from jea.errors import UserError
from jea.metrics.detection import tools

WEIGHTS = Path(__file__).parents[2] / "weights"
DEMOS = {
    "segmentation_eanet_tiny_shapes": (["--limit", "12"], ["linu"]),
    "classification_eamlp_tiny_shapes": (["--limit", "2"], ["tokens_to_token.attention1.attn", "blocks.2.attn"]),
    "point_classification_ea_pct_tiny_solids": (["--limit", "2"], ["pt_last.sa1", "pt_last.sa4"]),
    "part_segmentation_ea_pct_tiny_solids": (["--limit", "2"], ["sa1", "sa4"]),
    "generation_ea_sagan_tiny_plain_shapes": (["eval.metrics=false"], ["class 0, blocks.2.0", "class 4, blocks.2.0"]),
    "instance_segmentation_ea_maskrcnn_tiny_shapes": (["--limit", "2"], ["body.attention"]),
}


@pytest.fixture(autouse=True)
def home(demo_home, monkeypatch):
    monkeypatch.setenv("JEA_HOME", str(demo_home))


@pytest.mark.parametrize("config", DEMOS)
def test_every_demo_draws_it(config, tmp_path, capsys):
    options, layers = DEMOS[config]
    if config.startswith("instance"):
        try:
            tools()
        except UserError:
            pytest.skip("no pycocotools")
    assert cli.main(["test", "--config", config, "--attention", "--json", "--out", str(tmp_path), *options]) == 0
    rows = {row["layer"]: row for row in json.loads(capsys.readouterr().out)["attention"]}
    assert set(layers) <= set(rows)
    for row in rows.values():
        numbers = [value for key, value in row.items() if key != "layer"]
        assert len(numbers) == 5 and all(0 <= number <= 1 for number in numbers)
        assert row["mass of the most used"] >= row["mass of the least used"]
    files = list(tmp_path.glob("attention*/*.png")) or [tmp_path / "attention.png"]
    for file in files:
        pixels = np.array(Image.open(file)).astype(int)
        heat = (pixels[..., 0] > pixels[..., 2] + 60) & (pixels[..., 1] > pixels[..., 2])  # oranges
        assert pixels.shape[1] == 1038 and heat.sum() > 500
    assert {file.name for file in tmp_path.glob("pictures/*.png")} == {file.name for file in files} - {"attention.png"}
    report = (tmp_path / "report.html").read_text()
    section = report[report.index("<h2>What the attention looks at</h2>"):]
    section = section[:section.index("</section>")]
    texts = re.findall(r'alt="([^"]*)"', section)
    assert len(texts) == len(files) and all(re.search(r"memory \d+ [\d.]+%.*maps differ by", text) for text in texts)
    assert all(name in texts[0] for name in layers) and "<h2>Attention</h2>" in report
    if config == "segmentation_eanet_tiny_shapes":  # README's picture is one of them (WebP, quality 90)
        ours, readmes = (np.array(Image.open(file).convert("RGB")).astype(int)
                         for file in (tmp_path / "attention" / "val_0011.png", WEIGHTS / "demo_attention.webp"))
        assert ours.shape == readmes.shape and np.abs(ours - readmes).mean() < 3  # JPEG decoders differ a little, too


def test_own_files(tmp_path, capsys):
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 255, (40, 70, 3), np.uint8)).save(tmp_path / "photo.jpg")
    np.savetxt(tmp_path / "cloud.txt", random.standard_normal((300, 3)))
    for config, file in (("segmentation_eanet_tiny_shapes", "photo.jpg"),
                         ("classification_eamlp_tiny_shapes", "photo.jpg"),
                         ("point_classification_ea_pct_tiny_solids", "cloud.txt"),
                         ("part_segmentation_ea_pct_tiny_solids", "cloud.txt")):
        out = tmp_path / config
        assert cli.main(["test", "--config", config, "--attention", "--input", str(tmp_path / file), "--out", str(out),
                         "--json"]) == 0
        entry, = json.loads(capsys.readouterr().out)["files"]
        drawn = out / f"{file.partition('.')[0]}_attention.png"
        assert entry["attention"] == str(drawn) and Image.open(drawn).width == 1038
    assert cli.main(["test", "--input", str(tmp_path / "photo.jpg"), "--out", str(tmp_path / "without")]) == 0
    assert not list((tmp_path / "without").glob("*attention*"))


def test_no_drawing_is_written_over_an_input(tmp_path, capsys):
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg")
    Image.new("RGB", (30, 20)).save(tmp_path / "a_attention.png")
    before = (tmp_path / "a_attention.png").read_bytes()
    assert cli.main(["test", "--attention", "--input", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert "would overwrite the input" in capsys.readouterr().err
    assert (tmp_path / "a_attention.png").read_bytes() == before


@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_a_model_without_external_attention_is_refused_in_a_line(options, capsys):
    assert cli.main(["test", "--config", "point_classification_ea_pct_tiny_solids", "--attention",
                     "model.attention=self", *options]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "--attention: ea_pct_tiny_cls as configured has no external attention; leave it out" in said
