"""Small values for a decoder's inputs, at which parts of the graph are evaluated during the export."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

TOKENS = ("input_ids", "inputs_embeds")
MASK = "attention_mask"
_MOST = 1 << 16  # heads, columns of a head: far more than anybody has, and still room in memory


@dataclass(frozen=True)
class Sample:
    """`tokens` new tokens in each of `batch` rows on top of `past`; the last row begins with `padding` padding."""

    batch: int
    tokens: int
    past: int
    padding: int = 0

    @property
    def total(self) -> int:
        """Tokens in a row."""
        return self.past + self.tokens

    def mask(self) -> np.ndarray:
        """attention_mask, int64 [batch, total]: 0 for padding."""
        mask = np.ones((self.batch, self.total), np.int64)
        mask[-1, : self.padding] = 0
        return mask

    def position_ids(self) -> np.ndarray:
        """int64 [batch, tokens]: counted from the first token that is no padding, as transformers does."""
        return np.maximum(self.mask().cumsum(axis=1) - 1, 0)[:, self.past :]

    def places(self) -> np.ndarray:
        """int64 [batch, tokens]: places of the new tokens in the cache."""
        return np.tile(np.arange(self.past, self.total), (self.batch, 1))


# A prompt, several tokens on top of others, a decode step; with and without padding.
SAMPLES = (Sample(2, 5, 0), Sample(3, 5, 0, 2), Sample(2, 3, 4), Sample(3, 3, 4, 2), Sample(2, 1, 6, 2))


def is_past(value: ir.Value) -> bool:
    """Whether the graph input `value` is a cache, of [batch, heads, tokens, head size]."""
    shape = value.shape
    if shape is None or len(shape) != 4 or value.dtype is None or not value.dtype.is_floating_point():
        return False
    return all(isinstance(size, int) and 0 < size <= _MOST for size in (shape[1], shape[3]))


def input_values(graph: ir.Graph, sample: Sample) -> dict[ir.Value, np.ndarray]:
    """Values of those inputs of `graph` whose meaning is known, tokens and caches of zeros."""
    batch, tokens, past = sample.batch, sample.tokens, sample.past
    known = {
        "input_ids": np.zeros((batch, tokens)),
        MASK: sample.mask(),
        "position_ids": sample.position_ids(),
        "cache_position": np.arange(past, sample.total),
    }
    values = {}
    for value in graph.inputs:
        if value.name in known and value.shape is not None and len(value.shape) == known[value.name].ndim:
            values[value] = known[value.name].astype(value.dtype.numpy())
        elif is_past(value):
            shape = (batch, value.shape[1], past, value.shape[3])
            values[value] = np.broadcast_to(np.zeros((), value.dtype.numpy()), shape)  # takes no memory, however long
        elif value.name == "inputs_embeds" and value.shape is not None and isinstance(value.shape[-1], int):
            values[value] = np.zeros((batch, tokens, value.shape[-1]), value.dtype.numpy())
    return values
