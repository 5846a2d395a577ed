"""Every FdppAttention variant over every case that it takes, against float64."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import harness
import pytest
import torch
from cases import ATTENTION_CASES, AttentionCase
from harness import ATTENTION, AttentionCall
from reference.attention import AttentionTensors

FEWEST_CASES = 15
DECODE = AttentionCase((40, 23), 1, 2, 3, 64, "float32", "float32", rotary="half")
PROMPT = AttentionCase((64, 31), 64, 1, 4, 64, "float32", "float32", "none", prompt=True, rotary="half")
LONG = AttentionCase((700, 90), 7, 1, 4, 64, "float32", "float32", "grown")


FEATURE_CASES = [
    dataclasses.replace(case, dtype=dtype, cache_dtype=dtype)
    for case in (DECODE, PROMPT, LONG)
    for dtype in ("float32", "float16", "bfloat16")
]


@pytest.mark.parametrize("backend", harness.BACKENDS)
def test_every_variant_is_tested(backend: str) -> None:
    harness.check_every_variant_is_tested(ATTENTION, backend, ATTENTION_CASES, FEWEST_CASES)


def test_every_case_is_taken() -> None:
    harness.check_every_case_is_taken(ATTENTION, ATTENTION_CASES, "C", "cache_dtype")


@pytest.mark.parametrize(("variant", "case"), harness.parameters(ATTENTION, ATTENTION_CASES))
def test_accuracy(variant: str, case: AttentionCase) -> None:
    """Accurate, all of the output and nothing else written, whatever the number of threads; repeatable on the CPU."""
    device = harness.device_of(variant)
    expected = harness.expected_attention(case)
    results = []
    for threads in (1, 3, 3) if device == "cpu" else (None,):
        call = AttentionCall(case, harness.attention_tensors(case), device)
        assert call.run(variant, threads)["variant"] == variant
        call.check(*expected)
        results.append(call.outputs["output"])
    if device == "cpu":
        assert harness.same_bits(results[1], results[2]), "the same call gave other bits"


def _huge_scores(t: AttentionTensors) -> None:
    """Scores from -60000 to 60000, the largest clear of the others."""
    t.query[:] = 0
    t.query[..., 0] = 100
    for x in (t.key.permute(0, 2, 1, 3), t.past_key):
        if x is not None:
            x[..., 0] = torch.where(
                torch.isnan(x[..., 0]), x[..., 0], torch.linspace(-600, 600, x.shape[2]).to(x.dtype)
            )


def _one_outlier(t: AttentionTensors) -> None:
    """One key, the first of all, whose score is far above every other."""
    t.query[..., :4] = t.query[..., :4].abs() + 1
    keys = t.key.permute(0, 2, 1, 3) if t.past_key is None else t.past_key
    keys[:, :, 0, :4] = 100


def _equal_scores(t: AttentionTensors) -> None:
    t.query[:] = 0


def _equal_keys(t: AttentionTensors) -> None:
    for x in (t.key.permute(0, 2, 1, 3), t.past_key):
        if x is not None:
            x[:] = torch.where(torch.isnan(x), x, torch.ones_like(x) * 1.5)


@pytest.mark.parametrize("extreme", [_huge_scores, _one_outlier, _equal_scores, _equal_keys])
@pytest.mark.parametrize("softmax_mode", ["lazy", "online"])
@pytest.mark.parametrize(("variant", "case"), harness.parameters(ATTENTION, FEATURE_CASES))
def test_extremes(
    variant: str, case: AttentionCase, softmax_mode: str, extreme: Callable[[AttentionTensors], None]
) -> None:
    case = dataclasses.replace(
        case, softmax_mode=softmax_mode, rotary="none", scale=1.0 if extreme is _huge_scores else 0.0
    )
    tensors = harness.attention_tensors.__wrapped__(case)
    extreme(tensors)
    call = AttentionCall(case, tensors, harness.device_of(variant))
    call.run(variant, 2)
    call.check(*harness.expect_attention(case, tensors))
