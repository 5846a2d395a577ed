"""Each thing that can be wrong with a call of FdppFlatGemm, and the error that says so."""

from __future__ import annotations

import pytest
import torch

from fdpp_ort import _core

M, N, K = 4, 6, 10


def attributes(**changes: object) -> dict[str, object]:
    return {"N": N, "K": K, "weight_format": "f32"} | changes


def inputs(**changes: object) -> dict[str, object]:
    return {"A": torch.ones(2, M, K), "B": torch.ones(N, K)} | changes


def plan(a: dict[str, object], i: dict[str, object]) -> dict[str, object]:
    return _core.plan_gemm(a, i, _core.cpu_device())


def test_leading_dimensions() -> None:
    """A [2, M, K] is 2 * M rows."""
    y = torch.full((2, M, N), torch.nan)
    _core.gemm(attributes(), inputs(residual=torch.ones(2, M, N)), {"Y": y})
    assert (y == K + 1).all()


VALUE_ERRORS = {
    "a_missing": ({}, {"A": None}, "A is missing"),
    "b_missing": ({}, {"B": None}, "B is missing"),
    "n": ({"N": 0}, {}, "N is 0 and K is 10, expected positive numbers"),
    "k": ({"K": -1}, {}, "N is 6 and K is -1, expected positive numbers"),
    "a_type": ({}, {"A": torch.ones(M, K, dtype=torch.int32)}, "A is int32, expected float32, float16 or bfloat16"),
    "b_type": ({}, {"B": torch.ones(N, K).half()}, "B is float16 but weight_format says f32"),
    "a_columns": ({}, {"A": torch.ones(M, K + 1)}, r"A has shape \[4, 11\], expected a last dimension of K = 10"),
    "a_scalar": ({}, {"A": torch.ones(())}, r"A has shape \[\], expected a last dimension of K = 10"),
    "b_shape": ({}, {"B": torch.ones(K, N)}, r"B has shape \[10, 6\], expected \[N, K\] = \[6, 10\]"),
    "b_rank": ({}, {"B": torch.ones(N * K)}, r"B has shape \[60\], expected \[N, K\]"),
    "bias_shape": ({}, {"bias": torch.ones(K)}, r"bias is float32 \[10\], expected float32 \[6\]"),
    "bias_type": ({}, {"bias": torch.ones(N).half()}, r"bias is float16 \[6\], expected float32 \[6\]"),
    "residual_shape": (
        {},
        {"residual": torch.ones(M, N)},
        r"residual is float32 \[4, 6\], expected float32 \[2, 4, 6\]",
    ),
    "residual_type": ({}, {"residual": torch.ones(2, M, N).half()}, "residual is float16"),
}


@pytest.mark.parametrize(("attribute_changes", "input_changes", "message"), VALUE_ERRORS.values(), ids=VALUE_ERRORS)
def test_invalid(attribute_changes: dict, input_changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match="FdppFlatGemm: " + message):
        plan(attributes(**attribute_changes), inputs(**input_changes))


NOT_SUPPORTED = {
    "weight_format": (
        {"weight_format": "int4"},
        {},
        'weight_format "int4" is not supported, expected f32, f16 or bf16',
    ),
    "activation": ({"activation": "gelu"}, {}, 'activation "gelu" is not supported, expected none'),
    "scales": ({}, {"scales": torch.ones(N)}, "input scales is not supported"),
    "zero_points": ({}, {"zero_points": torch.ones(N, dtype=torch.uint8)}, "input zero_points is not supported"),
    "norm_weight": ({}, {"norm_weight": torch.ones(K)}, "input norm_weight is not supported"),
    "bfloat16_on_cpu": (
        {"weight_format": "bf16"},
        {"A": torch.ones(M, K).bfloat16(), "B": torch.ones(N, K).bfloat16()},
        "no kernel for M=4 N=6 K=10 bfloat16 weights bfloat16 on cpu",
    ),
}


@pytest.mark.parametrize(("attribute_changes", "input_changes", "message"), NOT_SUPPORTED.values(), ids=NOT_SUPPORTED)
def test_not_supported(attribute_changes: dict, input_changes: dict, message: str) -> None:
    with pytest.raises(NotImplementedError, match="FdppFlatGemm: " + message):
        plan(attributes(**attribute_changes), inputs(**input_changes))


def test_no_rows_is_no_error() -> None:
    _core.gemm(attributes(), inputs(A=torch.ones(0, K)), {"Y": torch.ones(0, N)})


def test_output() -> None:
    with pytest.raises(ValueError, match=r"FdppFlatGemm: Y is float32 \[8, 6\], expected float32 \[2, 4, 6\]"):
        _core.gemm(attributes(), inputs(), {"Y": torch.ones(2 * M, N)})
