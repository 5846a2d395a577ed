"""FdppAttention from its statement in fdpp/attention.h: head norm, rotary embedding, append to the cache, attention.

The softmax modes differ in rounding alone, so the reference has one softmax; the naive computation measures against phi
where there is one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .cache import dequantise, quantise
from .precision import EXACT, Precision


@dataclass(eq=False)
class AttentionTensors:
    """Inputs of one call. None: absent.

    query [B, S, Hq, D]; key, value [B, S, Hkv, D]; past_key, past_value [B, Hkv, L, D], as stored; cos, sin
    [positions, R / 2]; sink [Hq]; position_ids [B, S]; bias [B or 1, Hq or 1, S, total]; q_norm, k_norm [D]; key_scale,
    value_scale: one element or [1, Hkv, 1, D], present where the cache has 8 bits; phi [Hq].
    ``lengths[b]``: tokens of row b once the S new ones are appended.
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    past_key: torch.Tensor | None
    past_value: torch.Tensor | None
    lengths: tuple[int, ...]
    prompt: bool
    cos: torch.Tensor | None = None
    sin: torch.Tensor | None = None
    sink: torch.Tensor | None = None
    interleaved: bool = False
    scale: float = 0.0
    softcap: float = 0.0
    window: int = -1
    position_ids: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    q_norm: torch.Tensor | None = None
    k_norm: torch.Tensor | None = None
    epsilon: float = 1e-6
    key_scale: torch.Tensor | None = None
    value_scale: torch.Tensor | None = None
    phi: torch.Tensor | None = None


@dataclass
class AttentionResult:
    """output [B, S, Hq, D]; new_key and new_value [B, Hkv, S, D]: what is appended to the cache; to one of 8 bits, the
    values that are to be quantised."""

    output: torch.Tensor
    new_key: torch.Tensor
    new_value: torch.Tensor


def normalise(x: torch.Tensor, weight: torch.Tensor | None, epsilon: float) -> torch.Tensor:
    """Divides the heads of x [S, heads, D] by their root mean square and multiplies them by weight [D]."""
    if weight is None:
        return x
    return x * (x.square().mean(-1, keepdim=True) + epsilon).rsqrt() * weight.to(x.dtype)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool) -> torch.Tensor:
    """Rotates the first R columns of x [S, heads, D] by the angles of its tokens; cos, sin [S, R / 2]."""
    half = cos.shape[-1]
    rotated, kept = x[..., : 2 * half], x[..., 2 * half :]
    if interleaved:
        first, second = rotated[..., 0::2], rotated[..., 1::2]
    else:
        first, second = rotated[..., :half], rotated[..., half:]
    cos, sin = cos[:, None, :], sin[:, None, :]
    turned = (first * cos - second * sin, second * cos + first * sin)
    both = torch.stack(turned, dim=-1).flatten(-2) if interleaved else torch.cat(turned, dim=-1)
    return torch.cat((both, kept), dim=-1)


# How far from phi the highest score may be for the naive computation to measure against phi.
NEAR_PHI = 6


# Libraries sum in blocks, which is better than naive: a plain kernel's sums over columns and over weights go in order.
def dot_products(query: torch.Tensor, keys: torch.Tensor, precision: Precision) -> torch.Tensor:
    """query [heads, rows, D] · keys [heads, n, D]ᵀ"""
    if precision is EXACT:
        return query @ keys.transpose(-1, -2)
    scores = torch.zeros(*query.shape[:2], keys.shape[1], dtype=precision.compute)
    for column, other in zip(query.permute(2, 0, 1).contiguous(), keys.permute(2, 0, 1).contiguous(), strict=True):
        scores.addcmul_(column[:, :, None], other[:, None, :])
    return scores


def sum_of(weights: torch.Tensor, precision: Precision) -> torch.Tensor:
    """weights [..., n] -> [..., 1]"""
    if precision is EXACT:
        return weights.sum(-1, keepdim=True)
    total = torch.zeros(weights.shape[:-1], dtype=precision.compute)
    for column in weights.movedim(-1, 0).contiguous():
        total += column
    return total[..., None]


def attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    positions: torch.Tensor,
    bias: torch.Tensor | None,
    t: AttentionTensors,
    precision: Precision,
) -> torch.Tensor:
    """Attention of query [S, Hq, D], at `positions` [S], over keys and values [Hkv, n, D] at positions 0 .. n - 1, with
    bias [Hq or 1, S, n]."""
    tokens, heads, head_size = query.shape
    kv_heads, context, _ = keys.shape
    group = heads // kv_heads
    grouped = query.reshape(tokens, kv_heads, group, head_size).permute(1, 2, 0, 3)  # [Hkv, group, S, D]
    scores = dot_products(grouped.flatten(1, 2), keys, precision).unflatten(1, (group, tokens))
    scores = scores * (t.scale or head_size**-0.5)
    if t.softcap > 0:
        scores = t.softcap * torch.tanh(scores / t.softcap)
    if bias is not None:
        scores = scores + bias.to(precision.compute).expand(heads, -1, -1).unflatten(0, (kv_heads, group))
    seen = torch.arange(context)[None, :] <= positions[:, None]
    if t.window > 0:
        seen &= torch.arange(context)[None, :] > positions[:, None] - t.window
    scores = scores.masked_fill(~seen, -torch.inf)
    highest = scores.amax(-1, keepdim=True)
    if t.sink is not None:
        sink = t.sink.to(precision.compute).reshape(kv_heads, group, 1, 1)
        highest = torch.maximum(highest, sink)
    subtrahend = highest.nan_to_num(neginf=0)  # a row may see nothing
    if t.phi is not None and precision is not EXACT:
        # What unified softmax costs beside the highest score: weights that ought to be 1 are rounded.
        phi = t.phi.to(precision.compute).reshape(kv_heads, group, 1, 1)
        subtrahend = torch.where((highest - phi).abs() < NEAR_PHI, phi, subtrahend)
    weights = torch.exp(scores - subtrahend)
    total = sum_of(weights, precision)
    if t.sink is not None:
        total = total + torch.exp(sink - subtrahend)
    sums = (precision.stored(weights, precision.activation).flatten(1, 2) @ values).unflatten(1, (group, tokens))
    output = torch.where(total > 0, sums / total, 0)
    return output.permute(2, 0, 1, 3).reshape(tokens, heads, head_size)


def in_cache(
    new: torch.Tensor, numbers: torch.Tensor | None, past: torch.Tensor | None, scale: torch.Tensor | None
) -> torch.Tensor:
    """The values that the cache holds for one batch row [1, Hkv, n, D]: `past`, as stored, then `new`. `scale`: that of
    an 8-bit cache, in which `numbers` stand for `new`."""
    if scale is not None:
        assert past is not None
        new = dequantise(quantise(new, scale, past.dtype) if numbers is None else numbers, scale, new.dtype)
        past = dequantise(past, scale, new.dtype)
    return new[0] if past is None else torch.cat((past[0].to(new.dtype), new[0]), dim=1)


def attention(
    t: AttentionTensors, precision: Precision, stored: tuple[torch.Tensor, torch.Tensor] | None = None
) -> AttentionResult:
    """The op in `precision`; with EXACT the reference, with naive(...) the yardstick of the allowed error.

    `stored`: the numbers, [B, Hkv, S, D] each, that a kernel put into its 8-bit cache for the new keys and values. A
    value on the boundary of two numbers may be stored as either, and what is attended to is what is stored.
    """
    batch, tokens, _, _ = t.query.shape
    output = torch.zeros(t.query.shape, dtype=precision.compute)
    new_key = torch.zeros(t.key.permute(0, 2, 1, 3).shape, dtype=precision.compute)
    new_value = torch.zeros_like(new_key)
    for b, length in enumerate(t.lengths):
        past = 0 if t.prompt else length - tokens
        real = min(tokens, length) if t.prompt else tokens  # tokens of a prompt beyond its length are padding
        positions = past + torch.arange(tokens)
        query, key, value = (x[b].to(precision.compute) for x in (t.query, t.key, t.value))
        query, key = normalise(query, t.q_norm, t.epsilon), normalise(key, t.k_norm, t.epsilon)
        if t.cos is not None and t.sin is not None:
            angles = positions if t.position_ids is None else t.position_ids[b]
            cos, sin = t.cos[angles].to(precision.compute), t.sin[angles].to(precision.compute)
            query, key = rotate(query, cos, sin, t.interleaved), rotate(key, cos, sin, t.interleaved)
        query = precision.stored(query, precision.activation)
        caches = []
        for i, (new, x, before, scale) in enumerate(
            ((new_key, key, t.past_key, t.key_scale), (new_value, value, t.past_value, t.value_scale))
        ):
            new[b] = (x if scale is not None else precision.stored(x, precision.cache)).transpose(0, 1)
            numbers = None if stored is None else stored[i][b : b + 1, :, :real]
            held = None if before is None else before[b : b + 1, :, :past]
            cache = in_cache(new[b : b + 1, :, :real], numbers, held, scale)
            # A plain kernel for an 8-bit cache turns its numbers into the activations' type before it multiplies.
            caches.append(cache if scale is None else precision.stored(cache, precision.activation))
        bias = None
        if t.bias is not None:
            bias = t.bias[b if t.bias.shape[0] > 1 else 0, :, :real, : past + real]
        output[b, :real] = attend(query[:real], *caches, positions[:real], bias, t, precision)
    return AttentionResult(precision.stored(output, precision.activation), new_key, new_value)
