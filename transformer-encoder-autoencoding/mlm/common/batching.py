"""The batches of an epoch: sequences of like length together, in an order that the seed decides, planned a block
of the corpus at a time, so that memory does not grow with the corpus."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from .token_store import Sequences

BLOCK = 2**17  # sequences that are shuffled together, sorted by length and grouped into batches
# A block takes CHUNK neighbours from each of 16 places of the corpus. More places would mix better, but the
# operating system may map 2 MB of every file around each place, and counts that as memory used.
CHUNK = 2**13


def batch_bounds(lengths: np.ndarray, batch_tokens: int) -> list[int]:
    """Split a list of sequences into batches, each as large as fits: the number of its sequences times the
    longest is at most batch_tokens, unless it holds one sequence. Return the bounds, 0 and len(lengths)
    included."""
    bounds = [0]
    while (start := bounds[-1]) < len(lengths):
        most = batch_tokens // int(lengths[start]) + 1
        widths = np.maximum.accumulate(lengths[start : start + most])
        fitting = np.searchsorted(widths * np.arange(1, len(widths) + 1), batch_tokens, side="right")
        bounds.append(start + max(1, int(fitting)))
    return bounds


class BatchSampler(Sequence):
    """One epoch's batches, as arrays of indices: a function of the seed alone, at any position.

    Sequences of like length go together, so that B times the longest is at most batch_tokens with little
    padding; a longer one is a batch alone. The seed decides which sequences of one length meet, and the order
    of the batches.

    A corpus of more than BLOCK sequences is planned in blocks, whose order is drawn too. Of n blocks, block j
    has chunks j, j + n, j + 2n ... of the text in every epoch: each block has something of the whole corpus,
    and every epoch has the same number of batches.
    """

    def __init__(self, sides: Sequence[Sequences], batch_tokens: int, seed: int | list[int]):
        """sides: the sequences of each index, such as source and target; the last one is sorted by first."""
        self.sides, self.batch_tokens = sides, batch_tokens
        self.n_blocks = n = -(-len(sides[0]) // BLOCK)
        self.order = np.random.default_rng(seed).permutation(n)
        root = np.random.SeedSequence(seed)
        self.seeds = root.spawn(n) if n > 1 else [root]
        self.ends = np.cumsum([self.count(number) for number in self.order])
        self.planned, self.batches = -1, []  # which block of the order is planned, and its batches

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, position: int) -> np.ndarray:
        if not 0 <= position < len(self):
            raise IndexError(position)
        place = int(np.searchsorted(self.ends, position, side="right"))
        if place != self.planned:
            self.planned, self.batches = place, self.plan(self.order[place])
        return self.batches[position - int(self.ends[place])]  # negative: counted from the block's end

    def block(self, number: int) -> np.ndarray:
        """Return the indices of a block, in the order of the corpus, and free the memory of other blocks."""
        for side in self.sides:
            side.release()
        n = len(self.sides[0])
        chunks = np.arange(number, -(-n // CHUNK), self.n_blocks)
        indices = (chunks[:, None] * CHUNK + np.arange(CHUNK)).ravel()
        return indices[indices < n]

    def sorted(self, indices: np.ndarray) -> tuple[np.ndarray, list[int]]:
        """Return the same indices sorted by length, and the bounds of their batches."""
        order = indices[np.lexsort([side.lengths[indices] for side in self.sides])]
        longest = np.maximum.reduce([side.lengths[order] for side in self.sides])
        return order, batch_bounds(longest, self.batch_tokens)

    def count(self, number: int) -> int:
        """Return the number of batches of a block, which does not depend on how it is shuffled."""
        return len(self.sorted(self.block(number))[1]) - 1

    def plan(self, number: int) -> list[np.ndarray]:
        """Return the batches of a block."""
        rng, indices = np.random.default_rng(self.seeds[number]), self.block(number)
        order, bounds = self.sorted(indices[rng.permutation(len(indices))])
        batches = [order[start:end] for start, end in pairwise(bounds)]
        return [batches[i] for i in rng.permutation(len(batches))]
