"""Updates of many Vars at once: the optimizers' steps, running statistics, averaged weights.

One operator for up to sixteen Vars of as many axes, where Jittor's own functions take five to ten small ones for each.
`control` (finite.py) says on the device whether anything changes, and scales the gradients. No gradient goes through.
"""
from __future__ import annotations

import math

from jea._jittor import jt
from jea.ops import kernels
from jea.ops.common.declared import FLOAT, Support

SUPPORT = (Support("adam_update", cpu=FLOAT, cuda=FLOAT), Support("moved", cpu=FLOAT, cuda=FLOAT),
           Support("sgd_update", cpu=FLOAT, cuda=FLOAT))
_TOGETHER = 16  # kTogether in updates_rules.h


def sgd_update(parameters: list, gradients: list, velocities: list, *, lr: float, momentum: float = 0.0,
               weight_decay: float = 0.0, dampening: float = 0.0, nesterov: bool = False, control=None,
               impl: str = "auto") -> tuple:
    """(parameters, velocities) after a step of SGD as Jittor has it: d = g + wd p; v <- momentum v + (1 - dampening) d;
    p <- p - lr v, with nesterov p <- p - lr (d + momentum v)."""
    if not kernels.use_fused(impl, SUPPORT[2], *parameters, *gradients, *velocities):
        made = []
        for p, g, v in zip(parameters, _scaled(gradients, control), velocities):
            d = p * weight_decay + g
            w = momentum * v + d * (1 - dampening)
            made.append(_unless(control, (p - (d + momentum * w) * lr if nesterov else p - w * lr, w), (p, v)))
        return tuple(map(list, zip(*made)))
    numbers = {"rate": lr, "momentum": momentum, "decay": weight_decay, "undamped": 1 - dampening,
               "nesterov": nesterov}
    return _fused("jea::Sgd", numbers, (parameters, gradients, velocities), 2, control)


def adam_update(parameters: list, gradients: list, second: list, first: list, *, lr: float, betas: tuple, eps: float,
                steps: int, weight_decay: float = 0.0, decoupled: bool = False, eps_inside: bool = False, control=None,
                impl: str = "auto") -> tuple:
    """(parameters, second moments, first moments) after step number `steps` (from 1) of Adam, or AdamW (`decoupled`).

    m <- b1 m + (1 - b1) g; v <- b2 v + (1 - b2) g^2; p <- p - lr m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps).
    eps_inside: eps is added to sqrt(v) before its correction, as Jittor's Adam does.
    """
    b1, b2 = betas
    c1, c2 = 1 - b1 ** steps, math.sqrt(1 - b2 ** steps)
    step, scale = (lr * c2 / c1, 1.0) if eps_inside else (lr / c1, c2)
    decay, kept = (0.0, 1 - lr * weight_decay) if decoupled else (weight_decay, 1.0)
    if not kernels.use_fused(impl, SUPPORT[0], *parameters, *gradients, *second, *first):
        made = []
        for p, g, v, m in zip(parameters, _scaled(gradients, control), second, first):
            g = p * decay + g
            n, w = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
            made.append(_unless(control, (p * kept - step * n / (w.sqrt() / scale + eps), w, n), (p, v, m)))
        return tuple(map(list, zip(*made)))
    numbers = {"step": step, "beta1": b1, "beta2": b2, "rest1": 1 - b1, "rest2": 1 - b2, "epsilon": eps,
               "decay": decay, "kept": kept, "root_scale": scale}
    return _fused("jea::Adam", numbers, (parameters, gradients, second, first), 3, control)


def moved(old: list, new: list, share: float, factors: list | None = None, *, control=None,
          impl: str = "auto") -> list:
    """old + (factor new - old) share of each pair; factors: one for each pair, 1 if there are none."""
    factors = [1.0] * len(old) if factors is None else factors
    if not kernels.use_fused(impl, SUPPORT[1], *old, *new):
        return [_unless(control, (o + (n * factor - o) * share,), (o,))[0]
                for o, n, factor in zip(old, new, factors)]
    return _fused("jea::Move", {"share": share}, (old, new), 1, control, factors)[0]


def _scaled(gradients: list, control) -> list:
    return gradients if control is None else [g * control[1] for g in gradients]


def _unless(control, after: tuple, before: tuple) -> tuple:
    if control is None:
        return after
    return tuple(jt.ternary((control[:1] > 0).broadcast(a.shape), a, b) for a, b in zip(after, before))


def _fused(rule: str, numbers: dict, arrays: tuple, outputs: int, control, factors=None) -> tuple:
    """For each output the list of its Vars: the kernel runs on Vars of as many axes together."""
    found = [[None] * len(arrays[0]) for _ in range(outputs)]
    axes: dict = {}
    for index, var in enumerate(arrays[0]):
        axes.setdefault(len(var.shape), []).append(index)
    for indices in axes.values():
        for start in range(0, len(indices), _TOGETHER):
            chosen = indices[start:start + _TOGETHER]
            made = _together(rule, numbers, [[kind[i] for i in chosen] for kind in arrays], outputs, control,
                             None if factors is None else [factors[i] for i in chosen])
            for kind, vars in zip(found, made):
                for index, var in zip(chosen, vars):
                    kind[index] = var
    return tuple(found)


def _together(rule: str, numbers: dict, arrays: list, outputs: int, control, factors) -> list:
    # The last places of a call hold its smallest Var once more, so that one kernel serves any number of them.
    count = len(arrays[0])
    smallest = min(range(count), key=lambda i: arrays[0][i].numel())
    places = [*range(count), *[smallest] * (_TOGETHER - count)]
    inputs = [kind[i] for kind in arrays for i in places]
    data = {**numbers, **({} if factors is None else {f"factor{t}": factors[i] for t, i in enumerate(places)})}

    def row(name: str, k: int) -> str:
        return "{" + ", ".join(f"{name}{k * _TOGETHER + t}_p" for t in range(_TOGETHER)) + "}"
    given = ", ".join(row("in", k) for k in range(len(arrays)))
    taken = ", ".join(row("out", k) for k in range(outputs))
    counts = ", ".join(f"in{t}->num" for t in range(_TOGETHER))
    each = ", ".join(f'(float)data["factor{t}"]' for t in range(_TOGETHER)) if factors else ""
    fields = ", ".join(f'data["{name}"] != 0' if name == "nesterov" else f'(float)data["{name}"]' for name in numbers)
    held = "nullptr" if control is None else f"in{len(inputs)}_p"
    source = f"""const jea::Arrays<{rule}::kIn, {rule}::kOut> arrays{{
            {{{given}}}, {{{taken}}}, {{{counts}}}, {{{each}}}}};
        jea::update({rule}{{{fields}}}, arrays, {held});"""
    data = {name: float(value) for name, value in data.items()}
    results = kernels.code([arrays[0][i].shape for _ in range(outputs) for i in places],
                           ["float32"] * (outputs * _TOGETHER), inputs + ([] if control is None else [control]),
                           kernel="training/updates", data=data, source=source)
    return [results[k * _TOGETHER:k * _TOGETHER + count] for k in range(outputs)]
