"""Batches prepared in worker processes, the same whatever their number.

Order and augmentation are a pure function of (seed, epoch, index), so a run that was resumed in the middle of
an epoch sees what the unbroken run saw, and so does a run with another `num_workers`.

Workers are spawned: a process that has run Jittor's threads must not be forked. They import numpy and Pillow
only.
"""
from __future__ import annotations

import collections
import contextlib
import itertools
import multiprocessing.context
import os
import pickle
import signal
import sys
import traceback
import types
from typing import Any, Callable, Iterable, Iterator

import numpy as np

from jea.data.dataset import Batch, Dataset
from jea.errors import ConfigError, DataError, UserError

_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_PARENT_DECIDES = (signal.SIGINT, signal.SIGTERM)


class Loader:
    """Training batches of a dataset.

    dataset: a Dataset with `train_sample`. It is pickled to the workers.
    batch_size: samples per batch.
    seed: a whole number >= 0.
    num_workers: processes that prepare batches; 0 prepares them in this process.
    drop_last: leave out the last batch of an epoch where it would be smaller.
    share: (k, n), to get only every n-th sample of each batch from the k-th on: what one of n processes trains on.
    prefetch: batches under way or waiting, per worker.

    Close it, or use it in a `with` block, to end the workers.
    """

    def __init__(self, dataset: Dataset, *, batch_size: int, seed: int = 0, num_workers: int = 0,
                 drop_last: bool = True, prefetch: int = 2, share: tuple[int, int] = (0, 1)):
        if batch_size < 1 or seed < 0 or num_workers < 0 or prefetch < 1:
            raise ValueError("expected batch_size >= 1, seed >= 0, num_workers >= 0 and prefetch >= 1, "
                             f"got {batch_size}, {seed}, {num_workers} and {prefetch}")
        if not len(dataset) // batch_size and (drop_last or not len(dataset)):
            raise DataError(f"the data set has {len(dataset)} samples, fewer than one batch of {batch_size}: "
                            "nothing to train on; use a smaller batch_size or drop_last=False")
        if not 0 <= share[0] < share[1] or share[1] > 1 and (batch_size % share[1] or not drop_last):
            raise ValueError(f"share is {share}, batch_size {batch_size}; expected (k, n), 0 <= k < n, an n that "
                             "divides batch_size, and drop_last")
        self.dataset, self.batch_size = dataset, batch_size
        self._share = slice(share[0], None, share[1])
        self._size = len(dataset)
        self._seed = seed
        self._drop_last = drop_last
        self._workers = _Workers(_MakeBatch(dataset, seed), num_workers, prefetch)

    def __len__(self) -> int:
        """Batches per epoch."""
        return self._size // self.batch_size if self._drop_last else -(-self._size // self.batch_size)

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from `start_batch` on.

        A batch is what the data set's `collate` makes of the samples ("image" (B, 3, H, W) float32, "label" (B, H, W)
        int32), and "index" (B,) int64, the samples' places in the data set. The iterator may be left early. A
        DataError in a worker is raised here unchanged; a worker that died is a DataError as well.
        """
        if not 0 <= start_batch <= len(self):
            raise ValueError(f"start_batch is {start_batch}; an epoch has {len(self)} batches")
        order = _generator(self._seed, epoch).permutation(self._size)
        starts = range(start_batch * self.batch_size, len(self) * self.batch_size, self.batch_size)
        return self._workers.map((epoch, order[start:start + self.batch_size][self._share]) for start in starts)

    def close(self) -> None:
        """End the workers; a later `epoch` starts new ones."""
        self._workers.close()

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def map_ordered(function: Callable[[Any], Any], items: Iterable[Any], num_workers: int,
                *, prefetch: int = 2) -> Iterator[Any]:
    """`map(function, items)` in worker processes, results in order, at most prefetch * num_workers under way.

    `function` is pickled once per worker, so it may carry a data set (`dataset.test_sample`); items should be
    small (indices, paths), as a worker may be busy sending a result while they are sent. With
    num_workers = 0 it is plain `map`. Errors arrive as from `Loader.epoch`.
    """
    workers = _Workers(function, num_workers, prefetch)
    try:
        yield from workers.map(items)
    finally:
        workers.close()


def _generator(*seeds: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seeds))


class _MakeBatch:
    """(epoch, indices) -> batch. Holds everything that a worker needs."""

    def __init__(self, dataset, seed):
        self.dataset = dataset
        self.seed = seed

    def __call__(self, task) -> Batch:
        epoch, indices = task
        # index + 1, as PCG64 pads its seed with zeros: (seed, epoch, 0) is the stream that shuffled them.
        batch = self.dataset.collate([self.dataset.train_sample(i, _generator(self.seed, epoch, i + 1))
                                      for i in indices.tolist()])
        batch["index"] = indices.astype(np.int64)
        return batch


def batched(items: Iterable[Any], size: int) -> Iterator[list]:
    """Lists of `size` items, the last one of what is left."""
    batch: list = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


class _Workers:
    """A function applied to items in order by workers, which start on first use and stay until `close`.

    Item k goes to worker k modulo their number, each over a pipe of its own: a worker that dies, even in the
    middle of a result, closes its pipe. (concurrent.futures' shared result pipe would block for ever.)
    """

    def __init__(self, function: Callable[[Any], Any], num_workers: int, prefetch: int):
        self._function = function
        self._num_workers = num_workers
        self._prefetch = prefetch
        self._workers: list[_Worker] = []

    def map(self, items: Iterable[Any]) -> Iterator[Any]:
        if not self._num_workers:
            yield from map(self._function, items)
            return
        items = iter(items)
        turns: collections.deque = collections.deque()  # (worker, ticket) of the results to come, in order
        try:
            self._start()
            workers = itertools.cycle(self._workers)
            while True:
                for item in itertools.islice(items, self._prefetch * self._num_workers - len(turns)):
                    worker = next(workers)
                    turns.append((worker, worker.ask(item)))
                if not turns:
                    return
                worker, ticket = turns.popleft()
                yield worker.answer(ticket)
        except _WorkerDied:
            self.close()
            turns.clear()
            raise DataError(
                f"a data worker died (one of {self._num_workers}); most often the system ran out of memory "
                "and killed it. Use fewer num_workers or a smaller batch, or num_workers=0 to prepare the "
                "data in the main process") from None
        finally:
            for worker, ticket in turns:
                worker.forget(ticket)

    def _start(self) -> None:
        if self._workers:
            return
        try:
            payload = pickle.dumps(self._function, pickle.HIGHEST_PROTOCOL)
        except Exception as error:
            raise DataError(f"cannot send the data set to worker processes ({type(error).__name__}: "
                            f"{error}); define it at the top of a module, or use num_workers=0") from error
        # The script that started the training is sent along only where the data set needs it.
        context = _MainContext() if b"__main__" in payload else _Context()
        self._workers = [_Worker(context, payload) for _ in range(self._num_workers)]

    def close(self) -> None:
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.close()


class _WorkerDied(Exception):
    pass


class _Worker:
    """A process at the other end of a pipe, which answers in the order it was asked."""

    def __init__(self, context, payload: bytes):
        self._asked = 0
        self._waiting: collections.deque = collections.deque()  # tickets without an answer; None: nobody wants it
        self._answers: dict = {}  # ticket -> answer that arrived while another was wanted
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, payload), daemon=True)
        self._process.start()
        theirs.close()  # so that the pipe ends with the worker

    def ask(self, item: Any) -> int:
        """Returns the ticket for `answer`."""
        try:
            self._pipe.send(item)
        except OSError:
            raise _WorkerDied from None
        self._asked += 1
        self._waiting.append(self._asked)
        return self._asked

    def forget(self, ticket: int) -> None:
        if self._answers.pop(ticket, None) is None and ticket in self._waiting:
            self._waiting[self._waiting.index(ticket)] = None

    def answer(self, ticket: int) -> Any:
        try:
            while ticket not in self._answers:
                first = self._waiting.popleft()
                if first is None:
                    self._pipe.recv_bytes()
                else:
                    self._answers[first] = self._pipe.recv()
        except (EOFError, OSError):
            raise _WorkerDied from None
        good, value, text = self._answers.pop(ticket)
        if good:
            return value
        raise value from (None if isinstance(value, UserError) else RuntimeError(f"in a data worker:\n{text}"))

    def close(self) -> None:
        self._pipe.close()  # ends the worker, at the latest when it sends its next result
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


# In the worker

def _serve(pipe, payload: bytes) -> None:
    for number in _PARENT_DECIDES:  # they go to the whole process group
        signal.signal(number, signal.SIG_IGN)
    jittor = f"{__package__.split('.')[0]}._jittor"  # which is not imported here, but kept from being so
    sys.modules[jittor] = _NoJittor(jittor)
    function = None
    with contextlib.suppress(EOFError, OSError):  # the parent closed the pipe, or is gone
        while True:
            item = pipe.recv()
            try:
                function = function or pickle.loads(payload)
                message = (True, function(item), "")
            except Exception as error:
                message = (False, _sendable(error), traceback.format_exc())
            pipe.send(message)


class _NoJittor(types.ModuleType):
    """Stands for Jittor in a worker, which would take seconds and memory to import it and fail in the end."""

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        raise ConfigError("the data set's file imports Jittor, which the processes that read data do without: put the "
                          "data set "
                          "into a file of its own, or say train.num_workers=0 (and eval.num_workers=0)")


def _sendable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")


# Starting workers

@contextlib.contextmanager
def _quiet_start():
    """What a worker inherits: one thread per library, and the parent's signals blocked from its birth."""
    saved = {name: os.environ.get(name) for name in _ONE_THREAD}
    posix = hasattr(signal, "pthread_sigmask")
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _PARENT_DECIDES) if posix else None
    try:
        os.environ.update(dict.fromkeys(_ONE_THREAD, "1"))
        yield
    finally:
        for name, value in saved.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        if posix:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@contextlib.contextmanager
def _no_main():
    """Hide the main module from `spawn`, which would import the user's script again in every worker.

    That costs the import of all that it imports (Jittor), runs a script without `if __name__ == "__main__"`
    once more, and fails where there is no file (standard input).
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


class _MainProcess(multiprocessing.context.SpawnProcess):
    @staticmethod
    def _Popen(process_obj):
        with _quiet_start():
            return multiprocessing.context.SpawnProcess._Popen(process_obj)


class _Process(multiprocessing.context.SpawnProcess):
    @staticmethod
    def _Popen(process_obj):
        with _quiet_start(), _no_main():
            return multiprocessing.context.SpawnProcess._Popen(process_obj)


class _MainContext(multiprocessing.context.SpawnContext):
    """Spawn with the main module: the data set's class is defined in it."""

    Process = _MainProcess


class _Context(multiprocessing.context.SpawnContext):
    Process = _Process
