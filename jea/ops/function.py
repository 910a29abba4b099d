"""An operator with a gradient of its own."""
from __future__ import annotations

import contextlib

from jea._jittor import jt

_Var = jt.Var


class Function:
    """An operator with a gradient of its own, used as jt.Function: subclasses define execute(*args) and grad(*douts).

    It costs less than jt.Function, which is a Module, and can let go of what it keeps: see single_use.
    """

    @classmethod
    def apply(cls, *args):
        return cls()(*args)

    def __call__(self, *args):
        self._wanted = [i for i, arg in enumerate(args) if isinstance(arg, _Var) and not arg.is_stop_grad()]
        if jt.flags.no_grad or not self._wanted:
            return self.execute(*args)
        args = list(args)
        for i in self._wanted:
            args[i] = args[i].tape()
        self._once = _single_use[-1]
        results = self.execute(*args)
        several = isinstance(results, (list, tuple))
        taped = [result.tape() for result in (results if several else (results,))]
        jt.tape_together([args[i] for i in self._wanted], taped, self._gradients)
        return taped if several else taped[0]

    def _gradients(self, *douts):
        found = self.grad(*douts)
        found = found if isinstance(found, (list, tuple)) else (found,)
        found = [found[i] for i in self._wanted]
        if self._once:
            vars(self).clear()
        return found


_single_use = [False]


@contextlib.contextmanager
def single_use():
    """Operators called inside let go of what they keep for their gradient once it is made: it can be made once.

    Otherwise Jittor frees that at the end of the whole step, when it frees the operators.
    """
    _single_use.append(True)
    try:
        yield
    finally:
        _single_use.pop()
