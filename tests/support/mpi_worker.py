"""What tests/training/test_mpi.py runs in each process: mpi_worker.py CASE SHAPES OUT."""
import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import toy

import jea  # noqa: F401  (before Jittor)
from jea import ranks
from jea._jittor import jt, nn
from jea.ops import batch_norm, batch_norm_blocked, can_block, from_blocked, to_blocked
from jea.tasks.classification import Classification
from jea.tasks.generation import Generation
from jea.tasks.point_classification import PointClassification
from jea.tasks.segmentation import Segmentation
from jea.tasks.task import Evaluation
from jea.training import log, loop, reading, state


# A ReLU whose input crosses zero by a rounding error changes gradients of this small batch by 1%, between two
# implementations in one process as well. With this rate that stays below 1e-5, and a wrong gradient does not.
def segmentation(shapes, **train):
    return Segmentation(
        model={"name": "eanet_tiny", "num_classes": 7, "output_stride": 8, "dropout": 0.0},
        data={"name": "voc", "root": str(shapes), "num_classes": 7, "crop_size": 65, "scales": [0.75, 1]},
        train={"steps": 3, "batch_size": 8, "lr": 2e-4, "num_workers": 0, "log_every": 1, "eval_every": 0, "seed": 5,
               **train}, eval={"pictures": 2, "num_workers": 0})


class WithoutDropout(Classification):
    """Its optimizer is SGD: Adam's steps do not shrink with the gradients, so rounding errors of tiny ones would
    show."""

    def begin_training(self):
        super().begin_training()
        for module in self.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0

    def phases(self, total_steps):
        phase, = super().phases(total_steps)
        phase.optimizer = nn.SGD([var for var in self.model.parameters() if not var.is_stop_grad()], lr=0.05,
                                 momentum=0.9)
        phase.base_rates, phase.schedule = [0.05], lambda step: 1.0
        return [phase]


def classification():
    return WithoutDropout(
        model={"name": "eamlp_tiny", "num_classes": 10, "img_size": 32},
        data={"name": "shape_classes", "size": 32, "num_train": 40, "num_val": 17},
        train={"steps": 3, "batch_size": 8, "num_workers": 0, "log_every": 1, "eval_every": 0, "seed": 3},
        eval={"num_workers": 0, "batch_size": 3})


def norm(shapes, out):
    """BatchNorm's results and gradients, put together from all ranks, in both layouts."""
    rng, found = np.random.Generator(np.random.PCG64(0)), {}
    x, residual, g = (rng.standard_normal((6, 16, 3, 5), np.float32) + shift for shift in (100, 0, 0))
    weight, bias = rng.standard_normal((2, 16), np.float32)
    for layout in ("plain", "blocked") if can_block(16) else ("plain",):
        inputs = [jt.array(np.ascontiguousarray(a)) for a in (ranks.own(x), ranks.own(residual), weight, bias)]
        activations = [to_blocked(v) for v in inputs[:2]] if layout == "blocked" else inputs[:2]
        normalise = batch_norm_blocked if layout == "blocked" else batch_norm
        y, mean, variance = normalise(activations[0], *inputs[2:], residual=activations[1], relu=True)
        y = from_blocked(y) if layout == "blocked" else y
        dx, dresidual, dweight, dbias = jt.grad((y * jt.array(np.ascontiguousarray(ranks.own(g)))).sum(), inputs)
        for name, var in (("y", y), ("dx", dx), ("dresidual", dresidual)):
            found[f"{layout} {name}"] = np.stack(ranks.gather(var.numpy()), 1).reshape(x.shape)
        for name, var in (("dweight", dweight), ("dbias", dbias)):
            found[f"{layout} {name}"] = ranks.total(var.numpy())
        found.update({f"{layout} mean": mean.numpy(), f"{layout} variance": variance.numpy()})
    if ranks.is_first():
        np.savez(out / "norm.npz", **found)


def train(shapes, out):
    norm(shapes, out)
    loop.train(segmentation(shapes), out / "eanet", progress=False)
    loop.train(classification(), out / "eamlp", progress=False)
    loop.train(segmentation(shapes), out / "stopped", stop_after=2, progress=False)
    reading.reads_later = lambda: True  # as on CUDA
    loop.train(segmentation(shapes), out / "later", progress=False)
    stop_later(out)


def stop_later(out):
    """The last rank alone asks to stop, in its second step; all stop after the next one."""
    asked = iter([False, ranks.rank() == ranks.size() - 1] + [False] * 5)
    loop.Gate = lambda _: reading.Gate(lambda: next(asked))
    try:
        loop.train(toy.make(steps=7), out / "asked", progress=False)
    except KeyboardInterrupt as error:
        if ranks.is_first():
            (out / "asked.txt").write_text(str(error))


def resume(shapes, out):
    loop.train(segmentation(shapes), out / "stopped", resume=True, progress=False)


def evaluate(shapes, out):
    found = {}
    for name, task in (("segmentation", segmentation(shapes)), ("classification", classification())):
        ranks.share_variables(task.model.state_dict().values())
        found[name] = state.evaluate(task, out / name, progress=False).values
        alone = ranks.on_first(lambda: task.evaluate(out / "alone", progress=False)).values
        assert plain(alone) == plain(found[name])
    found["ranks"] = ranks.gather(ranks.rank())
    found["total"] = ranks.total([ranks.rank() + 0.5, 2 ** 40 + 1]).tolist()
    if ranks.is_first():
        (out / "result.json").write_text(json.dumps(log.plain(found)))


def plain(result):
    return {k: v for k, v in log.plain(result).items() if not k.startswith(("seconds", "images_per", "peak"))}


def start(shapes, out):
    """The weights with which each rank begins its first step, of a task of each kind."""
    train = {"steps": 1, "batch_size": 6, "num_workers": 0, "eval_every": 0}
    tasks = {
        "eanet": segmentation(shapes, **train), "eamlp": classification(),
        "gan": Generation(model={"name": "ea_sagan_tiny", "width": 8}, data={"name": "plain_shapes", "size": 32,
                          "num_train": 12}, train=train, eval={"metrics": False}),
        "points": PointClassification(model={"name": "ea_pct_tiny_cls", "num_classes": 10},
                                      data={"name": "solids", "num_train": 12},
                                      train=train, eval={"num_workers": 0})}
    for name, task in tasks.items():
        task.options.batch_size, task.options.steps = 6, 1
        task.evaluate = lambda *_, **__: Evaluation(None, {"nothing": 0})
        begin = task.begin_training

        def note(name=name, task=task, begin=begin):
            begin()
            weights = {f"{kind}/{key}": var.numpy() for kind, module in task.modules.items()
                       for key, var in module.state_dict().items()}
            for rank, found in enumerate(ranks.gather(weights)):
                if ranks.is_first():
                    np.savez(out / f"{name}-{rank}.npz", **found)
        task.begin_training = note
        loop.train(task, out / name, progress=False)


def failing(shapes, out, how):
    task, steps = segmentation(shapes, steps=50), []
    losses = task.losses

    def broken(batch):
        steps.append(batch)
        if len(steps) == 2 and ranks.rank() == 1:
            how()
        return losses(batch)
    task.losses = broken
    loop.train(task, out, progress=False)


def error():
    raise RuntimeError("the second rank has had enough")


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    case, data, target = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    if case in ("error", "kill"):
        failing(data, target, {"error": error, "kill": kill}[case])
    else:
        {"train": train, "resume": resume, "evaluate": evaluate, "start": start}[case](data, target)
