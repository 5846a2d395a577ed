"""Every FdppAttention variant over every case that it takes, against float64."""

from __future__ import annotations

import harness
import pytest
from cases import ATTENTION_CASES, AttentionCase
from harness import ATTENTION, AttentionCall

FEWEST_CASES = 15


@pytest.mark.parametrize("backend", harness.BACKENDS)
def test_every_variant_is_tested(backend: str) -> None:
    harness.check_every_variant_is_tested(ATTENTION, backend, ATTENTION_CASES, FEWEST_CASES)


def test_every_case_is_taken() -> None:
    harness.check_every_case_is_taken(ATTENTION, ATTENTION_CASES, "C", "cache_dtype")


@pytest.mark.parametrize(("variant", "case"), harness.parameters(ATTENTION, ATTENTION_CASES))
def test_accuracy(variant: str, case: AttentionCase) -> None:
    """Accurate, all of the output and nothing else written, whatever the number of threads; the same bits each time."""
    device = harness.device_of(variant)
    results = []
    for threads in (1, 3, 3) if device == "cpu" else (None, None):
        call = AttentionCall(case, harness.attention_tensors(case), device)
        assert call.run(variant, threads)["variant"] == variant
        call.check()
        results.append(call.outputs["output"])
    assert harness.same_bits(results[-1], results[-2]), "the same call gave other bits"
