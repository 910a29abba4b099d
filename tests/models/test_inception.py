"""Inception for the FID against pytorch-fid's network, through a file in the layout of pt_inception-2015-12-05."""
import numpy as np
import pytest
import recipe

import jea
from jea._jittor import jt
from jea.models.inception import RandomFeatures, _bilinear_weights, average_pool3, max_pool3
from jea.nn.mode import evaluating


def reference_state(ref):
    gain = ref.manifest["weight_gain"]
    return {key: value * np.float32(gain["factor"]) if value.ndim == gain["ndim"] else value
            for key, value in ref.state().items()}


def write_state(path, state):
    try:
        import torch
    except ImportError:
        from jea.checkpoint.loading import write
        write(path, state)
    else:
        from collections import OrderedDict
        torch.save(OrderedDict((key, torch.from_numpy(np.array(value))) for key, value in state.items()), path)
    return path


@pytest.fixture(scope="module")
def model(reference, tmp_path_factory):
    model = jea.create_model("inception_fid")
    path = write_state(tmp_path_factory.mktemp("fid") / "pt_inception-2015-12-05-6726825d.pth",
                       reference_state(reference("inception_fid")))
    report = jea.load_weights(model, path)
    assert len(report.loaded) == 472 and not report.missing and not report.key_map
    return model


def pictures():
    images = np.stack([recipe.image_uint8(f"fid/image{i}", 64, 48) for i in (0, 1)])
    return images.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)


@pytest.mark.usefixtures("device")
def test_features_logits_and_probes(model, reference, close, monkeypatch):
    ref, x, outputs = reference("inception_fid"), pictures(), {}
    probes = [key[len("probe/"):] for key in ref.arrays if key.startswith("probe/")]
    assert len(probes) == 14
    for name, module in model.named_modules():
        def spy(x, _name=name, _execute=module.execute):
            outputs[_name] = _execute(x)
            return outputs[_name]
        if name in probes or name == "Conv2d_2b_3x3":
            monkeypatch.setattr(module, "execute", spy)
    with evaluating(model):
        features, logits = model(jt.array(x), return_logits=True)
        outputs.update(resized=model.resized(jt.array(x)), block0=max_pool3(outputs["Conv2d_2b_3x3"], stride=2),
                       block1=max_pool3(outputs["Conv2d_4a_3x3"], stride=2), block2=outputs["Mixed_6e"])
    for name in probes:
        flat = outputs[name].numpy().reshape(-1)
        close(flat[recipe.sample_indices(f"probe:{name}", flat.size, 64)], ref.arrays[f"probe/{name}"], 2e-5, name)
    close(features.numpy(), ref.arrays["pool3"], 2e-5, "pool3")
    close(logits.numpy(), ref.arrays["logits"], 2e-5, "logits")


def test_parameters(model):
    assert sum(var.numel() for var in model.parameters() if not var.is_stop_grad()) == 23_850_960


def test_file_of_pytorch_fids_own_module(model, reference, tmp_path):
    blocks = {"Conv2d_1a_3x3": "0.0", "Conv2d_2a_3x3": "0.1", "Conv2d_2b_3x3": "0.2", "Conv2d_3b_1x1": "1.0",
              "Conv2d_4a_3x3": "1.1", "Mixed_5b": "2.0", "Mixed_5c": "2.1", "Mixed_5d": "2.2", "Mixed_6a": "2.3",
              "Mixed_6b": "2.4", "Mixed_6c": "2.5", "Mixed_6d": "2.6", "Mixed_6e": "2.7", "Mixed_7a": "3.0",
              "Mixed_7b": "3.1", "Mixed_7c": "3.2"}
    wanted = reference_state(reference("inception_fid"))
    state = {f"blocks.{blocks[key.partition('.')[0]]}.{key.partition('.')[2]}": value for key, value in wanted.items()
             if not key.startswith("fc.")}
    other = jea.create_model("inception_fid")
    report = jea.load_weights(other, write_state(tmp_path / "x.pth", state))
    assert report.initialised == ["fc.weight", "fc.bias"] and "pytorch-fid" in report.key_map
    for key, value in other.state_dict().items():
        if not key.startswith("fc."):
            assert np.array_equal(value.numpy(), wanted[key]), key


def test_pools():
    x = np.random.default_rng(0).standard_normal((2, 3, 9, 7)).astype(np.float32)
    padded = np.full((2, 3, 11, 9), np.nan, np.float32)
    padded[:, :, 1:-1, 1:-1] = x
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    assert np.abs(average_pool3(jt.array(x)).numpy() - np.nanmean(windows, (4, 5))).max() < 1e-6
    assert np.array_equal(max_pool3(jt.array(x), stride=1).numpy(), np.nanmax(windows, (4, 5)))
    inner = windows[:, :, 1:-1:2, 1:-1:2]
    assert np.array_equal(max_pool3(jt.array(x), stride=2).numpy(), inner.max((4, 5)))


def test_bilinear_weights_by_hand():
    assert np.array_equal(_bilinear_weights(2, 4), np.array([[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]], np.float32))
    assert np.array_equal(_bilinear_weights(4, 2), np.array([[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]], np.float32))
    assert np.array_equal(_bilinear_weights(3, 3), np.eye(3, dtype=np.float32))
    assert np.array_equal(_bilinear_weights(1, 3), np.ones((3, 1), np.float32))


def test_random_features_are_the_same_everywhere():
    first, second = RandomFeatures(), RandomFeatures()
    x = jt.array(pictures())
    y = first(x).numpy()
    assert y.shape == (2, 576) and np.array_equal(y, second(x).numpy())
    weight = first.convolutions[0].numpy()
    assert abs(weight[0, 0, 0, 0] - 0.12573022 * np.sqrt(2 / 27)) < 1e-7  # numpy's first normal number of seed 0
    picture = first(jt.array(x.numpy()[:, :, :33, :19])).numpy()
    assert picture.shape == (2, 576) and np.isfinite(picture).all()
    assert abs(y[0] - y[1]).max() > 0.05


def test_bad_input(model):
    with pytest.raises(ValueError, match=r"got shape \(1, 1, 8, 8\); expected \(B, 3, H, W\)"):
        model(jt.randn(1, 1, 8, 8))
