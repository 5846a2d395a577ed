"""Blocks of K whose numbers share a scale: those that a graph has, as blocks that FdppFlatGemm has."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..weight_format import BLOCK_SIZES

EXPECTED = f"{', '.join(map(str, BLOCK_SIZES))} or a multiple of {BLOCK_SIZES[-1]}"


@dataclass(frozen=True)
class Blocks:
    """Of rows of `columns` numbers, `size` in a block; 0: all."""

    columns: int
    size: int

    @property
    def count(self) -> int:
        """Of the graph's blocks in a row."""
        return -(-self.columns // self.size) if self.size else 1

    @property
    def stored(self) -> int | None:
        """The size of blocks into which the graph's can be cut; None: there is none."""
        if self.size in BLOCK_SIZES:
            return self.size
        if self.count == 1:  # GPUs have the fastest kernels for even numbers of blocks of 32 and more
            return next((size for size in BLOCK_SIZES[:0:-1] if self.columns % (2 * size) == 0), BLOCK_SIZES[1])
        return BLOCK_SIZES[-1] if self.size % BLOCK_SIZES[-1] == 0 else None

    @property
    def stored_count(self) -> int:
        """Of the blocks in a row that are stored."""
        return -(-self.columns // self.stored)

    def spread(self, values: np.ndarray) -> np.ndarray:
        """Of `values` [N, count], one a block, those of the blocks that are stored: [N, stored_count]."""
        times = self.stored_count if self.count == 1 else self.size // self.stored
        return np.repeat(values, times, axis=1)[:, : self.stored_count]
