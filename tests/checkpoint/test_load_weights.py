"""Checkpoints into Jittor models and out of them."""

import numpy as np
import pytest

from jea._jittor import jt, nn
from jea.checkpoint import CheckpointError, KeyMap, load_npz, load_weights, read, save_npz, save_weights
from jea.checkpoint.loading import write

FULL = KeyMap(name="toy upstream", marker="extractor.", rules=(("extractor.0.", "backbone.conv."),
                                                               ("extractor.1.", "backbone.bn.")), drop=("crit.",))
PART = KeyMap(name="toy backbone", marker="stem.", rules=(("stem.", "backbone."),), drop=("fc.",), partial=("head.",))


class Backbone(nn.Module):
    def __init__(self):
        self.conv = nn.Conv(1, 2, 1)
        self.bn = nn.BatchNorm(2)


class Net(nn.Module):
    key_maps = (FULL, PART)

    def __init__(self):
        self.backbone = Backbone()
        self.head = nn.Linear(2, 3)
        self.sigma = jt.zeros(1)
        self.count = jt.array([5])


def values(seed=0):
    generator = np.random.default_rng(seed)
    return {"backbone.conv.weight": generator.random((2, 1, 1, 1), np.float32),
            "backbone.conv.bias": generator.random(2, np.float32),
            "backbone.bn.weight": generator.random(2, np.float32),
            "backbone.bn.bias": generator.random(2, np.float32),
            "backbone.bn.running_mean": generator.random(2, np.float32),
            "backbone.bn.running_var": generator.random(2, np.float32),
            "head.weight": generator.random((3, 2), np.float32),
            "head.bias": generator.random(3, np.float32), "sigma": generator.random(1, np.float32),
            "count": np.int32([9])}


def upstream(tensors):
    return {key.replace("backbone.conv.", "extractor.0.").replace("backbone.bn.", "extractor.1."): array
            for key, array in tensors.items()}


def state(model):
    return {key: var.numpy() for key, var in model.state_dict().items()}


def assert_equal(model, expected):
    got = state(model)
    assert set(got) == set(expected)
    for key, array in expected.items():
        assert got[key].dtype == array.dtype and got[key].tobytes() == array.tobytes(), key


@pytest.mark.parametrize("suffix", [".npz", ".pkl", ".pth", ".safetensors"])
@pytest.mark.parametrize("rename", [dict, upstream], ids=["our names", "their names"])
def test_load_from_every_format(tmp_path, suffix, rename):
    path = tmp_path / f"x{suffix}"
    write(path, rename(values()))
    model = Net()
    report = load_weights(model, path)
    assert_equal(model, values())
    assert len(report.loaded) == 10 and not report.missing and not report.unexpected
    assert report.key_map == ("toy upstream" if rename is upstream else "")
    assert f"{path}: 10 tensors loaded" in str(report)


def test_parameters_stay_what_they_are(tmp_path):
    """The same objects, with the same requires_grad: the optimizer that holds them goes on stepping them."""
    model = Net()
    model.head.bias.stop_grad()
    optimizer = nn.SGD(model.parameters(), 0.5)
    before = {key: (var, var.requires_grad, str(var.dtype)) for key, var in model.state_dict().items()}
    save_npz(tmp_path / "x.npz", values())
    load_weights(model, tmp_path / "x.npz")
    for key, var in model.state_dict().items():
        held, requires_grad, dtype = before[key]
        assert var is held and (var.requires_grad, str(var.dtype)) == (requires_grad, dtype), key
        assert any(var is other for other in optimizer.param_groups[0]["params"])
    assert not model.head.bias.requires_grad and model.head.weight.requires_grad
    optimizer.step(model.head.weight.sum())
    np.testing.assert_allclose(model.head.weight.numpy(), values()["head.weight"] - 0.5, rtol=1e-6)
    np.testing.assert_array_equal(model.head.bias.numpy(), values()["head.bias"])


def test_strict_lists_everything_and_changes_nothing(tmp_path):
    tensors = values()
    del tensors["head.bias"]
    tensors["head.wieght"] = tensors["head.bias2"] = np.zeros(1, np.float32)
    tensors["head.weight"] = np.zeros((4, 2), np.float32)
    tensors["count"] = np.float32([1.5])
    path = tmp_path / "x.npz"
    save_npz(path, tensors)
    model = Net()
    before = state(model)
    with pytest.raises(CheckpointError) as caught:
        load_weights(model, path)
    message = str(caught.value)
    assert message.startswith(f"{path}: does not fit the model: 1 missing, 2 unexpected, 2 of another shape or type")
    for part in ("    head.bias\n", "head.wieght (the nearest name in the model is head.weight)",
                 "head.weight: shape (4, 2) in the file, (3, 2) in the model",
                 "load what fits with strict=False (train.py and test.py: --no-strict).",
                 "count: type float32 in the file, int32 in the model"):
        assert part in message
    assert_equal(model, before)
    report = load_weights(model, path, strict=False)
    assert report.missing == ["head.bias"] and report.unexpected == ["head.wieght", "head.bias2"]
    assert len(report.mismatched) == 2 and len(report.loaded) == 7
    expected = {**before, **{key: values()[key] for key in report.loaded}}
    assert_equal(model, expected)
    assert "1 not in the file" in str(report) and "2 not in the model" in str(report)


def test_long_listings_are_cut(tmp_path):
    save_npz(tmp_path / "x.npz", {**values(), **{f"zzz.{i}": np.zeros(1) for i in range(5000)}})
    with pytest.raises(CheckpointError, match=r"\.\.\. and 4980 more") as caught:
        load_weights(Net(), tmp_path / "x.npz")
    assert len(str(caught.value).splitlines()) < 30


def test_backbone_files_leave_the_head_as_initialised(tmp_path):
    tensors = {key.replace("backbone.", "stem."): array for key, array in values().items()
               if key.startswith("backbone.")}
    tensors.update({"fc.weight": np.zeros((1000, 2), np.float32), "stem.bn.num_batches_tracked": np.array(3),
                    "sigma": values()["sigma"], "count": values()["count"]})
    write(tmp_path / "x.pth", tensors)
    model = Net()
    before = state(model)
    report = load_weights(model, tmp_path / "x.pth")
    assert report.initialised == ["head.weight", "head.bias"] and report.key_map == "toy backbone"
    assert report.dropped == ["fc.weight", "stem.bn.num_batches_tracked"]
    assert "left as initialised" in str(report) and "toy backbone" in str(report)
    assert_equal(model, {**values(), "head.weight": before["head.weight"], "head.bias": before["head.bias"]})


def test_an_unmapped_model_needs_no_key_maps(tmp_path):
    save_npz(tmp_path / "x.npz", {"weight": np.ones((3, 2), np.float32), "bias": np.zeros(3, np.float32)})
    model = nn.Linear(2, 3)
    load_weights(model, tmp_path / "x.npz")
    np.testing.assert_array_equal(model.weight.numpy(), np.ones((3, 2)))


def test_types_are_converted_where_nothing_is_lost_or_said(tmp_path):
    tensors = {**values(), "count": np.int64([7]), "sigma": np.array(0.5),
               "head.bias": np.float64([1, 2, np.nan])}
    save_npz(tmp_path / "x.npz", tensors)
    model = Net()
    report = load_weights(model, tmp_path / "x.npz")
    assert model.count.numpy() == 7 and model.sigma.numpy() == 0.5 and model.sigma.shape == [1]
    assert any("narrowed" in note for note in report.notes)
    assert any("1 tensors hold NaN or infinity: head.bias" in note for note in report.notes)
    save_npz(tmp_path / "y.npz", {**values(), "count": np.int64([2 ** 40])})
    with pytest.raises(CheckpointError, match="count: values beyond the model's int32"):
        load_weights(model, tmp_path / "y.npz")


def test_nothing_in_common(tmp_path):
    save_npz(tmp_path / "x.npz", {"a": np.zeros(1)})
    with pytest.raises(CheckpointError, match="none of its tensors fits"):
        load_weights(Net(), tmp_path / "x.npz", strict=False)


def test_mixed_naming_schemes(tmp_path):
    save_npz(tmp_path / "x.npz", {**values(), **upstream(values())})
    with pytest.raises(CheckpointError, match="both become backbone.conv.weight"):
        load_weights(Net(), tmp_path / "x.npz")


def test_save_weights(tmp_path):
    model = Net()
    save_npz(tmp_path / "x.npz", values())
    load_weights(model, tmp_path / "x.npz")
    for suffix in (".npz", ".pkl", ".pth", ".safetensors"):
        path = tmp_path / f"saved{suffix}"
        save_weights(model, path, meta={"step": 3} if suffix == ".npz" else None)
        names = upstream(values()) if suffix == ".pth" else values()
        assert set(read(path).tensors) == set(names)
        fresh = Net()
        load_weights(fresh, path)
        assert_equal(fresh, values())
    assert load_npz(tmp_path / "saved.npz")[1] == {"step": 3}
    save_weights(model, tmp_path / "ours.pth", layout="ours")
    assert set(read(tmp_path / "ours.pth").tensors) == set(values())


def test_plain_jittor_reads_and_writes_the_same(tmp_path):
    """Both ways with jt.load and Module.save, in a process that knows nothing of jea's checkpoint code."""
    write(tmp_path / "ours.pkl", values())
    model = Net()
    load_weights(model, tmp_path / "ours.pkl")
    loaded = jt.load(str(tmp_path / "ours.pkl"))
    assert set(loaded) == set(values())
    plain = Net()
    plain.load(str(tmp_path / "ours.pkl"))
    assert_equal(plain, values())
    plain.save(str(tmp_path / "theirs.pkl"))
    assert read(tmp_path / "theirs.pkl").format == "jittor-pkl"
    fresh = Net()
    load_weights(fresh, tmp_path / "theirs.pkl")
    assert_equal(fresh, values())
