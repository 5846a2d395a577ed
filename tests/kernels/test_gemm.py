"""Every FdppFlatGemm variant over every case that it takes, against float64."""

from __future__ import annotations

import harness
import pytest
import torch
from cases import GEMM_CASES, GEMM_TYPES, GemmCase
from harness import GEMM, GemmCall

from fdpp_ort import _core

FEWEST_CASES = 5
FLOATS = ("float32", "float16", "bfloat16")
SPLIT_CASES = [
    GemmCase(m, n, k, *types, residual=m == 8, block_size=32 * (types[1] == "uint8"))
    for types in GEMM_TYPES
    for m, n, k in ((1, 200, 1024), (8, 96, 2048), (40, 264, 4096))
]
EXTREME_CASES = [
    GemmCase(m, 24, 72, *types, block_size=32 * (types[1] == "uint8"), accuracy_level=accuracy_level)
    for types in GEMM_TYPES
    for accuracy_level in ((0, 4) if types[1] == "uint8" else (0,))
    for m in (1, 5, 40)
]
CANCELLING_CASES = [c for c in EXTREME_CASES if c.weight_dtype in FLOATS]


@pytest.mark.parametrize("backend", harness.BACKENDS)
def test_every_variant_is_tested(backend: str) -> None:
    harness.check_every_variant_is_tested(GEMM, backend, GEMM_CASES, FEWEST_CASES)


def test_every_case_is_taken() -> None:
    harness.check_every_case_is_taken(GEMM, GEMM_CASES, "W", "weight_dtype")


# (14000, 256): more blocks than run at once.
HINTED_CASES = [
    GemmCase(m, n, k, *types, norm="rms" if m == 5 else "", block_size=32 * (types[1] == "uint8"))
    for types in GEMM_TYPES
    for m, n, k in ((1, 14000, 256), (1, 33, 50), (5, 96, 512), (20, 40, 1024), (100, 72, 128))
]


@pytest.mark.parametrize(("variant", "case"), harness.parameters(GEMM, GEMM_CASES))
def test_accuracy(variant: str, case: GemmCase) -> None:
    """Accurate and wholly written, whatever the number of threads; repeatable."""
    device = harness.device_of(variant)
    results = []
    for threads in (1, 3, 3) if device == "cpu" else (None, None):
        call = GemmCall(case, harness.gemm_tensors(case), device)
        assert call.run(variant, threads)["variant"] == variant
        call.check(*harness.expected_gemm(case))
        results.append(call.outputs["Y"])
    assert harness.same_bits(results[-2], results[-1]), "the same call gave other bits"


@pytest.mark.parametrize(("variant", "case"), harness.parameters(GEMM, SPLIT_CASES))
def test_every_split_that_is_offered(variant: str, case: GemmCase) -> None:
    """What tuning may choose is as right as the variant's own choice, which comes first."""
    device = harness.device_of(variant)
    problem = {"m": case.m, "n": case.n, "k": case.k, "dtype": case.dtype, "has_residual": case.residual}
    problem |= {"weight_format": case.weight_format, "block_size": case.block_size}
    planning = harness.planning_device(device)
    splits = _core.gemm_splits(problem, planning, variant)
    own = _core.plan_gemm(case.attributes(), harness.shapes_only(case), planning, variant=variant)["split"]
    assert splits[0] == own
    assert all(splits.count(split) == 1 for split in splits)
    for split in splits:
        call = GemmCall(case, harness.gemm_tensors(case), device)
        assert call.run(variant, split=split)["split"] == split
        call.check(*harness.expected_gemm(case))


@pytest.mark.parametrize(("variant", "case"), harness.parameters(GEMM, HINTED_CASES))
def test_the_next_weight_changes_nothing(variant: str, case: GemmCase) -> None:
    """Whatever its size, shape and address, also where it has no 16 bytes at a multiple of 16."""
    call = GemmCall(case, harness.gemm_tensors(case), harness.device_of(variant))
    call.run(variant)
    expected = call.outputs["Y"].clone()
    b = call.inputs["B"]
    memory = b.flatten()
    parts = [memory[first : first + count] for first in (0, 1, 3) for count in (0, 1, 7, 15, 33, 1000)]
    for next_weight in (b, memory, b[None, :, :, None], memory[1:], *parts):
        call.inputs["next_weight"] = next_weight
        call.outputs["Y"].fill_(torch.nan)
        call.run(variant)
        assert harness.same_bits(call.outputs["Y"], expected), f"{next_weight.shape} at {next_weight.storage_offset()}"


@pytest.mark.parametrize(("variant", "case"), harness.parameters(GEMM, CANCELLING_CASES))
def test_cancellation(variant: str, case: GemmCase) -> None:
    """Large products that cancel: sums must be kept in float32, not in the type of the tensors."""
    tensors = dict(harness.gemm_tensors.__wrapped__(case))
    half = case.k // 2
    tensors["A"] *= 64
    tensors["A"][:, half:] = tensors["A"][:, :half]
    tensors["B"][:, half:] = -tensors["B"][:, :half]
    tensors["B"][:, 0] += 1
    call = GemmCall(case, tensors, harness.device_of(variant))
    call.run(variant, 2)
    call.check(*harness.expect_gemm(case, tensors))


@pytest.mark.parametrize(("variant", "case"), harness.parameters(GEMM, EXTREME_CASES))
def test_nan_and_infinity_stay_in_their_row(variant: str, case: GemmCase) -> None:
    """A NaN in one row of A makes that row of Y NaN and leaves the others as they are."""
    tensors = dict(harness.gemm_tensors.__wrapped__(case))
    row = case.m - 1
    tensors["A"][row, 3] = torch.nan
    call = GemmCall(case, tensors, harness.device_of(variant))
    call.run(variant, 2)
    y = call.outputs["Y"].cpu()
    assert torch.isnan(y[row]).all()
    assert torch.isfinite(y[:row]).all()


@pytest.mark.parametrize("size", [0.0, 1e-42, 1e-37, 1e-20, 1e20])
@pytest.mark.parametrize(
    ("variant", "case"),
    harness.parameters(GEMM, [c for c in EXTREME_CASES if c.accuracy_level and c.dtype == "float32"]),
)
def test_rounding_takes_any_size(variant: str, case: GemmCase, size: float) -> None:
    """Blocks of A that are 0, subnormal or large, beside others, when A is rounded to integers."""
    tensors = dict(harness.gemm_tensors.__wrapped__(case))
    tensors["A"][:, 32:64] *= size
    call = GemmCall(case, tensors, harness.device_of(variant))
    call.run(variant, 2)
    call.check(*harness.expect_gemm(case, tensors))
