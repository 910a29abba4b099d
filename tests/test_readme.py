"""Every command of every page runs: the demos' for real, those that need data or time as dry runs or with --help."""
import re
import shlex
import subprocess
import sys
from pathlib import Path

import config_keys
import numpy as np
import pytest
import yaml

import jea
from jea.checkpoint import save_npz
from jea.commands import cli

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "configs/README.md", "weights/README.md", "jea/README.md", "jea/ops/README.md",
         "tests/README.md", "tests/bench/README.md", "tests/gpu/README.md")
TEXTS = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}
README = TEXTS["README.md"]
BLOCKS = [block for text in TEXTS.values() for block in re.findall(r"^ *```(\w+)\n(.*?)^ *```", text, re.M | re.S)]
COMMANDS = list(dict.fromkeys(re.sub(" +# .*", "", line.strip()) for language, text in BLOCKS if language == "bash"
                              for line in text.splitlines() if line.strip()))
DEMO_SCORE = float(re.search(r"It prints `mIoU: ([\d.]+)`", README).group(1))
BUNDLED = {name: entry for name, entry in yaml.safe_load((ROOT / "weights" / "index.yaml").read_text()).items()
           if name != "downloads"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the commands run: the repository's files, a checkpoint with upstream's names and a picture. Of the other
    weights a dry run only looks whether they can be read."""
    path = tmp_path_factory.mktemp("readme")
    for name in ("configs", "weights", "train.py", "test.py"):
        (path / name).symlink_to(ROOT / name)
    jea.save_weights(jea.create_model("eanet_resnet101"), path / "eanet.pth")
    for command in COMMANDS:
        names = re.findall(r"--weights (\S+)", command)
        if "--resume" in command:
            config, = re.findall(r"--config (\S+)", command)
            names.append(f"runs/{Path(config).stem}/last.npz")
        for name in names:
            files = [f"{name}/model={n}-best-weights-step=1.pth" for n in "GD"] if name.endswith("/") else [name]
            for file in files:
                (path / file).parent.mkdir(parents=True, exist_ok=True)
                if not (path / file).exists():
                    save_npz(path / file, {"weight": np.zeros(1, np.float32)})
    from PIL import Image
    Image.new("RGB", (60, 40), (90, 120, 30)).save(path / "photo.jpg")
    for split, colour in (("train", 10), ("val", 200)):
        for kind, picture in (("images", Image.new("RGB", (20, 10), (colour, 0, 0))),
                              ("labels", Image.new("L", (20, 10)))):
            (path / "mydata" / kind / split).mkdir(parents=True)
            picture.putpixel((0, 0), (1, 1, 1) if kind == "images" else 1)
            picture.save(path / "mydata" / kind / split / "a.png")
    (path / "mydata" / "classes.yaml").write_text("- background\n- road\n")
    return path


@pytest.fixture
def run(folder, demo_home, monkeypatch, capsys):
    """run(command) -> returncode, stdout, stderr; in this process, which has Jittor and the kernels, unless `apart`."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("JEA_HOME", str(demo_home))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # for processes of their own

    def run_command(command, *, apart=False):
        words = shlex.split(command)
        if apart:
            words[:1] = {"python": [sys.executable], "jea": [sys.executable, "-m", "jea"]}[words[0]]
            return subprocess.run(words, capture_output=True, text=True, timeout=600)
        words = [words[1].replace(".py", ""), *words[2:]] if words[0] == "python" else words[1:]
        capsys.readouterr()
        return subprocess.CompletedProcess(command, cli.main(words), *capsys.readouterr())
    return run_command


def test_the_commands_are_found():
    assert len(COMMANDS) >= 12 and any("--split test" in c for c in COMMANDS)
    assert COMMANDS[:2] == ["pip install -e . && python test.py", "pip install -e '.[test]' && python -m pytest"]
    assert "python -m pytest" in (ROOT / ".ci" / "run").read_text()


def is_demo(command):
    return bool(re.fullmatch(r"python test.py --config (\w+)", command)) and command.split()[-1] in BUNDLED


@pytest.mark.usefixtures("no_orthogonal_start")
@pytest.mark.parametrize("command", [c for c in COMMANDS if re.match(r"python t\w+\.py", c) and not is_demo(c)])
def test_commands_that_need_data_or_time(command, run, folder):
    root = re.search(r" --data (\S+)", command)
    if root and not (folder / root.group(1)).exists():  # it is not here, which is told before anything else is done
        done = run(command + " --dry-run")
        assert done.returncode == 2 and root.group(1) in done.stderr and "Traceback" not in done.stderr, done.stderr
        command = command.replace(root.group(0), "")
    done = run(command + " --dry-run", apart="--device" in command)  # the device is the process's
    if "--device cuda" in command and done.returncode:
        assert "no GPU" in done.stderr or "CUDA" in done.stderr, done.stderr
        return
    assert done.returncode == 0 and "dry run" in done.stderr, done.stderr


@pytest.mark.parametrize("command", [c for c in COMMANDS if is_demo(c)])
def test_bundled_weights_score_what_the_readme_says(command, run, tmp_path):
    entry = BUNDLED[command.split()[-1]]
    (name, wanted), = entry["metrics"].items()
    assert f"| `{command}` | `{name}: {wanted:.4f}` |" in README, (name, wanted)
    done = run(f"{command} --out {tmp_path}")
    assert done.returncode == 0, done.stderr
    score = float(re.search(rf"^{name}: ([-\d.]+)$", done.stdout, re.M).group(1))
    assert abs(score - wanted) < entry.get("tolerance", 0.005), (score, wanted)
    assert (ROOT / "weights" / entry["file"]).stat().st_size < 4e6


def test_other_commands(run):
    commands = [c for c in COMMANDS if c.startswith("jea ")]
    assert len(commands) >= 7 and "jea bench --cost" in commands
    for command in commands:  # in their order: each reads what the one before wrote
        done = run(command)
        assert done.returncode == 0, done.stderr
        if "convert" in command:
            assert "bit-identical" in done.stdout, done.stdout


def test_demo_prints_the_score_of_the_readme(run, tmp_path):
    done = run(f"python test.py --out {tmp_path}", apart=True)
    assert done.returncode == 0, done.stderr
    score = float(re.search(r"^mIoU: ([\d.]+)$", done.stdout, re.M).group(1))
    assert score >= 0.90 and abs(score - DEMO_SCORE) < 0.005, (score, DEMO_SCORE)  # JPEG decoders differ a little
    index = BUNDLED["segmentation_eanet_tiny_shapes"]
    assert abs(index["metrics"]["mIoU"] - DEMO_SCORE) < 0.0002
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 20


def test_demo_on_a_photo(run, tmp_path):
    done = run(f"python test.py --input photo.jpg --out {tmp_path}")
    assert done.returncode == 0 and (tmp_path / "photo_overlay.png").is_file(), done.stderr


def test_training_starts_as_the_readme_says(run, tmp_path):
    done = run(f"python train.py --out {tmp_path} --stop-after 2", apart=True)
    assert done.returncode == 0 and (tmp_path / "last.npz").is_file(), done.stderr


def test_the_api_example(folder, monkeypatch, capsys):
    from jea._jittor import jt
    code, = re.findall(r"^```python\n(.*?)^```", README, re.M | re.S)
    assert 9 <= len([line for line in code.splitlines() if line.strip()]) <= 12
    monkeypatch.chdir(folder)
    scope = {"images": jt.randn(1, 3, 65, 65), "features": jt.randn(2, 512, 5, 5)}
    exec(code, scope)
    numbers = re.findall(r"^print\(round\(.*\) +# ([\d.]+)", code, re.M)
    printed = [line for line in capsys.readouterr().out.splitlines() if re.fullmatch(r"[\d.]+", line)]
    assert len(printed) == len(numbers) and all(abs(float(a) - float(b)) < 0.02 for a, b in zip(printed, numbers))
    assert scope["logits"].shape == [1, 21, 65, 65] and scope["attention_map"].shape == [2, 64, 25]
    assert scope["heads"](jt.randn(2, 7, 384)).shape == [2, 7, 384]
    fast, logits = scope["fast"](scope["images"]).numpy(), scope["logits"].numpy()
    assert abs(fast - logits).max() < 1e-5 * abs(logits).max()


def test_what_the_examples_in_python_print(folder, monkeypatch, capsys):
    """The comment behind each print is what it prints, but for the last digits."""
    section = TEXTS["configs/README.md"].partition("## In Python")[2].partition("## Memory and")[0]
    code, = re.findall(r"^```python\n(.*?)^```", section, re.M | re.S)
    wanted = [text for line, text in re.findall(r"^(print\(.*\))  +# (.+)$", code, re.M)]
    assert len(wanted) == code.count("print(") == 3
    monkeypatch.chdir(folder)
    scope = {}
    exec(code, scope)
    said = capsys.readouterr().out.splitlines()
    number = re.compile(r"\d+\.\d+")
    for line, text in zip(said, wanted):
        assert number.sub("#", line) == number.sub("#", text)
        assert all(abs(float(a) - float(b)) < 0.5 for a, b in zip(number.findall(line), number.findall(text))), line
    assert len(said) == 3 and (folder / "ball.png").read_bytes().startswith(b"\x89PNG")
    assert scope["overlay"].shape == (40, 60, 3) and scope["found"].source.name == "photo.jpg"


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("python tests/")])
def test_scripts_explain_themselves(command):
    done = subprocess.run([sys.executable, ROOT / command.split()[1], "--help"], capture_output=True, text=True,
                          timeout=60)
    assert done.returncode == 0 and "usage:" in done.stdout, done.stderr


def test_the_keys_of_configs_are_those_of_the_code():
    assert config_keys.page_with(config_keys.keys_text()) == TEXTS["configs/README.md"], \
        "run python tests/support/config_keys.py"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", TEXTS[page]):
        if not target.startswith("https://"):
            assert (ROOT / page).parent.joinpath(target).exists(), target


def test_the_chinese_page_says_what_the_english_ones_say():
    """Its commands, and the scores in them, are those of the pages above; so one run of each is enough."""
    page = (ROOT / "jea" / "README.zh-CN.md").read_text(encoding="utf-8")
    commands = [line.strip() for text in re.findall(r"^ *```bash\n(.*?)^ *```", page, re.M | re.S)
                for line in text.splitlines() if line.strip()]
    assert len(commands) >= 12 and set(commands) <= set(COMMANDS), set(commands) - set(COMMANDS)
    scores = re.findall(r"`[\w ]+: [\d.]+`", page)
    assert len(set(scores)) == len(BUNDLED) and all(score in README for score in scores)
    rows = re.findall(r"^\| [^|]+ \| (`python test\.py[^|]*`) \| (`[^|]+`) \|$", page, re.M)
    assert len(rows) == len(BUNDLED) and all(f"| {command} | {score} |" in README for command, score in rows)
    for target in re.findall(r"\]\(([^)#]+)\)", page):
        assert target.startswith("https://") or (ROOT / "jea" / target).exists(), target


def test_lengths():
    assert len(README.splitlines()) <= 180


def test_a_model_a_data_set_and_a_task_of_ones_own(tmp_path, monkeypatch, capsys):
    page = TEXTS["jea/README.md"]
    section = page[page.index("## Adding a model"):page.index("## Set-up in detail")]
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", section, re.M | re.S)
    model, data, task = [text for language, text in blocks if language == "python"]
    (tmp_path / "mine.py").write_text(f"{model}\n{task}")
    (tmp_path / "points.py").write_text(data)
    config, = [text for language, text in blocks if language == "yaml"]
    (tmp_path / "line.yaml").write_text(config)
    commands, = [text for language, text in blocks if not language]
    monkeypatch.chdir(tmp_path)
    for command in commands.splitlines():
        words = shlex.split(command)
        assert cli.main([words[1].replace(".py", ""), *words[2:]]) == 0
    said = capsys.readouterr().out
    assert all(float(error) < 0.01
               for error in re.findall(r"^error: ([\d.e-]+)$", said, re.M)) and said.count("error: ") == 2
    assert (tmp_path / "runs/line/report.html").is_file() and (tmp_path / "runs/line/best.npz").is_file()


def test_the_architecture_table_names_what_is_there():
    page = TEXTS["jea/README.md"]
    table = page[page.index("## Architecture"):page.index("## Adding a model")]
    for name in re.findall(r"`(jea/[\w/.]+|\w+\.py)`", table):
        assert any((folder / name).exists() for folder in (ROOT, ROOT / "jea", ROOT / "jea" / "commands")), name
    for part in (ROOT / "jea").iterdir():
        if part.is_dir() and part.name != "__pycache__":
            assert f"`jea/{part.name}/`" in table, part.name
