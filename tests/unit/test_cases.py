"""The shape table covers what it promises."""

from __future__ import annotations

import pytest
from cases import (
    ATTENTION_CASES,
    ATTENTION_TYPES,
    BIASES,
    CACHES,
    CONTEXTS,
    GEMM_ACTIVATIONS,
    GEMM_BLOCKS,
    GEMM_CASES,
    GEMM_NORMS,
    GEMM_ROWS,
    GEMM_TYPES,
    GEMM_WEIGHTS,
    GROUPS,
    HEAD_SIZES,
    NEW_TOKENS,
    POSITIONS,
    QUANTIZATIONS,
    QUANTIZED,
    ROTARY,
    SOFTMAX_MODES,
)

AXES = {
    "head_size": HEAD_SIZES,
    "group": GROUPS,
    "query_length": NEW_TOKENS,
    "rotary": ROTARY,
    "cache": (*CACHES, "none"),
    "softmax_mode": SOFTMAX_MODES,
    "phi_range": (1.0, 8.0),
    "norm": (False, True),
    "bias": BIASES,
    "positions": POSITIONS,
    "packed": (False, True),
    "sink": (False, True),
    "prompt": (False, True),
    "softcap": (0.0, 20.0),
    "window": (-1, 5, 100),
    "scale": (0.0, 0.25),
    "batch": (1, 2, 3, 37, 512),
}


@pytest.mark.parametrize("types", ATTENTION_TYPES, ids="-".join)
def test_attention_axes(types: tuple[str, str]) -> None:
    cases = [c for c in ATTENTION_CASES if c.dtype == types[0] and (c.cache_dtype == types[1] or c.cache == "none")]
    for axis, values in AXES.items():
        assert set(values) <= {getattr(c, axis) for c in cases}, axis
    assert set(CONTEXTS) <= {max(c.lengths) for c in cases}
    assert any(len(set(c.lengths)) == 3 for c in cases), "no ragged batch"
    assert any(c.prompt and min(c.lengths) < c.query_length for c in cases), "no padded prompt"
    assert max(max(c.lengths) for c in cases) > 32768, "no long context"
    if types[1] in QUANTIZED:
        assert set(QUANTIZATIONS) <= {c.quantization for c in cases if c.quantized}
    for mode in SOFTMAX_MODES:
        for axis in ("group", "head_size", "query_length"):
            values = {getattr(c, axis) for c in cases if c.softmax_mode == mode}
            assert len(values) > len(AXES[axis]) // 2, f"{mode} meets few values of {axis}"


@pytest.mark.parametrize("types", GEMM_TYPES, ids="-".join)
def test_gemm_axes(types: tuple[str, str]) -> None:
    cases = [c for c in GEMM_CASES if (c.dtype, c.weight_dtype) == types]
    assert {c.m for c in cases} == set(GEMM_ROWS)
    assert {(c.n, c.k) for c in cases} >= set(GEMM_WEIGHTS)
    both = (False, True)
    assert {(c.bias, c.residual) for c in cases} == {(x, y) for x in both for y in both}
    assert {(c.activation, c.norm) for c in cases} == {(x, y) for x in GEMM_ACTIVATIONS for y in GEMM_NORMS}
    assert {(c.norm, c.norm_bias) for c in cases if c.norm} == {(x, y) for x in GEMM_NORMS[1:] for y in both}
    assert any(c.activation == "silu_mul" and c.bias and c.residual for c in cases)
    for norm in GEMM_NORMS:
        assert {c.row_gap % 8 == 0 for c in cases if c.row_gap > 0 and c.norm == norm} == set(both)
    if types[1] == "float8e4m3fn":
        assert {c.one_scale for c in cases} == set(both)
    if types[1] == "uint8":
        for accuracy_level in (0, 4):
            some = [c for c in cases if c.accuracy_level == accuracy_level]
            assert {(c.block_size, c.zero_points) for c in some} == {(x, y) for x in GEMM_BLOCKS for y in both}
            assert all(any(c.k % c.block_size for c in some if c.block_size == block) for block in GEMM_BLOCKS)


def test_ids_are_unique() -> None:
    for cases in (ATTENTION_CASES, GEMM_CASES):
        assert len({c.id for c in cases}) == len(cases)
