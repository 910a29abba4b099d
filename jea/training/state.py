"""What a run keeps on the disk: last.npz, everything to go on, and best.npz, the weights alone. And what its ranks must
do together. A checkpoint needs no generator states: all that is random in a step is a function of (seed, step,
rank)."""
from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from jea import checkpoint, ranks
from jea.errors import CheckpointError, TrainingError
from jea.files import remove_left_over
from jea.training.changes import compare
from jea.training.log import plain, say

LAST, BEST = "last.npz", "best.npz"


class SavedRun:
    """The checkpoints of a run.

    step, best: what last.npz holds: its step, None where it is not there yet, and the best score until then.
    tried: the step at which saving was last begun, whether it succeeded or not. resumed: the step of last.npz that the
        run went on from.
    """

    def __init__(self, task, phases: list, out: Path):
        self.task, self.phases = task, phases
        self.last, self.best_file = out / LAST, out / BEST
        self.step = self.best = self.tried = self.resumed = None
        if ranks.is_first():
            remove_left_over(out)

    # -- the start of a run ---------------------------------------------------------------------------------------

    def begin(self, *, ema: bool, strict: bool) -> tuple:
        """Begin a new run: the weights of train.init_weights, the same on all ranks; returns (0, None)."""
        if self.last.exists():
            raise TrainingError(f"{self.last} is there already: add --resume to go on from it, or choose another --out")
        if self.task.options.init_weights:
            say(self.task.load(self.task.options.init_weights, ema=ema, strict=strict))
        ranks.share_variables(var for module in self.task.modules.values() for var in module.state_dict().values())
        for phase in self.phases:
            if phase.average:
                phase.average.reset()
        return 0, None

    def restore(self, total: int) -> tuple:
        """Put the state of last.npz back, to go on to `total` steps; returns (step, best score)."""
        if not self.last.is_file():
            raise CheckpointError(self.last, "not there, so there is nothing to resume; leave --resume out to start "
                                             "anew")
        tensors, meta = checkpoint.load_npz(self.last)
        if meta.get("kind") != "training":
            raise CheckpointError(self.last, "not a training checkpoint of jea; weights alone are read with "
                                  "train.init_weights")
        moved, changed = compare(meta, self.task)
        if moved:
            raise CheckpointError(self.last, f"{'; '.join(moved)}. That would change which samples come when: set it "
                                  f"back, or start a new run from these weights with --weights {self.best_file} and "
                                  "another --out")
        self._check_same_tensors(tensors)
        if changed:
            say(f"{self.last} goes on with other options than it was saved with: {'; '.join(changed)}")
        for key, var in self._variables().items():
            var.assign(tensors[key])
        for phase in self.phases:
            phase.optimizer.n_step = meta["optimizer_steps"][phase.name]
            if phase.scaler and phase.name in meta.get("loss_scales", {}):  # none: the run began in another precision
                phase.scaler.restore(meta["loss_scales"][phase.name])
        self.step, self.best, self.resumed = meta["step"], meta["best"], meta["step"]
        if self.step == (meta.get("train") or {}).get("steps") and self.step < total:
            say(f"this run had ended after {self.step} steps; it goes on to step {total}, with the learning rates of a "
                f"run of {total} steps")
        return self.step, self._best_score()

    def _check_same_tensors(self, tensors: dict) -> None:
        wanted = self._variables()
        different = sorted(key for key in wanted.keys() | tensors.keys()
                           if key not in wanted or key not in tensors or tuple(wanted[key].shape) != tensors[key].shape)
        if different:
            raise CheckpointError(self.last, f"belongs to another model or optimizer; {len(different)} tensors differ, "
                                  f"first {', '.join(different[:3])}")

    def _best_score(self):
        """The score of best.npz: a run that was killed after an evaluation has not told last.npz about it."""
        if not self.best_file.is_file():
            return None
        try:
            _, meta = checkpoint.load_npz(self.best_file)
        except CheckpointError as error:
            say(f"{error}; the next evaluation writes it anew")
            return None
        later = meta.get("score") if meta.get("step", 0) <= self.step else None
        return max((score for score in (self.best, later) if score is not None), default=None)

    def was_judged(self, log, step: int) -> bool:
        """Whether a resumed run has best.npz and the evaluation of a step; the same on all ranks."""
        return bool(ranks.on_first(lambda: self.best_file.is_file() and log.was_judged(step)))

    # -- saving -----------------------------------------------------------------------------------------------------

    def save(self, step: int, best) -> None:
        """Write last.npz; TrainingError, and nothing written, where a number is not finite."""
        self.tried = step
        if ranks.is_first():
            tensors = {key: var.numpy() for key, var in self._variables().items()}
            self._check_finite(tensors, step)
            counts = {phase.name: int(phase.optimizer.n_step) for phase in self.phases}
            scales = {phase.name: phase.scaler.state for phase in self.phases if phase.scaler}
            checkpoint.save_npz(self.last, tensors, dict(
                self.task.description, kind="training", step=step, best=best, seed=self.task.options.seed,
                samples=self.task.samples, optimizer_steps=counts, **({"loss_scales": scales} if scales else {})))
        self.step, self.best = step, best

    def save_best(self, step: int, score, values: dict) -> None:
        """Write best.npz: the modules' weights of now, and what they scored."""
        if ranks.is_first():
            tensors = {key: var.numpy() for key, var in _state(self.task).items()}
            self._check_finite(tensors, step)
            checkpoint.save_npz(self.best_file, tensors, dict(self.task.description, step=step, score=score,
                                                       metrics=plain(values)))

    def _check_finite(self, tensors: dict, step: int) -> None:
        # The least and the largest number are not finite where any is not, NaN included.
        bad = [key for key, value in tensors.items()
               if value.size and not (math.isfinite(value.min()) and math.isfinite(value.max()))]
        if bad:
            raise TrainingError(f"step {step}: {len(bad)} of {len(tensors)} tensors are not finite, first {bad[0]}; "
                                f"they are not saved. {self.what_is_kept(step)}")

    def what_is_kept(self, step: int) -> str:
        """What is on the disk when training cannot go on at a step, and what to do."""
        remedy = "a lower train.lr or clipping (train.grad_clip)"
        if self.step is None:
            return f"Nothing had been saved. Start again with {remedy}"
        anew = f"Start a new run with {remedy}, from earlier weights where there are some"
        if self.step == step:
            return (f"{self.last} holds the finite weights from which this step began, so that --resume would end here "
                    f"again. {anew}")
        if self.step == self.resumed:
            return (f"This run was resumed from {self.last}, of step {self.step}, and did not get far: those weights "
                    f"may have diverged already. {anew}")
        return (f"{self.last} is that of step {self.step}, untouched. Resumed as it is, the run would come to the same "
                f"end: resume it with {remedy}, or start a new one")

    def _variables(self) -> dict:
        """name -> Var of all that last.npz holds: weights, averaged weights, and all optimizer state that is a list
        beside `params`, such as SGD's momentum buffers."""
        found = {f"model/{key}": var for key, var in _state(self.task).items()}
        for phase in self.phases:
            if phase.average:
                found.update({f"average/{phase.name}/{key}": var for key, var in phase.average.state.items()})
            for number, group in enumerate(phase.optimizer.param_groups):
                for kind, values in group.items():
                    if kind not in ("params", "grads") and isinstance(values, list):
                        found.update({f"optimizer/{phase.name}/{number}/{kind}/{index}": var
                                      for index, var in enumerate(values)})
        return found


def _state(task) -> dict:
    """All modules' state; with one module the keys are the model's own, so that load_weights reads best.npz."""
    many = len(task.modules) > 1
    return {(f"{name}/{key}" if many else key): var for name, module in task.modules.items()
            for key, var in module.state_dict().items()}


# -- what the ranks do together -----------------------------------------------------------------------------------

def seed_of_step(seed: int, step: int) -> int:
    """The seed of the device's random numbers in a step, of this rank's own."""
    return int(np.random.SeedSequence([seed, step, ranks.rank()]).generate_state(1)[0] & 0x7FFFFFFF)


def check_shares(options) -> None:
    """TrainingError unless a batch can be cut into equal parts for all ranks and their accumulation."""
    if options.batch_size % (ranks.size() * options.grad_accumulation):
        raise TrainingError(f"batch_size is {options.batch_size}, for {ranks.size()} processes and grad_accumulation "
                            f"{options.grad_accumulation}; it must be a multiple of their product: change "
                            "train.batch_size or mpirun's -np")


def on_any_rank(flag: bool) -> bool:
    """Whether the flag is set on any rank; the same on all."""
    return bool(ranks.total(bool(flag)) > 0)


def evaluate(task, out, **options):
    """task.evaluate into a folder, which is made, by all ranks or by the first alone; all get the result."""
    Path(out).mkdir(parents=True, exist_ok=True)
    if task.shares_evaluation:
        return task.evaluate(out, **options)
    return ranks.on_first(lambda: task.evaluate(out, **options))
