"""Each thing that can be wrong with a call of FdppFlatGemm, and the error that says so."""

from __future__ import annotations

from collections.abc import Callable

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


STRIDED_A = {
    "last_position": lambda: torch.randn(3, 5, K)[:, -1],
    "last_position_kept": lambda: torch.randn(3, 5, K)[:, -1:],
    "part_of_packed_rows": lambda: torch.randn(2, M, 3 * K)[:, :, K : 2 * K],
    "every_other_row": lambda: torch.randn(2 * M, K)[::2],
    "rows_of_one_dimension": lambda: torch.randn(M, 2 * K).as_strided((1, 2, 1, 2, K), (7, 4 * K, 9, 2 * K, 1)),
    "one_row": lambda: torch.randn(2 * K).as_strided((1, 1, K), (1, 2, 1)),
}


@pytest.mark.parametrize("make", STRIDED_A.values(), ids=STRIDED_A)
@pytest.mark.parametrize("norm", [False, True])
def test_strided_a(make: Callable[[], torch.Tensor], norm: bool) -> None:
    """A view gives the bits of its dense copy."""
    a = make()
    more = {"B": torch.randn(N, K), "norm_weight": torch.randn(K) if norm else None}
    results = []
    for rows in (a, a.contiguous()):
        y = torch.full((*a.shape[:-1], N), torch.nan)
        _core.gemm(attributes(), inputs(A=rows, **more), {"Y": y})
        results.append(y)
    assert torch.equal(*results)


def test_strided_a_of_one_column() -> None:
    a = torch.randn(M, 7)[:, 3:4]
    y = torch.full((M, N), torch.nan)
    _core.gemm(attributes(K=1), inputs(A=a, B=torch.ones(N, 1)), {"Y": y})
    assert torch.equal(y, a.expand(M, N))


def test_describes_strided_a() -> None:
    def described(a: torch.Tensor) -> str:
        plan(attributes(), inputs(A=a))
        return next(r["problem"] for r in _core.last_plans() if (r["op"], r["node"]) == ("FdppFlatGemm", ""))

    wide = torch.ones(M, K + 3)
    assert described(wide[:, 3:]) == "M=4 N=6 K=10 (rows of A 13 apart) float32 weights f32"
    assert described(wide[:1, 3:]) == "M=1 N=6 K=10 float32 weights f32"


@pytest.mark.parametrize(
    ("gap", "norm", "taken"), [(0, False, True), (3, False, False), (3, True, True)], ids=["dense", "strided", "norm"]
)
def test_the_runtimes_product_takes_dense_rows(gap: int, norm: bool, taken: bool) -> None:
    """It knows no strides; rows that were normalised are dense."""
    given = inputs(A=torch.ones(M, K + gap)[:, gap:], norm_weight=torch.ones(K) if norm else None)
    device = _core.cpu_device() | {"host_gemm": True}
    answer, why = _core.supports("FdppFlatGemm", attributes(), given, "cpu_runtime_gemm", device)
    assert answer == taken
    assert taken or why.endswith("(rows of A 13 apart) float32 weights f32: takes rows of A that are neighbours")


VALUE_ERRORS = {
    "a_missing": ({}, {"A": None}, "A is missing"),
    "b_missing": ({}, {"B": None}, "B is missing"),
    "n": ({"N": 0}, {}, "N is 0 and K is 10, expected positive numbers"),
    "k": ({"K": -1}, {}, "N is 6 and K is -1, expected positive numbers"),
    "a_type": ({}, {"A": torch.ones(M, K, dtype=torch.int32)}, "A is int32, expected float32, float16 or bfloat16"),
    "b_type": ({}, {"B": torch.ones(N, K).half()}, "B is float16 but weight_format says f32"),
    "a_columns": ({}, {"A": torch.ones(M, K + 1)}, r"A has shape \[4, 11\], expected a last dimension of K = 10"),
    "a_scalar": ({}, {"A": torch.ones(())}, r"A has shape \[\], expected a last dimension of K = 10"),
    "weight_format": (
        {"weight_format": "int3"},
        {},
        'weight_format is "int3", expected f32, f16, bf16, int8, fp8 or int4',
    ),
    "activation": (
        {"activation": "tanh"},
        {},
        'activation is "tanh", expected none, relu, gelu, gelu_tanh, silu or silu_mul',
    ),
    "accuracy_level": ({"accuracy_level": 5}, {}, "accuracy_level is 5, expected 0 to 4"),
    "norm_epsilon": ({"norm_epsilon": -1.0}, {}, "norm_epsilon is -1.0*, expected a number from 0 on"),
    "block_size_of_f32": (
        {"block_size": 32},
        {},
        "block_size is 32, expected 0 with weight_format f32, which has no blocks",
    ),
    "scales_of_f32": ({}, {"scales": torch.ones(N)}, "scales is given, but weight_format f32 has none"),
    "zero_points_of_f32": (
        {},
        {"zero_points": torch.ones(N, dtype=torch.uint8)},
        "zero_points is given, but weight_format f32 has none",
    ),
    "norm_weight_shape": (
        {},
        {"norm_weight": torch.ones(N)},
        r"norm_weight is float32 \[6\], expected float32 \[10\]",
    ),
    "norm_weight_type": ({}, {"norm_weight": torch.ones(K).half()}, "norm_weight is float16"),
    "norm_bias_shape": (
        {},
        {"norm_weight": torch.ones(K), "norm_bias": torch.ones(N)},
        r"norm_bias is float32 \[6\], expected float32 \[10\]",
    ),
    "norm_bias_alone": ({}, {"norm_bias": torch.ones(K)}, "norm_bias is given, but norm_weight is missing"),
    "norm": ({"norm": "group"}, {}, 'norm is "group", expected rms or layer'),
    "silu_mul_rows": ({"activation": "silu_mul"}, {}, r"B has shape \[6, 10\], expected \[2N, K\] = \[12, 10\]"),
    "silu_mul_bias": (
        {"activation": "silu_mul"},
        {"B": torch.ones(2 * N, K), "bias": torch.ones(N)},
        r"bias is float32 \[6\], expected float32 \[12\]",
    ),
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
    "next_weight_type": (
        {},
        {"next_weight": torch.ones(N, K).half()},
        r"next_weight is float16 \[6, 10\], expected a tensor of float32 like B, of one dimension or more",
    ),
    "next_weight_scalar": ({}, {"next_weight": torch.ones(())}, r"next_weight is float32 \[\], expected a tensor of"),
    "a_transposed": (
        {},
        {"A": torch.ones(K, M).T},
        r"A is \[4, 10\] with strides \[1, 4\], expected a stride of 1 in the last dimension",
    ),
    "a_every_other_column": (
        {},
        {"A": torch.ones(1, 2 * K)[:, ::2]},
        r"A is \[1, 10\] with strides \[20, 2\], expected a stride of 1 in the last dimension",
    ),
    "a_rows_at_two_distances": (
        {},
        {"A": torch.ones(3, M + 1, K)[:, 1:]},
        r"A is \[3, 4, 10\] with strides \[50, 10, 1\], "
        "expected one distance between all rows: a stride of 40 in dimension 0",
    ),
    "a_overlapping_rows": (
        {},
        {"A": torch.ones(2 * K).as_strided((M, K), (2, 1))},
        r"A is \[4, 10\] with strides \[2, 1\], expected rows at least K = 10 apart",
    ),
    "a_repeated_row": ({}, {"A": torch.ones(K).expand(M, K)}, "A is .*, expected rows at least K = 10 apart"),
    "b_strided": (
        {},
        {"B": torch.ones(K, N).T},
        r"B is \[6, 10\] with strides \[1, 6\], expected a dense row-major tensor",
    ),
    "bias_strided": ({}, {"bias": torch.ones(N, 2)[:, 0]}, r"bias is \[6\] with strides \[2\], expected a dense"),
    "residual_strided": (
        {},
        {"residual": torch.ones(2, M, 2 * N)[:, :, :N]},
        r"residual is \[2, 4, 6\] with strides \[48, 12, 1\], expected a dense",
    ),
}


@pytest.mark.parametrize(("attribute_changes", "input_changes", "message"), VALUE_ERRORS.values(), ids=VALUE_ERRORS)
def test_invalid(attribute_changes: dict, input_changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match="FdppFlatGemm: " + message):
        plan(attributes(**attribute_changes), inputs(**input_changes))


INT4 = {"weight_format": "int4", "block_size": 16, "K": 40}
INT4_INPUTS = {
    "A": torch.ones(M, 40),
    "B": torch.ones(N, 24, dtype=torch.uint8),
    "scales": torch.ones(N, 3),
    "zero_points": torch.ones(N, 2, dtype=torch.uint8),
}
INT8_INPUTS = {"A": torch.ones(M, K), "B": torch.ones(N, K, dtype=torch.int8), "scales": torch.ones(N)}
FP8_INPUTS = INT8_INPUTS | {"B": torch.ones(N, K).to(torch.float8_e4m3fn)}
QUANTISED_ERRORS = {
    "no_block_size": (INT4 | {"block_size": 0}, INT4_INPUTS, "block_size is 0, expected 16, 32, 64 or 128"),
    "block_size": (INT4 | {"block_size": 256}, INT4_INPUTS, "block_size is 256, expected 16, 32, 64 or 128"),
    "int4_b_type": (INT4, INT4_INPUTS | {"B": torch.ones(N, 24)}, "B is float32 but weight_format says int4"),
    "int4_b_shape": (
        INT4,
        INT4_INPUTS | {"B": torch.ones(N, 20, dtype=torch.uint8)},
        r"B has shape \[6, 20\], expected \[N, ceil\(K / block_size\) \* block_size / 2\] = \[6, 24\]",
    ),
    "int4_no_scales": (INT4, INT4_INPUTS | {"scales": None}, "scales is missing, which weight_format int4 needs"),
    "int4_scales_shape": (
        INT4,
        INT4_INPUTS | {"scales": torch.ones(N * 3)},
        r"scales is float32 \[18\], expected float32 \[6, 3\]",
    ),
    "int4_scales_type": (INT4, INT4_INPUTS | {"scales": torch.ones(N, 3).half()}, "scales is float16"),
    "zero_point_packing": (
        INT4,
        INT4_INPUTS | {"zero_points": torch.ones(N, 3, dtype=torch.uint8)},
        r"zero_points is uint8 \[6, 3\], expected uint8 \[6, 2\]",
    ),
    "zero_point_type": (
        INT4,
        INT4_INPUTS | {"zero_points": torch.ones(N, 2)},
        r"zero_points is float32 \[6, 2\], expected uint8 \[6, 2\]",
    ),
    "int8_no_scales": ({"weight_format": "int8"}, INT8_INPUTS | {"scales": None}, "scales is missing"),
    "int8_one_scale": (
        {"weight_format": "int8"},
        INT8_INPUTS | {"scales": torch.ones(1)},
        r"scales is float32 \[1\], expected float32 \[6\]",
    ),
    "int8_block_size": ({"weight_format": "int8", "block_size": 32}, INT8_INPUTS, "block_size is 32, expected 0"),
    "int8_zero_points": (
        {"weight_format": "int8"},
        INT8_INPUTS | {"zero_points": torch.ones(N, dtype=torch.uint8)},
        "zero_points is given, but weight_format int8 has none",
    ),
    "fp8_b_type": ({"weight_format": "fp8"}, INT8_INPUTS, "B is int8 but weight_format says fp8"),
    "fp8_scales_shape": (
        {"weight_format": "fp8"},
        FP8_INPUTS | {"scales": torch.ones(2)},
        r"scales is float32 \[2\], expected float32 \[6\]",
    ),
}


@pytest.mark.parametrize(("attribute_changes", "given", "message"), QUANTISED_ERRORS.values(), ids=QUANTISED_ERRORS)
def test_invalid_quantised_weights(attribute_changes: dict, given: dict, message: str) -> None:
    with pytest.raises(ValueError, match="FdppFlatGemm: " + message):
        plan(attributes(**attribute_changes), given)


@pytest.mark.parametrize(
    ("attribute_changes", "given"),
    [
        (INT4, INT4_INPUTS),
        (INT4, INT4_INPUTS | {"zero_points": None}),
        ({"weight_format": "int8"}, INT8_INPUTS),
        ({"weight_format": "fp8"}, FP8_INPUTS),
        ({"weight_format": "fp8"}, FP8_INPUTS | {"scales": torch.ones(1)}),
    ],
)
def test_quantised_weights(attribute_changes: dict, given: dict) -> None:
    assert plan(attributes(**attribute_changes), given)["variant"].startswith("cpu_")


def test_describes_the_problem() -> None:
    residual = torch.ones(M, N)
    given = INT4_INPUTS | {"norm_weight": torch.ones(40), "bias": torch.ones(N), "residual": residual}
    plan(attributes(**INT4, activation="silu", accuracy_level=4), given)
    (record,) = [r for r in _core.last_plans() if (r["op"], r["node"]) == ("FdppFlatGemm", "")]
    assert record["problem"] == (
        "M=4 N=6 K=40 float32 weights int4/16 +zero_points accuracy 4 +rms_norm +bias silu +residual"
    )


NOT_SUPPORTED = {
    "bfloat16_on_cpu": (
        {"weight_format": "bf16"},
        {"A": torch.ones(M, K).bfloat16(), "B": torch.ones(N, K).bfloat16()},
        "no kernel for M=4 N=6 K=10 bfloat16 weights bf16 on cpu",
    ),
}


@pytest.mark.parametrize(("attribute_changes", "input_changes", "message"), NOT_SUPPORTED.values(), ids=NOT_SUPPORTED)
def test_not_supported(attribute_changes: dict, input_changes: dict, message: str) -> None:
    with pytest.raises(NotImplementedError, match="FdppFlatGemm: " + message):
        plan(attributes(**attribute_changes), inputs(**input_changes))


def test_no_rows_is_no_error() -> None:
    _core.gemm(attributes(), inputs(A=torch.ones(0, K)), {"Y": torch.ones(0, N)})
    given = INT4_INPUTS | {"A": torch.ones(0, 40), "norm_weight": torch.ones(40)}
    gated = attributes(**INT4, N=N // 2, activation="silu_mul", accuracy_level=4)
    _core.gemm(gated, given, {"Y": torch.ones(0, N // 2)})


def test_output() -> None:
    with pytest.raises(ValueError, match=r"FdppFlatGemm: Y is float32 \[8, 6\], expected float32 \[2, 4, 6\]"):
        _core.gemm(attributes(), inputs(), {"Y": torch.ones(2 * M, N)})
    with pytest.raises(
        ValueError, match=r"FdppFlatGemm: Y is \[2, 4, 6\] with strides \[48, 12, 1\], expected a dense"
    ):
        _core.gemm(attributes(), inputs(), {"Y": torch.ones(2, M, 2 * N)[:, :, :N]})
