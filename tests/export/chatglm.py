"""ChatGLM2's decoder, which transformers has only as code of its own: packed queries, keys and values with a bias, two
heads of keys and values, neighbouring columns of each head's first half rotated, gate and up packed."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import nn
from torch.nn import functional

_INNER = 96  # columns of a gate


class ChatGlm(nn.Module):
    """As models of transformers are called: forward(input_ids, attention_mask, past_key_values, position_ids).

    Modules have the names that ChatGLM's own have, by which onnxruntime-genai's builder finds them."""

    def __init__(
        self, *, layers: int, heads: int, groups: int, head_size: int, vocabulary: int, positions: int
    ) -> None:
        super().__init__()
        hidden = heads * head_size
        self.config = SimpleNamespace(
            num_key_value_heads=groups,
            head_dim=head_size,
            hidden_size=hidden,
            num_attention_heads=heads,
            num_layers=layers,
            num_hidden_layers=layers,
            ffn_hidden_size=_INNER,
            vocab_size=vocabulary,
            seq_length=positions,
        )
        self.transformer = nn.Module()
        self.transformer.embedding = nn.Embedding(vocabulary, hidden)
        self.transformer.encoder = nn.Module()
        self.transformer.encoder.layers = nn.ModuleList(
            GLMBlock(hidden, heads, groups, head_size) for _ in range(layers)
        )
        self.transformer.encoder.final_layernorm = _Norm(hidden)
        self.transformer.output_layer = nn.Linear(hidden, vocabulary, bias=False)
        rotated = head_size // 2
        frequencies = 1e4 ** (-torch.arange(0, rotated, 2) / rotated)
        angles = torch.outer(torch.arange(positions).float(), frequencies)
        self.register_buffer("rope", torch.stack([angles.cos(), angles.sin()], dim=-1))

    def forward(self, input_ids, attention_mask, past_key_values, position_ids, use_cache=True):
        tokens, total = input_ids.shape[1], attention_mask.shape[1]
        places = torch.arange(total - tokens, total)
        causal = torch.arange(total)[None] <= places[:, None]
        visible = causal[None, None] & attention_mask[:, None, None].bool()
        x, rope = self.transformer.embedding(input_ids), self.rope[position_ids]
        for layer, cache in zip(self.transformer.encoder.layers, past_key_values.layers, strict=True):
            x = layer(x, rope, visible, cache)
        x = self.transformer.encoder.final_layernorm(x)
        return SimpleNamespace(logits=self.transformer.output_layer(x))


class _Norm(nn.Module):
    def __init__(self, columns: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(columns) + 0.5)

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5))


class GLMBlock(nn.Module):
    def __init__(self, hidden: int, heads: int, groups: int, head_size: int) -> None:
        super().__init__()
        self.heads, self.groups, self.head_size = heads, groups, head_size
        self.input_layernorm, self.post_attention_layernorm = _Norm(hidden), _Norm(hidden)
        self.self_attention, self.mlp = nn.Module(), nn.Module()
        self.self_attention.query_key_value = nn.Linear(hidden, (heads + 2 * groups) * head_size)
        self.self_attention.dense = nn.Linear(hidden, hidden, bias=False)
        self.mlp.dense_h_to_4h = nn.Linear(hidden, 2 * _INNER, bias=False)
        self.mlp.dense_4h_to_h = nn.Linear(_INNER, hidden, bias=False)

    def forward(self, x, rope, visible, cache):
        batch, tokens, hidden = x.shape
        columns = [count * self.head_size for count in (self.heads, self.groups, self.groups)]
        packed = self.self_attention.query_key_value(self.input_layernorm(x))
        query, key, value = (
            part.view(batch, tokens, -1, self.head_size).transpose(1, 2) for part in packed.split(columns, dim=-1)
        )
        query, key = _rotated(query, rope), _rotated(key, rope)
        key, value = cache.update(key, value)
        key, value = (
            part[:, :, None]
            .expand(-1, -1, self.heads // self.groups, -1, -1)
            .reshape(batch, self.heads, -1, self.head_size)
            for part in (key, value)
        )
        out = functional.scaled_dot_product_attention(query, key, value, visible)
        x = x + self.self_attention.dense(out.transpose(1, 2).reshape(batch, tokens, hidden))
        gate, up = self.mlp.dense_h_to_4h(self.post_attention_layernorm(x)).chunk(2, dim=-1)
        return x + self.mlp.dense_4h_to_h(functional.silu(gate) * up)


def _rotated(x: torch.Tensor, rope: torch.Tensor) -> torch.Tensor:
    """x [B, heads, S, D]; rope [B, S, D / 4, 2]: cosines and sines."""
    turned, rest = x.chunk(2, dim=-1)
    pairs, rope = turned.unflatten(-1, (-1, 2)), rope[:, None]
    first, second, cos, sin = pairs[..., 0], pairs[..., 1], rope[..., 0], rope[..., 1]
    turned = torch.stack([first * cos - second * sin, second * cos + first * sin], dim=-1).flatten(3)
    return torch.cat([turned, rest], dim=-1)
