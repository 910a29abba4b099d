"""Upstream's training steps and its multi-scale test, through the real task and engine."""
import json

import numpy as np
import pytest
import recipe
from PIL import Image

import jea
from jea._jittor import jt
from jea.tasks.segmentation import MULTI_SCALE, Segmentation
from jea.training.log import LOG
from jea.training.loop import train


def make_task(**train):
    return Segmentation(model={"name": "eanet_resnet50", "output_stride": 16, "dropout": 0.0},
                        data={"name": "voc", "root": "unused"}, train=train)


@pytest.mark.usefixtures("device")
def test_five_sgd_steps(reference, write_pth, close, tmp_path, monkeypatch):
    ref = reference("eanet50_s16_sgd5_frozenbn")
    task = make_task(steps=45, batch_size=4, lr=0.009, lr_decay_every=1, freeze_batch_norm=True, log_every=1)
    jea.load_weights(task.model, write_pth("eanet50_s16", wrap="net", prefix="module."))
    batch = {"image": ref.input("sgd/image/4x3x65x65"),
             "label": recipe.label_map("sgd/label/4x65x65", (4, 65, 65), n_classes=21).astype(np.int32)}
    monkeypatch.setattr(Segmentation, "batches_per_epoch", property(lambda self: 1000))
    monkeypatch.setattr(task, "batches", lambda epoch, start: (batch for _ in range(1000)))
    rates = []
    make_phases = task.phases
    monkeypatch.setattr(task, "phases", lambda total: [_recording(p, rates) for p in make_phases(total)])
    assert [len(g["params"]) for g in make_phases(45)[0].optimizer.param_groups] == ref.manifest["param_group_sizes"]

    train(task, tmp_path, stop_after=5, progress=False)

    losses = [json.loads(line)["loss"] for line in (tmp_path / LOG).read_text().splitlines()]
    exact, kind = ref.arrays["f64/losses"], "f64/" if jt.flags.use_cuda else ""
    assert (np.abs(np.array(losses) - exact) <= float32_errors(exact)).all(), (losses, exact)
    if not jt.flags.use_cuda:
        close(losses, ref.arrays["losses"], 1e-6, "losses")
        close(losses, exact, 1e-6, "losses of the float64 run")
    close(rates, ref.arrays["lrs"], 1e-6, "learning rates")
    start, key_map, state = ref.state(), type(task.model).key_maps[0], task.model.state_dict()
    deltas = [key[len("delta/"):] for key in ref.arrays if key.startswith("delta/")]
    assert len(deltas) == 11
    for name in deltas:
        now = state[key_map.to_ours(name)].numpy().reshape(-1)
        index = recipe.sample_indices(name, now.size, 64)
        # Weights of 0.1 round to 7e-9, five times; the smallest changes here are 1e-6.
        close(now[index] - start[name].reshape(-1)[index], ref.arrays[f"{kind}delta/{name}"], 1e-2, name)


def float32_errors(exact):
    """How far losses of float32 steps may be from those of the float64 run: `exact`.

    The first is a forward pass: some units in the last place. A step lowers the loss by about lr |g|^2, and by as much
    off as its gradient is. A gradient here is a sum of 4 x 33 x 33 products: of K float32 terms in any order it is off
    by up to K u times the sum of their sizes, u = 2^-24. (On an H200 the losses were off by up to 1.8e-5 of their
    change, PyTorch's on a CPU by 1e-5; cuDNN's choice of algorithms changes the order of the sums. Two float32 runs
    agree no better than each does with this one: 1e-6 between them passes or fails by that choice.)
    """
    unit = 2.0 ** -24
    return 4 * unit * exact.max() + 4 * 33 * 33 * unit * np.abs(exact - exact[0])


def test_the_errors_of_float32_leave_no_room_for_mistakes(reference):
    """A rate, a momentum or a gradient that is off by 0.1 %, and a step that is left out, are seen."""
    exact = reference("eanet50_s16_sgd5_frozenbn").arrays["f64/losses"]
    for wrong in (exact[0] + (exact - exact[0]) * 1.001, np.append(exact[:1], exact[:-1])):
        assert (np.abs(wrong - exact) > float32_errors(exact)).any()
    assert float32_errors(exact).max() < 2e-5 * exact.max()


def _recording(phase, rates):
    original = phase.set_rates

    def set_rates(step):
        first = original(step)
        rates.append([group["lr"] for group in phase.optimizer.param_groups])
        return first
    phase.set_rates = set_rates
    return phase


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("fused", [False, True])
def test_multi_scale_and_flip(reference, write_pth, close, fixtures, fused):
    ref = reference("eanet50_s8_tta")
    task = Segmentation(model={"name": "eanet_resnet50", "output_stride": 8}, data={"name": "voc", "root": "unused"})
    jea.load_weights(task.model, write_pth("eanet50_s16", wrap="net", prefix="module."))
    if fused:  # as test.py runs it
        task.fuse()
    image = np.asarray(Image.open(fixtures / "tta_image.png").convert("RGB"))
    logits = task.logits(image, scales=MULTI_SCALE, flip=True)
    close(logits[None], ref.arrays["logits_sum"], 2e-5, "summed logits")
    assert np.array_equal(logits.argmax(0), ref.arrays["argmax"])
    from jea.data.views.crops import normalise, pad_8n1
    close(normalise(image).transpose(2, 0, 1)[None], ref.arrays["normalised"], 1e-7, "normalised picture")
    for stride in (8, 16):
        for n, wanted in ref.manifest[f"pad_inf_height_in_out_stride{stride}"]:
            assert pad_8n1(n, stride) == wanted
