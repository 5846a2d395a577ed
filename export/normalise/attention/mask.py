"""What a mask hides, found by evaluating it at samples, and what FdppAttention gets in its place.

Attention of the op is causal by itself and knows windows. A mask that hides padding besides becomes a bias from
attention_mask; any other causal one, with slopes say, is added to the scores as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ...decoder_inputs import MASK
from .core import Cache, Core
from .declined import Declined
from .decoder import Decoder
from .lengths import lengths
from .samples import Sample

# Scores that differ by that much leave no weight: numbers of float16 reach no further than -65504.
_HIDDEN = -1e4


@dataclass(frozen=True)
class Mask:
    """window: tokens that a query sees, its own included; -1: all. padding: attention_mask hides some.

    own: the value to add as it is, where the rest does not say what is hidden."""

    window: int = -1
    padding: bool = False
    own: ir.Value | None = None


def mask_of(core: Core, decoder: Decoder) -> Mask:
    """What the mask of `core` is. Raises Declined if a query sees later tokens."""
    if core.mask is None and not core.causal:
        raise Declined("it has no mask: a query sees later tokens")
    key = core.mask, core.padding, core.causal
    if key not in decoder.masks:
        decoder.masks[key] = _mask_of(core, decoder) if core.mask or core.padding else Mask()
    return decoder.masks[key]


def _mask_of(core: Core, decoder: Decoder) -> Mask:
    # With a row as long as they get, so that a window shows, and where it ends for each of several tokens.
    seen = [_Seen(core, sample, decoder) for sample in (*decoder.samples, decoder.longest)]
    last = seen[-1].visible[0, 0, -1]
    window = int(last.sum()) if not last.all() else -1
    for padding in (False, True):
        if all(look.is_plain(window, padding) for look in seen) and not (padding and decoder.input(MASK) is None):
            return Mask(window, padding)
    if core.padding is not None:
        raise Declined("its key_padding_mask hides something else than attention_mask does")
    return Mask(own=core.mask)


class _Seen:
    """The mask of `core` at a sample. Raises Declined if it lets a query see later tokens, which causal rules out."""

    def __init__(self, core: Core, sample: Sample, decoder: Decoder) -> None:
        array = np.ones((1, 1), bool)
        if core.mask is not None:
            array = decoder.evaluate([core.mask], sample)[0]
        visible, self.added = _split(array)
        self.sample, earlier = sample, causal_mask(sample)
        try:
            self.visible = np.broadcast_to(visible, np.broadcast_shapes(visible.shape, earlier.shape))
        except ValueError as error:
            raise Declined(f"its mask has shape {list(array.shape)} for {sample.tokens} of {sample.total}") from error
        if core.padding is not None:
            padding = decoder.evaluate([core.padding], sample)[0]
            if padding.shape != (sample.batch, sample.columns):
                raise Declined(f"its key_padding_mask has shape {list(padding.shape)}, expected [batch, total tokens]")
            self.visible = self.visible & (padding != 0)[:, None, None]
        if core.causal:
            self.visible = self.visible & earlier
        elif np.any(self.visible & ~earlier):
            raise Declined("its mask lets a query see later tokens: it is not causal")

    def is_plain(self, window: int, padding: bool) -> bool:
        """Whether it hides what lies outside the window, padding if `padding`, and does nothing else."""
        hidden = causal_mask(self.sample, window)
        real = np.ones(1, bool)
        if padding:
            mask = self.sample.mask()
            hidden = hidden & mask[:, None, None]
            # What padding sees reaches nobody.
            real = mask[:, None, self.sample.past : self.sample.total, None]
        return not np.any(self.added) and bool(np.all((self.visible == hidden) | ~real))


def causal_mask(sample: Sample, window: int = -1) -> np.ndarray:
    """bool [batch, 1, tokens, columns]: which keys come no later than a query, and within its window."""
    distance = sample.places()[:, :, None] - np.arange(sample.columns)
    visible = (distance >= 0) & ((distance < window) | (window < 0))
    return visible[:, None]


def _split(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which scores `mask` leaves visible, and what it adds to those."""
    if mask.dtype == bool:
        return mask, np.zeros(1)
    visible = mask.astype(np.float32) > _HIDDEN
    return visible, np.where(visible, mask.astype(np.float32), 0)


def bias(mask: Mask, cache: Cache, node: ir.Node, decoder: Decoder) -> ir.Value | None:
    """attention_bias in the type of `cache`, made ahead of `node` or of all nodes; None: none is needed."""
    if mask.own is not None:
        return _own(mask.own, cache.past.dtype, node, decoder)
    return _padding(cache, decoder) if mask.padding else None


def _padding(cache: Cache, decoder: Decoder) -> ir.Value:
    """[B, 1, S, T] from attention_mask [B, T], or [B, slots of a cache of fixed size]."""
    dtype = cache.past.dtype
    int64, kind = ir.DataType.INT64, dtype.name.lower()
    visible = decoder.add("Cast", [decoder.input(MASK)], "fdpp.visible", ir.DataType.BOOL, to=ir.DataType.BOOL)
    numbers = decoder.add("Where", [visible, *_zero_and_lowest(dtype, decoder)], f"fdpp.padding.{kind}", dtype)
    if cache.slots is not None:
        _, total = lengths(True, cache, decoder)
        total = decoder.add("Cast", [total], f"{total.name}.int64", int64, to=int64)
        in_use = [numbers, decoder.ints(0), total, decoder.ints(1)]
        numbers = decoder.add("Slice", in_use, f"{total.name}.padding.{kind}", dtype)
    row = decoder.add("Unsqueeze", [numbers, decoder.ints(1, 2)], f"fdpp.padding_row.{kind}", dtype)
    count = decoder.add("Shape", [decoder.tokens()], "fdpp.tokens", int64, start=1, end=2)
    shape = [decoder.ints(1, 1), count, decoder.ints(1)]
    shape = decoder.add("Concat", shape, "fdpp.bias_shape", int64, axis=0)
    return decoder.add("Expand", [row, shape], f"fdpp.attention_bias.{kind}", dtype)


def _own(mask: ir.Value, dtype: ir.DataType, node: ir.Node, decoder: Decoder) -> ir.Value:
    """`mask` itself, or numbers for a bool one."""
    for sample in decoder.samples:
        shape = decoder.evaluate([mask], sample)[0].shape
        if len(shape) != 4 or shape[2:] != (sample.tokens, sample.total):
            raise Declined(f"what its mask adds has shape {list(shape)}, expected [batch, heads, tokens, total tokens]")
    if mask.dtype == dtype:
        return mask
    if mask.dtype != ir.DataType.BOOL:
        raise Declined(f"its mask is of {mask.dtype}, its keys are of {dtype}")
    return decoder.add_before(node, "Where", [mask, *_zero_and_lowest(dtype, decoder)], f"{mask.name}.bias", dtype)


def _zero_and_lowest(dtype: ir.DataType, decoder: Decoder) -> list[ir.Value]:
    return [
        decoder.constant(np.array(number, dtype.numpy()), f"fdpp.{name}.{dtype.name.lower()}")
        for name, number in (("zero", 0), ("lowest", -np.inf))
    ]
