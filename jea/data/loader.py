"""Batches prepared in worker processes, the same whatever their number.

Order and augmentation are a pure function of (seed, epoch, index), so a run that was resumed in the middle of
an epoch sees what the unbroken run saw, and so does a run with another `num_workers`.

Workers are spawned: a process that has run Jittor's threads must not be forked. They import numpy and Pillow
only.
"""
from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import multiprocessing
import multiprocessing.context
import os
import pickle
import signal
import sys
import threading
import types
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Callable, Dict, Iterable, Iterator, Optional

import numpy as np

from .errors import DataError

_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Loader:
    """Training batches of a dataset.

    dataset: has `__len__` and `train_sample(index, rng)`, which returns a dict of numpy arrays. It is pickled
        to the workers.
    batch_size: samples per batch.
    seed: a whole number >= 0.
    num_workers: processes that prepare batches; 0 prepares them in this process.
    drop_last: leave out the last batch of an epoch where it would be smaller.
    prefetch: batches under way or waiting, per worker.

    Close it, or use it in a `with` block, to end the workers.
    """

    def __init__(self, dataset, *, batch_size: int, seed: int = 0, num_workers: int = 0,
                 drop_last: bool = True, prefetch: int = 2):
        if batch_size < 1 or seed < 0 or num_workers < 0 or prefetch < 1:
            raise ValueError("expected batch_size >= 1, seed >= 0, num_workers >= 0 and prefetch >= 1, "
                             f"got {batch_size}, {seed}, {num_workers} and {prefetch}")
        if not len(dataset) // batch_size and (drop_last or not len(dataset)):
            raise DataError(f"the data set has {len(dataset)} samples, fewer than one batch of {batch_size}: "
                            "nothing to train on; use a smaller batch_size or drop_last=False")
        self.batch_size = batch_size
        self._size = len(dataset)
        self._seed = seed
        self._drop_last = drop_last
        self._workers = _Workers(_MakeBatch(dataset, seed), num_workers, prefetch)

    def __len__(self) -> int:
        """Batches per epoch."""
        return self._size // self.batch_size if self._drop_last else -(-self._size // self.batch_size)

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Dict[str, np.ndarray]]:
        """The batches of an epoch from `start_batch` on.

        A batch has what the samples have, stacked ("image" (B, 3, H, W) float32, "label" (B, H, W) int32),
        and "index" (B,) int64, the samples' places in the data set. The iterator may be left early. A
        DataError in a worker is raised here unchanged; a worker that died is a DataError as well.
        """
        if not 0 <= start_batch <= len(self):
            raise ValueError(f"start_batch is {start_batch}; an epoch has {len(self)} batches")
        order = _generator(self._seed, epoch).permutation(self._size)
        starts = range(start_batch * self.batch_size, len(self) * self.batch_size, self.batch_size)
        return self._workers.map((epoch, order[start:start + self.batch_size]) for start in starts)

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

    `function` is pickled once per worker, so it may carry a data set (`dataset.test_sample`). With
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

    def __call__(self, task) -> Dict[str, np.ndarray]:
        epoch, indices = task
        # index + 1, as PCG64 pads its seed with zeros: (seed, epoch, 0) is the stream that shuffled them.
        samples = [self.dataset.train_sample(i, _generator(self.seed, epoch, i + 1))
                   for i in indices.tolist()]
        batch = {key: np.stack([sample[key] for sample in samples]) for key in samples[0]}
        batch["index"] = indices.astype(np.int64)
        return batch


class _Workers:
    """A function applied to items in order by workers, which start on first use and stay until `close`."""

    def __init__(self, function: Callable[[Any], Any], num_workers: int, prefetch: int):
        self._function = function
        self._num_workers = num_workers
        self._prefetch = prefetch
        self._pool: Optional[concurrent.futures.ProcessPoolExecutor] = None

    def map(self, items: Iterable[Any]) -> Iterator[Any]:
        if not self._num_workers:
            yield from map(self._function, items)
            return
        pending: collections.deque = collections.deque()
        items = iter(items)
        try:
            while True:
                while len(pending) < self._prefetch * self._num_workers:
                    try:
                        item = next(items)
                    except StopIteration:
                        break
                    pending.append(self._running_pool().submit(_call, item))
                if not pending:
                    return
                yield pending.popleft().result()
        except BrokenProcessPool:
            self.close()
            raise DataError(
                f"a data worker died (one of {self._num_workers}); most often the system ran out of memory "
                "and killed it. Use fewer num_workers or a smaller batch, or num_workers=0 to prepare the "
                "data in the main process") from None
        finally:
            for future in pending:
                future.cancel()

    def _running_pool(self) -> concurrent.futures.ProcessPoolExecutor:
        if self._pool is None:
            try:
                payload = pickle.dumps(self._function, pickle.HIGHEST_PROTOCOL)
            except Exception as error:
                raise DataError(f"cannot send the data set to worker processes ({type(error).__name__}: "
                                f"{error}); define it at the top of a module, or use num_workers=0"
                                ) from error
            # The script that started the training is sent along only where the data set needs it.
            context = _MainContext() if b"__main__" in payload else _Context()
            self._pool = concurrent.futures.ProcessPoolExecutor(
                self._num_workers, mp_context=context, initializer=_start_worker, initargs=(payload,))
        return self._pool

    def close(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)


# In the worker

_payload: bytes = b""
_function: Optional[Callable[[Any], Any]] = None


def _start_worker(payload: bytes) -> None:
    global _payload
    _payload = payload
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """The pool's queues keep themselves open, so a worker would outlive a parent that was killed."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _call(item: Any) -> Any:
    global _function
    if _function is None:  # here and not in _start_worker, whose errors would not reach the parent
        _function = pickle.loads(_payload)
    return _function(item)


# Starting workers

@contextlib.contextmanager
def _quiet_start():
    """What a worker inherits: one thread per library, and SIGINT blocked until its handler is set."""
    saved = {name: os.environ.get(name) for name in _ONE_THREAD}
    posix = hasattr(signal, "pthread_sigmask")
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if posix else None
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
