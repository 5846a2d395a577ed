"""The references themselves, against loops over single numbers, and the accuracy rule."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from reference.attention import AttentionTensors, attention
from reference.gemm import gemm
from reference.precision import EXACT, assert_accurate, naive


def rotate_vector(x: list[float], cos: list[float], sin: list[float], interleaved: bool) -> list[float]:
    half, out = len(cos), list(x)
    for i in range(half):
        first, second = (2 * i, 2 * i + 1) if interleaved else (i, i + half)
        out[first] = x[first] * cos[i] - x[second] * sin[i]
        out[second] = x[second] * cos[i] + x[first] * sin[i]
    return out


def attention_by_loops(t: AttentionTensors) -> torch.Tensor:
    """[B, S, Hq, D] in Python floats, straight from the definition."""
    batch, tokens, heads, head_size = t.query.shape
    group = heads // t.key.shape[2]
    output = torch.zeros(t.query.shape, dtype=torch.float64)
    for b in range(batch):
        past = 0 if t.prompt else t.lengths[b] - tokens
        for s in range(tokens):
            position = past + s
            if position >= t.lengths[b]:
                continue
            for h in range(heads):

                def turned(x: torch.Tensor, at: int) -> list[float]:
                    if t.cos is None:
                        return x.tolist()
                    return rotate_vector(x.tolist(), t.cos[at].tolist(), t.sin[at].tolist(), t.interleaved)

                query = turned(t.query[b, s, h], position)
                scores, values = [], []
                for j in range(position + 1):
                    if t.window > 0 and j <= position - t.window:
                        continue
                    if j < past:
                        key, value = t.past_key[b, h // group, j].tolist(), t.past_value[b, h // group, j].tolist()
                    else:
                        key, value = (
                            turned(t.key[b, j - past, h // group], j),
                            t.value[b, j - past, h // group].tolist(),
                        )
                    score = sum(x * y for x, y in zip(query, key, strict=True)) * (t.scale or 1 / math.sqrt(head_size))
                    scores.append(t.softcap * math.tanh(score / t.softcap) if t.softcap else score)
                    values.append(value)
                weights = [math.exp(x) for x in scores]
                total = sum(weights) + (math.exp(t.sink[h]) if t.sink is not None else 0)
                for d in range(head_size):
                    output[b, s, h, d] = sum(w * v[d] for w, v in zip(weights, values, strict=True)) / total
    return output


def small(prompt: bool = False, **changes: object) -> AttentionTensors:
    generator = torch.Generator().manual_seed(5)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    t = AttentionTensors(
        randn(2, 3, 4, 8),
        randn(2, 3, 2, 8),
        randn(2, 3, 2, 8),
        randn(2, 2, 9, 8),
        randn(2, 2, 9, 8),
        (3, 2) if prompt else (7, 4),
        prompt,
    )
    return dataclasses.replace(t, **changes)


ANGLES = torch.linspace(0, 3, 36, dtype=torch.float64).view(9, 4)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"window": 2},
        {"softcap": 1.5},
        {"scale": 0.7},
        {"sink": torch.tensor([0.5, -1.0, 2.0, 0.0], dtype=torch.float64)},
        {"cos": ANGLES.cos(), "sin": ANGLES.sin()},
        {"cos": ANGLES.cos(), "sin": ANGLES.sin(), "interleaved": True},
        {"cos": ANGLES[:, :2].cos(), "sin": ANGLES[:, :2].sin()},
    ],
    ids=lambda changes: "+".join(changes) or "plain",
)
@pytest.mark.parametrize("prompt", [False, True])
def test_attention_equals_loops(prompt: bool, changes: dict[str, object]) -> None:
    t = small(prompt, **changes)
    torch.testing.assert_close(attention(t, EXACT).output, attention_by_loops(t), rtol=1e-12, atol=1e-12)


def test_gemm_equals_loops() -> None:
    a, b = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[1.0, 0.5, 0.0], [0.0, 0.0, -1.0]])
    y = gemm(a, b, torch.tensor([10.0, 20.0]), torch.tensor([[100.0, 200.0]]), EXACT)
    assert y.tolist() == [[112.0, 217.0]]


def test_naive_rounds_to_the_types() -> None:
    t = small()
    exact, rounded = attention(t, EXACT).output, attention(t, naive(torch.float16)).output
    assert torch.equal(rounded, rounded.half().float())
    assert 0 < (rounded - exact).abs().max() < 0.02


@pytest.mark.parametrize(
    ("error", "passes"), [(0.0, True), (2e-3, True), (2.5e-2, False), (math.nan, False), (math.inf, False)]
)
def test_accuracy_rule(error: float, passes: bool) -> None:
    reference = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    plain = reference + 1e-3
    actual = reference.clone()
    actual[1, 0] += error
    actual = actual.float()
    if passes:
        assert_accurate(actual, reference, plain, torch.float32)
    else:
        with pytest.raises(AssertionError, match=r"1 of 4 elements are off; the worst at \[1, 0\]"):
            assert_accurate(actual, reference, plain, torch.float32)


def test_accuracy_rule_wants_shape_and_type() -> None:
    x = torch.zeros(2, 2, dtype=torch.float64)
    with pytest.raises(AssertionError, match="expected torch.float16"):
        assert_accurate(x.float(), x, x, torch.float16)
    with pytest.raises(AssertionError, match="has shape"):
        assert_accurate(x.float()[:1], x, x, torch.float32)
