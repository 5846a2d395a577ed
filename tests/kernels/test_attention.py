"""Every FdppAttention variant over every case that it takes, against float64."""

from __future__ import annotations

import harness
import pytest
from cases import ATTENTION_CASES, AttentionCase
from harness import ATTENTION, AttentionCall

from fdpp_ort import _core

FEWEST_CASES = 15
DECODE_CASES = [case for case in ATTENTION_CASES if case.query_length == 1]


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


@pytest.mark.parametrize(("variant", "case"), harness.parameters(ATTENTION, DECODE_CASES))
def test_every_split_that_is_offered(variant: str, case: AttentionCase) -> None:
    """What tuning may choose is as right as the variant's own choice, which comes first."""
    device = harness.device_of(variant)
    arguments = (case.attributes(), harness.shapes_only(case), harness.planning_device(device))
    splits = _core.attention_splits(*arguments, variant)
    assert splits[0] == _core.plan_attention(*arguments, variant=variant)["split"]
    for split in splits:
        call = AttentionCall(case, harness.attention_tensors(case), device)
        assert call.run(variant, split=split)["split"] == split
        call.check()
