"""Names and numbers of detectors' weights, and files of torchvision and mmdetection both ways."""
import fnmatch
import math

import numpy as np
import pytest
from detection_fixtures import keywords

import jea
from jea.checkpoint import load_weights, save_weights
from jea.checkpoint.reader import read
from jea.errors import CheckpointError, ConfigError
from jea.models.detection import key_maps
from jea.models.detection.styles import style_of

# DETECTION: numbers of parameters (without the frozen norms' where they do not train), keys without counters of steps
COUNTS = {
    ("fasterrcnn", "torchvision"): (41_755_286, 295), ("maskrcnn", "torchvision"): (44_401_393, 307),
    ("retinanet", "torchvision"): (34_014_999, 301), ("fasterrcnn", "mmdet"): (41_753_056, 295),
    ("maskrcnn", "mmdet"): (44_396_336, 307), ("retinanet", "mmdet"): (37_968_692, 301),
    ("cascade_rcnn", "mmdet"): (69_394_766, 311), ("cascade_maskrcnn", "mmdet"): (77_324_606, 347),
}
MORE_BLOCKS = 17 * (2 * 1024 * 256 + 9 * 256 * 256)  # of ResNet-101, in its third stage
MORE_NORMS = 17 * 2 * (256 + 256 + 1024)
ATTENTION = 2 * 2048 * 2048 + 2048 + 2 * 64 * 2048 + 2 * 2048


def shapes_of(name, **arguments):
    return {key: tuple(var.shape) for key, var in jea.create_model(name, **arguments).state_dict().items()}


def count(shapes, style):
    statistics = ("*running_mean", "*running_var")
    norms = ("*.bn?.*", "*.downsample.1.*") if style == "torchvision" else ()
    return sum(math.prod(shape) for key, shape in shapes.items()
               if not any(fnmatch.fnmatch(key, pattern) for pattern in statistics + norms))


@pytest.mark.parametrize("depth", (50, 101))
@pytest.mark.parametrize("kind, style", COUNTS)
def test_numbers_of_parameters(kind, style, depth):
    arguments = dict(style=style, num_classes=90 if style == "torchvision" else 80)
    name = f"ea_{kind}_resnet{depth}_fpn"
    plain = shapes_of(name, attention="none", **arguments)
    parameters, keys = COUNTS[kind, style]
    if depth == 101:
        parameters += MORE_BLOCKS + (MORE_NORMS if style == "mmdet" else 0)
        keys += 17 * 15
    assert (count(plain, style), len(plain)) == (parameters, keys)
    attended = shapes_of(name, **arguments)
    new = {key: shape for key, shape in attended.items() if key not in plain}
    assert all(key.startswith("backbone.body.attention.") for key in new)
    assert {key: attended[key] for key in plain} == plain
    assert count(new, "mmdet") == ATTENTION == 8_656_896 and len(new) == 9


def test_attention_after_another_stage():
    for stage, channels in ((1, 64), (2, 128), (3, 256), (4, 512)):
        shapes = shapes_of("ea_maskrcnn_tiny", attention_stage=stage)
        assert shapes["backbone.body.attention.conv1.weight"] == (channels, channels, 1, 1)


@pytest.mark.parametrize("name", ("tv_fasterrcnn_r50_fpn", "tv_maskrcnn_r50_fpn", "tv_retinanet_r50_fpn",
                                  "ea_maskrcnn_r50_fpn", "mm_maskrcnn_r50_fpn", "mm_retinanet_r50_fpn"))
def test_names_are_upstreams(manifest_of, name):
    manifest = manifest_of(name)
    model_name, arguments = keywords(manifest)
    model = jea.create_model(model_name, **arguments)
    theirs = {e["key"]: tuple(e["shape"]) for e in manifest["state"] if not e["key"].endswith("num_batches_tracked")}
    full = next(key_map for key_map in model.key_maps if key_map.writable)
    ours = {full.to_theirs(key): tuple(var.shape) for key, var in model.state_dict().items()}
    assert ours == theirs


def tiny(kind, **arguments):
    return jea.create_model(f"ea_{kind}_tiny", **{"num_classes": 5, **arguments})


KINDS = ("fasterrcnn", "maskrcnn", "cascade_rcnn", "cascade_maskrcnn", "retinanet")


@pytest.mark.parametrize("style", ("torchvision", "mmdet"))
@pytest.mark.parametrize("attention", ("none", "external"))
@pytest.mark.parametrize("kind", KINDS)
def test_files_there_and_back(tmp_path, kind, attention, style):
    model = tiny(kind, attention=attention, style=style)
    save_weights(model, tmp_path / "theirs.pth")
    stored = read(tmp_path / "theirs.pth").tensors
    assert any(key.startswith("neck." if style == "mmdet" else "backbone.fpn.inner_blocks.0.0.") for key in stored)
    again = tiny(kind, attention=attention, style=style)
    report = load_weights(again, tmp_path / "theirs.pth")
    assert not report.initialised
    for key, var in model.state_dict().items():
        assert np.array_equal(var.numpy(), again.state_dict()[key].numpy()), key


def old_names(tensors, two_stage):
    """torchvision's names of its published files."""
    backwards = sorted(((ours, theirs) for theirs, ours in key_maps._torchvision_v1(two_stage)),
                       key=lambda r: -len(r[0]))
    return {next((theirs + key[len(ours):] for ours, theirs in backwards if key.startswith(ours)), key): value
            for key, value in tensors.items()}


@pytest.mark.parametrize("kind", ("maskrcnn", "retinanet"))
def test_published_names_of_torchvision(tmp_path, kind):
    from jea.checkpoint.loading import write
    model = tiny(kind, attention="none")
    tensors = {key: var.numpy() for key, var in model.state_dict().items()}
    write(tmp_path / "old.pth", old_names(tensors, kind != "retinanet"))
    names = set(read(tmp_path / "old.pth").tensors)
    assert "backbone.fpn.inner_blocks.0.weight" in names
    assert ("rpn.head.conv.weight" if kind == "maskrcnn" else "head.classification_head.conv.6.bias") in names
    plain = tiny(kind, attention="none")
    assert not load_weights(plain, tmp_path / "old.pth").initialised
    attended = tiny(kind)
    report = load_weights(attended, tmp_path / "old.pth")
    assert report.initialised and all(key.startswith("backbone.body.attention.") for key in report.initialised)
    assert key_maps.infer_kwargs(read(tmp_path / "old.pth").tensors) == {
        "style": "torchvision", "attention": "none", "norm_eps": 0.0, "num_classes": 5}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("style", ("torchvision", "mmdet"))
def test_files_tell_their_arguments(tmp_path, kind, style):
    save_weights(tiny(kind, style=style), tmp_path / "a.pth")
    assert key_maps.infer_kwargs(read(tmp_path / "a.pth").tensors) == {"style": style, "attention": "external",
                                                                     "num_classes": 5}


def test_a_resnet_of_imagenet_is_a_backbone(tmp_path):
    from jea.checkpoint.loading import write
    model = tiny("maskrcnn", attention="none")
    body = {key[len("backbone.body."):]: var.numpy() + 1 for key, var in model.state_dict().items()
            if key.startswith("backbone.body.")}
    write(tmp_path / "resnet.pth",
          {**body, "fc.weight": np.zeros((10, 4), np.float32), "fc.bias": np.zeros(10, np.float32)})
    attended = tiny("maskrcnn")
    report = load_weights(attended, tmp_path / "resnet.pth")
    assert len(report.loaded) == len(body) and report.dropped == ["fc.weight", "fc.bias"]
    assert np.array_equal(attended.state_dict()["backbone.body.conv1.weight"].numpy(), body["conv1.weight"])


def test_other_classes_leave_the_heads_as_they_are(tmp_path):
    save_weights(tiny("maskrcnn"), tmp_path / "five.pth")
    other = tiny("maskrcnn", num_classes=7)
    report = load_weights(other, tmp_path / "five.pth")
    assert {key.rpartition(".")[0] for key in report.initialised} == {
        "roi_heads.box_predictor.cls_score", "roi_heads.box_predictor.bbox_pred",
        "roi_heads.mask_predictor.mask_fcn_logits"}
    with pytest.raises(CheckpointError):
        load_weights(tiny("cascade_rcnn"), tmp_path / "five.pth")


@pytest.mark.parametrize("kind", KINDS)
def test_one_order_of_classes_becomes_the_other(tmp_path, kind):
    """mmdetection's files have the background last and no boxes of it; torchvision's first."""
    mmdet = tiny(kind, style="mmdet", attention="none")
    rng = np.random.default_rng(0)
    for key, var in mmdet.state_dict().items():
        var.update(var * 0 + jea._jittor.jt.array(rng.random(var.shape).astype(np.float32)))
    save_weights(mmdet, tmp_path / "mmdet.pth")
    model = tiny(kind, style="torchvision", attention="none")
    if kind == "retinanet":  # P6 is a convolution of another level
        with pytest.raises(CheckpointError, match="p6"):
            load_weights(model, tmp_path / "mmdet.pth")
        return
    report = load_weights(model, tmp_path / "mmdet.pth")
    assert not (report.initialised or report.mismatched)
    stages = ("0.", "1.", "2.") if kind.startswith("cascade") else ("",)
    for stage in stages:
        for end in ("weight", "bias"):
            key = f"roi_heads.box_predictor.{stage}cls_score.{end}"
            theirs, ours = mmdet.state_dict()[key].numpy(), model.state_dict()[key].numpy()
            assert np.array_equal(ours, np.concatenate([theirs[-1:], theirs[:-1]]))
            key = f"roi_heads.box_predictor.{stage}bbox_pred.{end}"
            theirs, ours = mmdet.state_dict()[key].numpy(), model.state_dict()[key].numpy()
            assert np.array_equal(ours[-len(theirs):], theirs) and not ours[:-len(theirs)].any()
    if kind.startswith("cascade"):  # torchvision has none: files with its names are jea's own, in the model's order
        return
    save_weights(model, tmp_path / "tv.pth")
    back = tiny(kind, style="mmdet", attention="none")
    assert not load_weights(back, tmp_path / "tv.pth").initialised
    for key, var in mmdet.state_dict().items():
        assert np.array_equal(var.numpy(), back.state_dict()[key].numpy()), key


@pytest.mark.parametrize("arguments, said", (
    ({"style": "torchvison"}, "did you mean torchvision"), ({"attention": "self"}, 'expected "external" or "none"'),
    ({"attention_stage": 5}, "attention_stage is 5"), ({"num_classes": 0}, "num_classes is 0"),
    ({"rpn_pre_nms": (5,)}, "rpn_pre_nms"), ({"rpn_post_nms": (5, 0)}, "rpn_post_nms"),
    ({"norm": "other"}, "unknown argument norm")))
def test_wrong_arguments(arguments, said):
    with pytest.raises(ConfigError, match=said):
        tiny("maskrcnn", **arguments)


def test_cascades_of_mmdetection_have_their_own_constants():
    style = style_of("mmdet", cascade=True)
    assert (style.border, style.box_beta, style.rpn_post_nms) == (0.0, 1.0, (2000, 1000))
    assert abs(style.rpn_beta - 1 / 9) < 1e-12 and not style.mask_low_quality


@pytest.mark.parametrize("kind, name", (("fasterrcnn", "Faster R-CNN"), ("maskrcnn", "Mask R-CNN"), ("cascade_rcnn",
                         "Cascade R-CNN"), ("cascade_maskrcnn", "Cascade Mask R-CNN"), ("retinanet", "RetinaNet")))
def test_inspect_names_them(tmp_path, capsys, kind, name):
    from jea.commands.inspect import main as inspect_main
    for style, words in (("torchvision", "torchvision"), ("mmdet", "mmdetection")):
        for attention, more in (("none", ""), ("external", ", external attention")):
            save_weights(tiny(kind, style=style, attention=attention), tmp_path / "a.pth")
            assert not inspect_main([str(tmp_path / "a.pth")])
            assert f"detector    {name}, 5 classes{more}, names of {words}\n" in capsys.readouterr().out


def test_inspect_knows_depth_and_age():
    from jea.checkpoint.detectors import detector_of
    shapes = {f"module.backbone.body.layer3.{k}.conv1.weight": (1,) for k in range(6)}
    shapes.update({"module.backbone.fpn.inner_blocks.0.weight": (1,),
                   "module.roi_heads.box_predictor.cls_score.weight": (91, 4)})
    assert detector_of(shapes) == "Faster R-CNN, 90 classes, ResNet-50, names of torchvision's published files (v1)"
    assert detector_of({"conv1.weight": (1,)}) == ""
