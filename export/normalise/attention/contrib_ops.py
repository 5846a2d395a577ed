"""Ops of ONNX Runtime's domain com.microsoft for ONNX's reference evaluator, as far as the dialects take them."""

from __future__ import annotations

import numpy as np
from onnx.reference.op_run import OpRun


class RotaryEmbedding(OpRun):
    """x [B, S, H * D] or [B, H, S, D], position_ids [B, S], cos_cache and sin_cache [positions, rotary dim / 2]."""

    op_domain = "com.microsoft"

    def _run(self, x, position_ids, cos_cache, sin_cache, *, interleaved=0, num_heads=0, **_):
        cos, sin = (cache[position_ids][:, None] for cache in (cos_cache, sin_cache))
        if x.ndim == 4:
            return (rotated(x, cos, sin, interleaved),)
        heads = num_heads or x.shape[-1] // (2 * cos.shape[-1])
        split = x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)
        return (rotated(split, cos, sin, interleaved).swapaxes(1, 2).reshape(x.shape),)


class MultiHeadAttention(OpRun):
    """query [B, S, H * D], key and value [B, T, H * D], bias [3 * H * D], key_padding_mask [B, P + T], attention_bias;
    past_key and past_value [B, H, P, D]."""

    op_domain = "com.microsoft"

    def _run(self, query, key, value, *optional, num_heads, scale=0.0, unidirectional=0, **_):
        bias, padding, attention_bias, past_key, past_value = [*optional, *[None] * (5 - len(optional))]
        q, k, v = _heads(query, key, value, bias, num_heads)
        if past_key is not None:
            k, v = np.concatenate([past_key, k], axis=2), np.concatenate([past_value, v], axis=2)
        visible = np.ones((1, 1), bool)
        if unidirectional:
            visible = np.tri(q.shape[2], k.shape[2], k.shape[2] - q.shape[2], bool)
        output = _attention(q, k, v, scale, padding, attention_bias, visible)
        return (output, k, v)[: len(self.onnx_node.output)]


class DecoderMaskedMultiHeadAttention(OpRun):
    """query, key and value [B, S, H * D], mask_index [B, L], attention_bias; past_key and past_value [B, H, L, D], of
    which past_sequence_length [1] tokens are in use; bias [3 * H * D]."""

    op_domain = "com.microsoft"

    def _run(self, query, key, value, *optional, num_heads, scale=0.0, **_):
        padding, attention_bias, past_key, past_value, used, _, _, bias = [*optional, *[None] * (8 - len(optional))]
        q, k, v = _heads(query, key, value, bias, num_heads)
        keys, values, first = past_key.copy(), past_value.copy(), int(used.item())
        keys[:, :, first : first + k.shape[2]], values[:, :, first : first + k.shape[2]] = k, v
        visible = np.tri(q.shape[2], keys.shape[2], first, bool)
        return _attention(q, keys, values, scale, padding, attention_bias, visible), keys, values


OPS = (RotaryEmbedding, MultiHeadAttention, DecoderMaskedMultiHeadAttention)


def _heads(query, key, value, bias: np.ndarray | None, count: int) -> list[np.ndarray]:
    """Each [B, H, S, D], with its part of `bias` added."""
    parts = [query, key, value]
    if bias is not None:
        ends = np.cumsum([query.shape[-1], key.shape[-1]])
        parts = [part + columns for part, columns in zip(parts, np.split(bias, ends), strict=True)]
    return [part.reshape(*part.shape[:2], count, -1).swapaxes(1, 2) for part in parts]


def _attention(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    scale: float,
    padding: np.ndarray | None,
    bias: np.ndarray | None,
    visible: np.ndarray,
) -> np.ndarray:
    """[B, S, H * D] of q [B, H, S, D], k and v [B, H, T, D]; visible: bool, broadcast to [B, H, S, T]."""
    scores = (q * np.asarray(scale or 1 / np.sqrt(q.shape[-1]), q.dtype)) @ k.swapaxes(2, 3)
    if bias is not None:
        scores = scores + bias
    if padding is not None:
        visible = visible & (padding[:, None, None] != 0)
    scores = np.where(visible, scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    output = weights / weights.sum(axis=-1, keepdims=True) @ v
    return output.swapaxes(1, 2).reshape(q.shape[0], q.shape[2], -1).astype(q.dtype)


def rotated(x: np.ndarray, cos: np.ndarray, sin: np.ndarray, interleaved: int) -> np.ndarray:
    """x [B, H, S, D] with its first columns rotated, halves or, `interleaved`, neighbours together."""
    x, columns = x.copy(), 2 * cos.shape[-1]
    if interleaved:
        first, second = slice(0, columns, 2), slice(1, columns, 2)
    else:
        first, second = slice(0, columns // 2), slice(columns // 2, columns)
    a, b = x[..., first].copy(), x[..., second].copy()
    x[..., first], x[..., second] = a * cos - b * sin, b * cos + a * sin
    return x
