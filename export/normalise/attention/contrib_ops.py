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
        if bias is not None:
            ends = np.cumsum([query.shape[-1], key.shape[-1]])
            query, key, value = (x + b for x, b in zip((query, key, value), np.split(bias, ends), strict=True))
        q, k, v = (part.reshape(*part.shape[:2], num_heads, -1).swapaxes(1, 2) for part in (query, key, value))
        if past_key is not None:
            k, v = np.concatenate([past_key, k], axis=2), np.concatenate([past_value, v], axis=2)
        scores = (q * np.asarray(scale or 1 / np.sqrt(q.shape[-1]), q.dtype)) @ k.swapaxes(2, 3)
        if attention_bias is not None:
            scores = scores + attention_bias
        if padding is not None:
            scores = np.where(padding[:, None, None] != 0, scores, -np.inf)
        if unidirectional:
            tokens, total = scores.shape[2:]
            scores = np.where(np.tri(tokens, total, total - tokens, bool), scores, -np.inf)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        output = weights / weights.sum(axis=-1, keepdims=True) @ v
        return (output.swapaxes(1, 2).reshape(query.shape).astype(query.dtype), k, v)[: len(self.onnx_node.output)]


OPS = (RotaryEmbedding, MultiHeadAttention)


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
