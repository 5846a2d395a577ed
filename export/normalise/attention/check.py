"""Whether GroupQueryAttention computes what the nodes that it replaces compute: both are run on random numbers.

The patterns of the dialects only find the parts of an attention. That all nodes in between mean what a decoder's nodes
usually mean (the order of heads and of dimensions, which key a group reads, which columns rotate) is established here.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .contrib_ops import rotated
from .core import Core
from .declined import Declined
from .decoder import Decoder
from .mask import Mask, causal_mask
from .parts import Heads, Layout, Parts
from .rotary import Tables
from .samples import Sample

_TOLERANCE = {ir.DataType.FLOAT: 1e-4, ir.DataType.FLOAT16: 1e-2, ir.DataType.BFLOAT16: 1e-1}


def interleaved(
    core: Core, parts: Parts, tables: Tables | None, mask: Mask, bias: ir.Value | None, decoder: Decoder
) -> int:
    """The value of rotary_interleaved with which both agree. Raises Declined if there is none."""
    dtype = parts.key_cache.past.dtype
    if dtype not in _TOLERANCE:
        raise Declined(f"its cache is of {dtype}")
    left = list(tables.interleaved if tables is not None else (0,))
    for number, sample in enumerate(decoder.samples):
        given = _random(parts, sample, np.random.default_rng(number))
        wanted = decoder.evaluate([parts.output, parts.key_cache.present, parts.value_cache.present], sample, given)
        added = np.zeros((1, 1, 1, sample.total), np.float32)
        if bias is not None:
            added = decoder.evaluate([bias], sample)[0].astype(np.float32)
        added = np.pad(added, [(0, 0)] * 3 + [(0, sample.columns - sample.total)])  # slots not in use
        bounds = np.where(causal_mask(sample, mask.window), added, -np.inf)
        real = sample.mask()[:, sample.past : sample.total]
        left = [
            choice
            for choice in left
            if all(
                _close(want[where], got[where], _TOLERANCE[dtype])
                for want, got, where in zip(
                    [_tokens_first(wanted[0]), *wanted[1:]],
                    _attention(core, parts, tables, bounds, choice, sample, given, decoder),
                    (real, ..., ...),
                    strict=True,
                )
            )
        ]
    if not left:
        raise Declined("what its nodes compute is not what GroupQueryAttention computes of the same queries and keys")
    return left[0]


def _random(parts: Parts, sample: Sample, random: np.random.Generator) -> dict[ir.Value, np.ndarray]:
    """Values for what goes into the attention."""
    given = {}
    for part in (parts.query, parts.key, parts.value):
        given[part.value] = {
            Layout.MERGED: [sample.batch, sample.tokens, part.count * parts.head_size],
            Layout.TOKENS_FIRST: [sample.batch, sample.tokens, part.count, parts.head_size],
            Layout.HEADS_FIRST: [sample.batch, part.count, sample.tokens, parts.head_size],
        }[part.layout]
    for cache in (parts.key_cache, parts.value_cache):
        given[cache.past] = [sample.batch, parts.key.count, sample.room or sample.past, parts.head_size]
    dtype = parts.key_cache.past.dtype.numpy()
    return {value: random.standard_normal(shape, np.float32).astype(dtype) for value, shape in given.items()}


def _tokens_first(output: np.ndarray) -> np.ndarray:
    """[B, S, Hq · D] of the attention's output, whose heads may stand apart."""
    if output.ndim == 4:
        output = output.swapaxes(1, 2)
    return output.reshape(*output.shape[:2], -1)


def _attention(
    core: Core,
    parts: Parts,
    tables: Tables | None,
    bias: np.ndarray,
    interleaved: int,
    sample: Sample,
    given: dict[ir.Value, np.ndarray],
    decoder: Decoder,
) -> list[np.ndarray]:
    """Output [B, S, Hq · D] and present keys and values by the definition of GroupQueryAttention, in float32."""
    inputs = [
        _heads_first(given[part.value].astype(np.float32), part) for part in (parts.query, parts.key, parts.value)
    ]
    if core.bias is not None:
        for array, columns in zip(inputs, parts.biases(core), strict=True):
            array += columns.reshape(1, array.shape[1], 1, -1)
    query, key, value = inputs
    if tables is not None:
        ids = sample.places()
        if tables.position_ids is not None:
            ids = decoder.evaluate([tables.position_ids], sample)[0]
        cos, sin = (table.const_value.numpy()[ids][:, None].astype(np.float32) for table in (tables.cos, tables.sin))
        query, key = (rotated(part, cos, sin, interleaved) for part in (query, key))
    keys, values = (
        _present(given[cache.past].astype(np.float32), new, sample)
        for cache, new in ((parts.key_cache, key), (parts.value_cache, value))
    )
    group = parts.query.count // parts.key.count
    scores = parts.scale * query @ np.repeat(keys, group, axis=1).swapaxes(2, 3)
    if core.softcap:
        scores = core.softcap * np.tanh(scores / core.softcap)
    scores = scores + bias
    if core.sinks is not None:
        sinks = core.sinks.const_value.numpy().astype(np.float32).reshape(1, -1, 1, 1)
        scores = np.concatenate([scores, np.broadcast_to(sinks, (*scores.shape[:-1], 1))], axis=-1)
    with np.errstate(invalid="ignore"):  # of queries that see nothing
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights = (weights / weights.sum(axis=-1, keepdims=True))[..., : values.shape[2]]
        output = weights @ np.repeat(values, group, axis=1)
    return [output.swapaxes(1, 2).reshape(sample.batch, sample.tokens, -1), keys, values]


def _present(past: np.ndarray, new: np.ndarray, sample: Sample) -> np.ndarray:
    if not sample.room:
        return np.concatenate([past, new], axis=2)
    past[:, :, sample.past : sample.total] = new
    return past


def _heads_first(array: np.ndarray, part: Heads) -> np.ndarray:
    """[B, H, S, D]"""
    if part.layout is Layout.HEADS_FIRST:
        return array
    return array.reshape(*array.shape[:2], part.count, -1).swapaxes(1, 2)


def _close(want: np.ndarray, got: np.ndarray, tolerance: float) -> bool:
    want = want.astype(np.float32)
    return want.shape == got.shape and np.allclose(want, got, rtol=tolerance, atol=tolerance)
