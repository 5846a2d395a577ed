"""Small values for a decoder's inputs, at which parts of the graph are evaluated during the export."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ...decoder_inputs import Call
from ...nodes import columns_of

_MOST = 1 << 16  # heads, columns of a head: far more than anybody has, and still room in memory


@dataclass(frozen=True)
class Sample:
    """`tokens` new tokens in each of `batch` rows on top of `past`; the last row begins with `padding` padding.

    room: tokens that caches of fixed size have room for; 0: they grow."""

    batch: int
    tokens: int
    past: int
    padding: int = 0
    room: int = 0

    @property
    def total(self) -> int:
        """Tokens in a row."""
        return self.past + self.tokens

    @property
    def columns(self) -> int:
        """Keys in present caches, those of slots not in use among them."""
        return self.room or self.total

    def mask(self) -> np.ndarray:
        """bool [batch, columns]: false for padding and for slots not in use."""
        mask = np.zeros((self.batch, self.columns), bool)
        mask[:, : self.total] = True
        mask[-1, : self.padding] = False
        return mask

    def places(self) -> np.ndarray:
        """int64 [batch, tokens]: places of the new tokens in the cache."""
        return np.tile(np.arange(self.past, self.total), (self.batch, 1))


# A prompt, several tokens on top of others, a decode step; with and without padding.
SAMPLES = (Sample(2, 5, 0), Sample(3, 5, 0, 2), Sample(2, 3, 4), Sample(3, 3, 4, 2), Sample(2, 1, 6, 2))
_MOST_SAMPLED = max(sample.total for sample in SAMPLES)


def is_past(value: ir.Value) -> bool:
    """Whether the graph input `value` is a cache, of [batch, heads, tokens, head size]."""
    shape = value.shape
    if shape is None or len(shape) != 4 or value.dtype is None or not value.dtype.is_floating_point():
        return False
    return all(isinstance(size, int) and 0 < size <= _MOST for size in (shape[1], shape[3]))


def fixed_room(graph: ir.Graph) -> int:
    """How many tokens the caches of `graph` have room for; 0: its inputs do not say, or say different things."""
    rooms = {past.shape[2] for past in graph.inputs if is_past(past)}
    room = rooms.pop() if len(rooms) == 1 else 0
    return room if isinstance(room, int) and room >= _MOST_SAMPLED else 0


def input_values(graph: ir.Graph, sample: Sample) -> dict[ir.Value, np.ndarray]:
    """Values of those inputs of `graph` whose meaning is known, tokens and caches of zeros."""
    batch, tokens, past = sample.batch, sample.tokens, sample.past
    known = Call(sample.mask(), np.full(batch, past), tokens).inputs()
    known["input_ids"] = [np.zeros((batch, tokens))]
    values = {}
    for value in graph.inputs:
        rank = len(value.shape) if value.shape is not None else None
        fits = [array for array in known.get(value.name, ()) if array.ndim == rank]
        if fits:
            values[value] = fits[0].astype(value.dtype.numpy())
        elif is_past(value):
            shape = (batch, value.shape[1], sample.room or past, value.shape[3])
            values[value] = np.broadcast_to(np.zeros((), value.dtype.numpy()), shape)  # takes no memory, however long
        elif value.name == "inputs_embeds" and (columns := columns_of(value)) is not None:
            values[value] = np.zeros((batch, tokens, columns), value.dtype.numpy())
    return values
