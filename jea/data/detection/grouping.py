"""Batches of pictures of like shape, so that little is padding."""
from __future__ import annotations

import numpy as np

from jea.data.loader import Loader, _generator


class GroupedLoader(Loader):
    """A Loader whose batches hold upright or wide pictures alone, but for those that are left over.

    dataset: one with `shape(index)` -> (height, width). Order and batches are a function of the seed and the epoch.
    """

    def epoch(self, epoch: int, start_batch: int = 0):
        """As Loader.epoch."""
        if not 0 <= start_batch <= len(self):
            raise ValueError(f"start_batch is {start_batch}; an epoch has {len(self)} batches")
        batches = self.order(epoch)[start_batch:]
        return self._workers.map((epoch, indices[self._share]) for indices in batches)

    def order(self, epoch: int) -> list:
        """The indices of each batch of an epoch."""
        rng, n = _generator(self._seed, epoch), self.batch_size
        order = rng.permutation(self._size)
        wide = np.array([h <= w for h, w in map(self.dataset.shape, order.tolist())])
        groups, left, batches = (order[wide], order[~wide]), [], []
        for group in groups:
            whole = len(group) // n * n
            batches += list(group[:whole].reshape(-1, n))
            left.append(group[whole:])
        rest = np.concatenate(left)
        batches += [rest[k:k + n] for k in range(0, len(rest) - (n - 1 if self._drop_last else 0), n)]
        return [batches[k] for k in rng.permutation(len(batches))]
