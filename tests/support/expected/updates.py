"""Optimizers' steps in float64, element by element. control: None, or (whether anything changes, gradients' factor)."""
import numpy as np


def controlled(function):
    def run(*values, control=None, **options):
        values = [v.astype(np.float64) for v in values[:4] if isinstance(v, np.ndarray)] + [
            v for v in values if not isinstance(v, np.ndarray)]
        before = function.before(values)
        if control is not None:
            if not control[0]:
                return before
            if function is not _move:
                values[1] = values[1] * control[1]
        return function(*values, **options)
    return run


def _sgd(p, g, v, *, lr, momentum=0.0, weight_decay=0.0, dampening=0.0, nesterov=False):
    d = g + weight_decay * p
    v = momentum * v + (1 - dampening) * d
    return p - lr * (d + momentum * v if nesterov else v), v


def _adam(p, g, v, m, *, lr, betas, eps, steps, weight_decay=0.0, decoupled=False, eps_inside=False):
    if decoupled:
        p = p * (1 - lr * weight_decay)
    else:
        g = g + weight_decay * p
    m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g ** 2
    right = np.sqrt(1 - betas[1] ** steps)
    denominator = (np.sqrt(v) + eps) / right if eps_inside else np.sqrt(v) / right + eps
    return p - lr / (1 - betas[0] ** steps) * m / denominator, v, m


def _move(old, new, share, factor=1):
    return old + (factor * new - old) * share


_sgd.before = lambda values: (values[0], values[2])
_adam.before = lambda values: (values[0], values[2], values[3])
_move.before = lambda values: values[0]
sgd, adam, move = map(controlled, (_sgd, _adam, _move))
