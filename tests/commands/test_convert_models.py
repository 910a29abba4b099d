"""jea convert on files that say which model they hold: whose names are written, and arguments that are wrong or
huge."""
import json
import subprocess
import sys

import checkpoint_forge as forge
import numpy as np
import pytest

from jea.checkpoint import read, save_npz
from jea.checkpoint.loading import write
from jea.commands import convert

OURS = ("backbone.weight", "head.bias")


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A small model's weights under jea's own names, and its tensors."""
    from jea.models import create_model
    folder = tmp_path_factory.mktemp("demo")
    model = create_model("eanet_tiny", num_classes=3)
    tensors = {key: var.numpy() for key, var in model.state_dict().items()}
    meta = {"model": {"name": "eanet_tiny", "num_classes": 3}, "step": 7}
    save_npz(folder / "demo.npz", tensors, meta)
    write(folder / "demo.safetensors", tensors, meta=meta)
    write(folder / "demo.pkl", tensors)
    write(folder / "demo.pth", tensors)
    return folder, tensors


def converted(source, target, *more):
    assert convert.main([str(source), str(target), *more]) == 0
    return set(read(target).tensors)


@pytest.mark.parametrize("source", ["demo.npz", "demo.safetensors"])
def test_one_rule_for_files_that_say_their_model(demo, tmp_path, capsys, source):
    folder, ours = demo
    from jea.models import create_model
    key_map = next(key_map for key_map in create_model("eanet_tiny").key_maps if key_map.writable)
    theirs = {key_map.to_theirs(key) for key in ours}
    assert theirs != set(ours)
    for target in ("x.npz", "x.pkl", "x.safetensors"):
        assert converted(folder / source, tmp_path / target) == set(ours)
        assert "names: jea's own (of the model eanet_tiny)" in capsys.readouterr().out
        assert converted(folder / source, tmp_path / target, "--names", "upstream") == theirs
        assert f"names: upstream's, {key_map.name} (of the model eanet_tiny)" in capsys.readouterr().out
    assert converted(folder / source, tmp_path / "x.pth") == theirs
    assert "names: upstream's" in capsys.readouterr().out
    assert converted(folder / source, tmp_path / "y.pth", "--names", "jea") == set(ours)
    assert "names: jea's own" in capsys.readouterr().out


@pytest.mark.parametrize("source", ["demo.pkl", "demo.pth"])
def test_files_that_do_not_say_their_model(demo, tmp_path, capsys, source):
    folder, ours = demo
    for target in ("x.npz", "y.pkl", "x.safetensors", "y.pth"):
        assert converted(folder / source, tmp_path / target) == set(ours)
        out = capsys.readouterr().out
        assert "names: as in the file, which does not say its model (--model NAME translates them)" in out
    for names in ("jea", "upstream"):
        assert convert.main([str(folder / source), str(tmp_path / "z.npz"), "--names", names]) == 2
        said = capsys.readouterr().err
        assert f"cannot be translated to {names}'s; add --model NAME" in said and said.count("\n") == 1
    assert converted(folder / source, tmp_path / "z.pth", "--model", "eanet_tiny") != set(ours)


def test_a_prefix_before_all_names(demo, tmp_path, capsys):
    folder, ours = demo
    for prefix in ("model.", "my_net."):
        write(tmp_path / "in.pth", {prefix + key: array for key, array in ours.items()})
        assert converted(tmp_path / "in.pth", tmp_path / "o.npz", "--model", "eanet_tiny") == set(ours)
        assert f"stripped {'Lightning' + chr(39) + 's ' if prefix == 'model.' else ''}{prefix!r} from every key" \
            in capsys.readouterr().out


ARGUMENTS = [
    ("eanet_tiny", {"num_classes": "three"}, "num_classes: is 'three'; expected an integer"),
    ("eanet_tiny", {"num_classes": [1]}, "expected an integer"), ("eanet_tiny", {"num_classes": None}, "expected an "
                                                                                                       "integer"),
    ("eanet_tiny", {"nonsense": 1}, "nonsense: unknown"), ("eanet_tiny", {"output_stride": 7}, "output_stride"),
    ("eanet_tiny", {"dropout": {}}, "expected a number"), ("eanet_tiny", {"num_classes": 10 ** 9}, "larger than "
                                                                                                   "anything"),
    ("eanet_tiny", {"num_classes": -5}, "says that it is eanet_tiny"),
    ("eanet_tiny", {"num_classes": True}, "an integer"),
    ("ea_pct_tiny_cls", {"layers": 10 ** 6}, "larger than anything"), ("ea_pct_cls", {"samples": ["a", {}]}, "samples"),
    ("ea_pct_cls", {"samples": []}, "says that it is ea_pct_cls"), ("ea_pct_cls", {"samples": 5}, "samples"),
    ("ea_pct_cls", {"samples": [1] * 1000}, "larger than anything"), ("ea_pct_cls", {"width": 0.5}, "width"),
    ("eamlp_tiny", {"img_size": 1_000_000}, "larger than anything"), ("eamlp_tiny", {"img_size": 0}, "eamlp_tiny"),
    ("eamlp_tiny", {"stages": [[1, 2], "a"]}, "eamlp_tiny"), ("eamlp_tiny", {"img_size": [224]}, "an integer"),
    ("eamlp_tiny", {"tokens": "nonsense"}, "eamlp_tiny"),
    ("ea_sagan_tiny", {"discriminator_attention": ["a"]}, "ea_sagan"),
    ("ea_sagan_tiny", {"width": 4096}, "MB of memory|its constructor does not take|does not fit"),
    ("inception_fid", {"a": 1}, "unknown"), ("no_such_model", {}, "unknown model"),
]


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_arguments_of_the_file_that_are_wrong_or_huge(tmp_path, suffix):
    """One process for all, as a person runs the command: one line, status 2, no traceback, and little memory."""
    cases = []
    for number, (name, kwargs, reason) in enumerate(ARGUMENTS):
        path = tmp_path / f"{number}{suffix}"
        write(path, {"w": np.zeros(300, np.float32)}, meta={"model": {"name": name, **kwargs}})
        cases.append((str(path), reason))
    code = """
import contextlib, io, json, re, resource, sys
from jea.commands import convert
cases = json.load(open(sys.argv[1]))
for path, reason in cases:
    said, printed = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(printed):
        status = convert.main([path, path + ".pth"])
    said = said.getvalue()
    assert status == 2 and re.search(reason, said) and "Traceback" not in said, (path, reason, said)
    assert said.count("\\n") == 1 or "does not fit the model" in said, said
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "cases.json"], capture_output=True, text=True,
                          env=forge.ENVIRONMENT, timeout=600)
    assert done.returncode == 0, done.stdout[-500:] + done.stderr[-3000:]
    assert int(done.stdout.split()[-1]) < 3_000_000  # kB


@pytest.mark.parametrize("name", ["os:system", "my_module:MyModel", "a.b", "../x", "", "a b"])
@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_a_file_cannot_have_a_module_imported(tmp_path, capsys, monkeypatch, name, suffix):
    """--model takes "module:Class" from the command line; from a file it is a text."""
    (tmp_path / "my_module.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    write(tmp_path / f"x{suffix}", {"w": np.zeros(3, np.float32)}, meta={"model": {"name": name}})
    assert convert.main([str(tmp_path / f"x{suffix}"), str(tmp_path / "o.pth")]) == 0
    said = capsys.readouterr().out
    assert "which is not made: give --model" in said and "names: as in the file" in said
    assert "my_module" not in sys.modules


@pytest.mark.parametrize("model", [b'"eanet_tiny"', b"{", b'{"name": 5}', b'{"name": ["eanet_tiny"]}', b"[" * 200,
                                   b'{"name": "eanet_tiny", "name": "x"}'])
def test_odd_models_in_a_safetensors_file(tmp_path, model):
    write(tmp_path / "x.safetensors", {"w": np.zeros(3, np.float32)}, meta={"model": model.decode()})
    assert convert.main([str(tmp_path / "x.safetensors"), str(tmp_path / "o.npz")]) == 0


@pytest.mark.parametrize("suffix", [".pth", ".npz", ".safetensors", ".pkl"])
def test_names_that_are_no_text(tmp_path, capsys, suffix):
    body = forge.mapping({"net": b"}X\4\0\0\0a\xed\xa0\x80" + forge.tensor("0", "FloatStorage", 1, 0, (1,), (1,))
                          + b"s"})
    source = forge.torch_zip(tmp_path / "in.pth", body, {"0": bytes(4)})
    assert convert.main([str(source), str(tmp_path / f"o{suffix}")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and r"a\ud800 is not valid text, so it cannot name a tensor" in said
    assert not (tmp_path / f"o{suffix}").exists()
