"""FdppAttention from its statement in fdpp/attention.h: rotary embedding, append to the cache, causal attention."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .precision import Precision


@dataclass
class AttentionTensors:
    """Inputs of one call. None: absent.

    query [B, S, Hq, D]; key, value [B, S, Hkv, D]; past_key, past_value [B, Hkv, L, D]; cos, sin [positions, R / 2];
    sink [Hq]. ``lengths[b]``: tokens of row b once the S new ones are appended.
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


@dataclass
class AttentionResult:
    """output [B, S, Hq, D]; new_key and new_value [B, Hkv, S, D]: what is appended to the cache."""

    output: torch.Tensor
    new_key: torch.Tensor
    new_value: torch.Tensor


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


def attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    positions: torch.Tensor,
    t: AttentionTensors,
    precision: Precision,
) -> torch.Tensor:
    """Attention of query [S, Hq, D], at `positions` [S], over keys and values [Hkv, n, D] at positions 0 .. n - 1."""
    tokens, heads, head_size = query.shape
    kv_heads, context, _ = keys.shape
    grouped = query.reshape(tokens, kv_heads, heads // kv_heads, head_size).permute(1, 2, 0, 3)  # [Hkv, group, S, D]
    scores = grouped @ keys[:, None].transpose(-1, -2) * (t.scale or head_size**-0.5)
    if t.softcap > 0:
        scores = t.softcap * torch.tanh(scores / t.softcap)
    seen = torch.arange(context)[None, :] <= positions[:, None]
    if t.window > 0:
        seen &= torch.arange(context)[None, :] > positions[:, None] - t.window
    scores = scores.masked_fill(~seen, -torch.inf)
    highest = scores.amax(-1, keepdim=True)
    if t.sink is not None:
        sink = t.sink.to(precision.compute).reshape(kv_heads, heads // kv_heads, 1, 1)
        highest = torch.maximum(highest, sink)
    weights = torch.exp(scores - highest)
    total = weights.sum(-1, keepdim=True)
    if t.sink is not None:
        total = total + torch.exp(sink - highest)
    output = precision.stored(weights, precision.activation) @ values[:, None] / total
    return output.permute(2, 0, 1, 3).reshape(tokens, heads, head_size)


def attention(t: AttentionTensors, precision: Precision) -> AttentionResult:
    """The op in `precision`; with EXACT the reference, with naive(...) the yardstick of the allowed error."""
    batch, tokens, _, _ = t.query.shape
    output = torch.zeros(t.query.shape, dtype=precision.compute)
    new_key = torch.zeros(t.key.permute(0, 2, 1, 3).shape, dtype=precision.compute)
    new_value = torch.zeros_like(new_key)
    for b, length in enumerate(t.lengths):
        past = 0 if t.prompt else length - tokens
        positions = past + torch.arange(tokens)
        query, key, value = (x[b].to(precision.compute) for x in (t.query, t.key, t.value))
        if t.cos is not None and t.sin is not None:
            cos, sin = t.cos[positions].to(precision.compute), t.sin[positions].to(precision.compute)
            query = precision.stored(rotate(query, cos, sin, t.interleaved), precision.activation)
            key = rotate(key, cos, sin, t.interleaved)
        new_key[b] = precision.stored(key, precision.cache).transpose(0, 1)
        new_value[b] = precision.stored(value, precision.cache).transpose(0, 1)
        keys, values = new_key[b], new_value[b]
        if past:
            assert t.past_key is not None and t.past_value is not None
            keys = torch.cat((t.past_key[b, :, :past].to(precision.compute), keys), dim=1)
            values = torch.cat((t.past_value[b, :, :past].to(precision.compute), values), dim=1)
        real = min(tokens, length) if t.prompt else tokens  # tokens of a prompt beyond its length are padding
        output[b, :real] = attend(query[:real], keys, values, positions[:real], t, precision)
    return AttentionResult(precision.stored(output, precision.activation), new_key, new_value)
