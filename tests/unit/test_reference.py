"""The references themselves, against loops over single numbers, and the accuracy rule."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from reference.attention import AttentionTensors, attention
from reference.cache import assert_stored, dequantise, quantise
from reference.gemm import gemm, pack_int4, rounded_to_int8, unpack_int4, weight_values
from reference.precision import EXACT, assert_accurate, naive


def rotate_vector(x: list[float], cos: list[float], sin: list[float], interleaved: bool) -> list[float]:
    half, out = len(cos), list(x)
    for i in range(half):
        first, second = (2 * i, 2 * i + 1) if interleaved else (i, i + half)
        out[first] = x[first] * cos[i] - x[second] * sin[i]
        out[second] = x[second] * cos[i] + x[first] * sin[i]
    return out


def normed(x: list[float], weight: torch.Tensor | None, epsilon: float) -> list[float]:
    if weight is None:
        return x
    mean_square = sum(v * v for v in x) / len(x)
    return [v / math.sqrt(mean_square + epsilon) * w for v, w in zip(x, weight.tolist(), strict=True)]


def held(x: float, scale: torch.Tensor | None, head: int, column: int) -> float:
    """The value that an int8 cache holds for x; where there is no scale, x."""
    if scale is None:
        return x
    step = scale.expand(1, 2, 1, 8)[0, head, 0, column].item()
    return max(-128, min(127, round(x / step))) * step


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

                def turned(x: torch.Tensor, weight: torch.Tensor | None, token: int, b=b, past=past) -> list[float]:
                    values = normed(x.tolist(), weight, t.epsilon)
                    if t.cos is None:
                        return values
                    at = past + token if t.position_ids is None else t.position_ids[b, token]
                    return rotate_vector(values, t.cos[at].tolist(), t.sin[at].tolist(), t.interleaved)

                kv_head = h // group
                query = turned(t.query[b, s, h], t.q_norm, s)
                scores, values = [], []
                for j in range(position + 1):
                    if t.window > 0 and j <= position - t.window:
                        continue
                    if j < past:
                        key, value = t.past_key[b, kv_head, j].tolist(), t.past_value[b, kv_head, j].tolist()
                        if t.key_scale is not None:
                            key = [k * t.key_scale.expand(1, 2, 1, 8)[0, kv_head, 0, d] for d, k in enumerate(key)]
                            value = [v * t.value_scale.item() for v in value]
                    else:
                        key = turned(t.key[b, j - past, kv_head], t.k_norm, j - past)
                        key = [held(k, t.key_scale, kv_head, d) for d, k in enumerate(key)]
                        value = t.value[b, j - past, kv_head].tolist()
                        value = [held(v, t.value_scale, kv_head, d) for d, v in enumerate(value)]
                    score = sum(x * y for x, y in zip(query, key, strict=True)) * (t.scale or 1 / math.sqrt(head_size))
                    score = t.softcap * math.tanh(score / t.softcap) if t.softcap else score
                    if t.bias is not None:
                        score += t.bias[b % t.bias.shape[0], h % t.bias.shape[1], s, j].item()
                    scores.append(score)
                    values.append(value)
                weights = [math.exp(x) for x in scores]
                total = sum(weights) + (math.exp(t.sink[h]) if t.sink is not None else 0)
                for d in range(head_size if total > 0 else 0):
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
WEIGHTS = torch.linspace(0.5, 1.5, 8, dtype=torch.float64)
STEPS = torch.linspace(0.01, 0.03, 16, dtype=torch.float64).view(1, 2, 1, 8)
BIAS = torch.linspace(-2, 2, 2 * 4 * 3 * 7, dtype=torch.float64).view(2, 4, 3, 7)


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
        {"cos": ANGLES.cos(), "sin": ANGLES.sin(), "position_ids": torch.tensor([[5, 0, 8], [1, 1, 2]])},
        {"q_norm": WEIGHTS, "k_norm": WEIGHTS.flip(0), "epsilon": 0.1},
        {"q_norm": WEIGHTS, "k_norm": WEIGHTS, "cos": ANGLES.cos(), "sin": ANGLES.sin()},
        {"bias": BIAS, "softcap": 1.5},
        {"bias": BIAS[:1, :1]},
        {"bias": BIAS[:, :1].masked_fill(BIAS[:, :1] < 0.5, -math.inf)},
        {"bias": torch.full_like(BIAS, -math.inf)},
        {"key_scale": STEPS, "value_scale": torch.tensor([0.02])},
    ],
    ids=lambda changes: "+".join(changes) or "plain",
)
@pytest.mark.parametrize("prompt", [False, True])
def test_attention_equals_loops(prompt: bool, changes: dict[str, object]) -> None:
    t = small(prompt, **changes)
    if t.key_scale is not None:
        t.past_key, t.past_value = (
            x.mul(40).round().clamp(-128, 127).to(torch.int8) for x in (t.past_key, t.past_value)
        )
    torch.testing.assert_close(attention(t, EXACT).output, attention_by_loops(t), rtol=1e-12, atol=1e-12)


def test_gemm_equals_loops() -> None:
    a, b = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[1.0, 0.5, 0.0], [0.0, 0.0, -1.0]])
    y = gemm(a, b, torch.tensor([10.0, 20.0]), torch.tensor([[100.0, 200.0]]), EXACT)
    assert y.tolist() == [[112.0, 217.0]]


def test_gemm_norm_and_gate() -> None:
    a, b = torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    y = gemm(a, b, None, None, EXACT, activation="silu_mul", norm_weight=torch.tensor([2.0, 0.5]), norm_epsilon=12.5)
    # The mean square 12.5 and epsilon add up to 25, so the row becomes [6 / 5, 2 / 5].
    assert y.item() == pytest.approx(1.2 / (1 + math.exp(-1.2)) * 0.4)


def test_gemm_layer_norm() -> None:
    norm = {"norm": "layer", "norm_weight": torch.tensor([2.0, 0.5]), "norm_bias": torch.tensor([1.0, -1.0])}
    y = gemm(torch.tensor([[3.0, 9.0]]), torch.eye(2), None, None, EXACT, **norm, norm_epsilon=16.0)
    # Less its mean 6 the row is [-3, 3], whose mean square 9 and epsilon add up to 25.
    assert y.tolist() == [[pytest.approx(-1.2 + 1), pytest.approx(0.3 - 1)]]


def test_int4_layout() -> None:
    """The pair 2j, 2j + 1 of a word's numbers is (word >> 4j) & 0x000f000f."""
    numbers = torch.randint(0, 16, (3, 24), generator=torch.Generator().manual_seed(0))
    packed = pack_int4(numbers)
    assert packed.shape == (3, 12) and packed.dtype == torch.uint8
    assert torch.equal(unpack_int4(packed, 21), numbers[:, :21])
    for row, word_bytes in enumerate(packed):
        for w in range(3):
            word = int.from_bytes(bytes(word_bytes[4 * w : 4 * w + 4].tolist()), "little")
            for j in range(4):
                pair = word >> 4 * j & 0x000F000F
                assert [pair & 15, pair >> 16] == numbers[row, 8 * w + 2 * j : 8 * w + 2 * j + 2].tolist()


def test_int4_values() -> None:
    numbers = torch.arange(32).view(1, 32) % 16
    b, scales, zero_points = pack_int4(numbers), torch.tensor([[2.0, 0.5]]), torch.tensor([[0x3A]], dtype=torch.uint8)
    values = weight_values(b, scales, zero_points, 20, 16, EXACT)
    assert values.tolist() == [[2.0 * (q - 10) for q in range(16)] + [0.5 * (q - 3) for q in range(4)]]
    assert weight_values(b, scales, None, 20, 16, EXACT)[0, 16].item() == -4.0


def test_rounding_to_int8() -> None:
    a = torch.tensor([[127.0, 0.4, -0.6, 63.5, 0.0, 0.0, 0.0, 0.0, 12.7, 1.26]])
    expected = [127.0, 0.0, -1.0, 64.0, 0.0, 0.0, 0.0, 0.0, 12.7, 1.3]
    assert rounded_to_int8(a, 4)[0].tolist() == pytest.approx(expected, abs=1e-5)


def test_naive_rounds_to_the_types() -> None:
    t = small()
    exact, rounded = attention(t, EXACT).output, attention(t, naive(torch.float16)).output
    assert torch.equal(rounded, rounded.half().float())
    assert 0 < (rounded - exact).abs().max() < 0.02


def test_what_was_stored_is_what_is_attended_to() -> None:
    t = small(key_scale=STEPS, value_scale=torch.tensor([0.02]))
    t.past_key, t.past_value = t.past_key.to(torch.int8), t.past_value.to(torch.int8)
    plain = attention(t, EXACT)
    numbers = [quantise(x, s, torch.int8) for x, s in ((plain.new_key, STEPS), (plain.new_value, t.value_scale))]
    assert torch.equal(attention(t, EXACT, tuple(numbers)).output, plain.output)
    numbers[1] = torch.zeros_like(numbers[1])
    assert not torch.allclose(attention(t, EXACT, tuple(numbers)).output, plain.output)


def test_naive_measures_against_phi() -> None:
    """In float32 that changes some last places, and no more."""
    t = small()
    plain = attention(t, naive(torch.float32)).output
    t.phi = torch.tensor([0.5, -1.0, 2.0, 100.0])
    measured = attention(t, naive(torch.float32)).output
    assert torch.equal(measured[:, :, 3], plain[:, :, 3])
    assert 0 < (measured - plain).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("dtype", "values", "numbers"),
    [
        (torch.int8, [0.25, 0.75, 1.25, -0.75, 63.5, 63.7, -64, -64.3, 1e30], [0, 2, 2, -2, 127, 127, -128, -128, 127]),
        (
            torch.float8_e4m3fn,
            [0.53125, 0.59375, -0.53125, 224, 231.9, 240, -1e30, 2**-10, 2**-11, 3 * 2**-11],
            [1.0, 1.25, -1.0, 448, 448, 448, -448, 2**-9, 0, 2**-8],
        ),
    ],
)
def test_quantisation(dtype: torch.dtype, values: list[float], numbers: list[float]) -> None:
    """Ties go to the even number and what is too large saturates; the scale is 1 / 2."""
    stored = quantise(torch.tensor(values, dtype=torch.float64), torch.tensor([0.5]), dtype)
    assert stored.dtype == dtype
    assert stored.double().tolist() == numbers
    assert dequantise(stored, torch.tensor([0.5]), torch.float64).tolist() == [x / 2 for x in numbers]


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_stored_numbers_may_differ_at_ties_alone(dtype: torch.dtype) -> None:
    scale = torch.tensor([1.0])
    exact = torch.tensor([[3.0, 17.0 + 1e-8, 100.2]], dtype=torch.float64)
    tie = torch.tensor([[3.0, 16.0 if dtype == torch.float8_e4m3fn else 17.0, 100.2]], dtype=torch.float64)
    if dtype == torch.int8:
        exact[0, 1], tie[0, 1] = 16.5 + 1e-8, 16.0
    for good in (exact, tie):
        assert_stored(quantise(good, scale, dtype), exact, exact, scale, exact.abs(), "key")
    for index, number in ((0, 4.0), (1, 20.0), (2, 112.0), (2, math.nan)):
        wrong = exact.clone()
        wrong[0, index] = number
        stored = quantise(wrong.nan_to_num(113), scale, dtype)
        if math.isnan(number) and dtype == torch.float8_e4m3fn:
            stored[0, index] = torch.nan
        with pytest.raises(AssertionError, match=rf"key: 1 of 3 stored numbers are off; the first at \[0, {index}\]"):
            assert_stored(stored, exact, exact, scale, exact.abs(), "key")


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
