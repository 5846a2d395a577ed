"""Each thing that can be wrong with a call of FdppAttention, and the error that says so."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fdpp_ort import _core

B, S, HQ, HKV, D, L, TOTAL = 2, 3, 6, 2, 16, 12, 9


def attributes(**changes: object) -> dict[str, object]:
    return {"num_heads": HQ, "kv_num_heads": HKV} | changes


def inputs(**changes: object) -> dict[str, object]:
    return {
        "query": torch.zeros(B, S, HQ * D),
        "key": torch.zeros(B, S, HKV * D),
        "value": torch.zeros(B, S, HKV * D),
        "past_key": torch.zeros(B, HKV, L, D),
        "past_value": torch.zeros(B, HKV, L, D),
        "seqlens_k": torch.tensor([TOTAL - 1, 4], dtype=torch.int32),
        "total_sequence_length": TOTAL,
    } | changes


def rotary(rows: int = TOTAL, half: int = D // 2) -> dict[str, torch.Tensor]:
    return {"cos_cache": torch.ones(rows, half), "sin_cache": torch.zeros(rows, half)}


def outputs(**changes: object) -> dict[str, object]:
    present = torch.zeros(2, B, HKV, L, D)
    return {"output": torch.zeros(B, S, HQ * D), "present_key": present[0], "present_value": present[1]} | changes


PER_TENSOR = {"k_quant_type": "PER_TENSOR", "v_quant_type": "PER_TENSOR"}
PER_CHANNEL = {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL"}


def quantized(dtype: torch.dtype = torch.int8, **changes: object) -> dict[str, object]:
    """A cache of 8 bits with one scale."""
    past = torch.zeros(2, B, HKV, L, D).to(dtype)
    scale = torch.ones(1)
    return {"past_key": past[0], "past_value": past[1], "k_scale": scale, "v_scale": scale} | changes


def unified(phi: torch.Tensor | None = None, **changes: object) -> tuple[dict, dict]:
    """(attribute changes, input changes)"""
    return {"softmax_mode": "unified"} | changes, {"phi": torch.zeros(HQ) if phi is None else phi}


def plan(a: dict[str, object], i: dict[str, object]) -> dict[str, object]:
    return _core.plan_attention(a, i, _core.cpu_device())


def test_the_base_call_is_right() -> None:
    assert plan(attributes(), inputs())["variant"]
    _core.attention(attributes(), inputs(), outputs())
    _core.attention(attributes(do_rotary=1), inputs(**rotary()), outputs())
    _core.attention(attributes(), inputs(attention_bias=torch.zeros(B, HQ, S, TOTAL)), outputs())
    _core.attention(attributes(), inputs(q_norm=torch.ones(D), k_norm=torch.ones(D)), outputs())
    attribute_changes, input_changes = unified()
    _core.attention(attributes(**attribute_changes), inputs(**input_changes), outputs())


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize(
    ("quantization", "shape"),
    [(PER_TENSOR, ()), (PER_TENSOR, (1,)), (PER_TENSOR, (1, 1, 1, 1)), (PER_CHANNEL, (1, HKV, 1, D))],
)
def test_the_base_call_with_8_bits_is_right(dtype: torch.dtype, quantization: dict, shape: tuple[int, ...]) -> None:
    call = quantized(dtype, k_scale=torch.ones(shape), v_scale=torch.ones(shape))
    out = outputs(present_key=call["past_key"], present_value=call["past_value"])
    _core.attention(attributes(**quantization), inputs(**call), out)


def test_position_ids_may_reach_beyond_the_cache() -> None:
    """cos_cache may then have fewer rows than total_sequence_length, or more."""
    for rows in (4, 50):
        positions = torch.full((B, S), rows - 1)
        _core.attention(attributes(do_rotary=1), inputs(position_ids=positions, **rotary(rows)), outputs())


def test_position_ids_without_a_rotary_embedding_are_not_read() -> None:
    _core.attention(attributes(), inputs(position_ids=torch.full((B, S), -1)), outputs())


VALUE_ERRORS = {
    "query_missing": ({}, {"query": None}, "query is missing"),
    "seqlens_missing": ({}, {"seqlens_k": None}, "seqlens_k is missing"),
    "total_missing": ({}, {"total_sequence_length": None}, "total_sequence_length is missing"),
    "key_alone": ({}, {"value": None}, "key and value must be given together"),
    "value_alone": ({}, {"key": None}, "key and value must be given together"),
    "past_key_alone": ({}, {"past_value": None}, "past_key and past_value must be given together"),
    "cos_alone": ({"do_rotary": 1}, {"cos_cache": torch.ones(TOTAL, D // 2)}, "cos_cache and sin_cache must be given"),
    "heads": ({"num_heads": 5}, {}, "num_heads 5 and kv_num_heads 2: expected positive numbers, the second dividing"),
    "no_heads": ({"num_heads": 0}, {}, "num_heads 0 and kv_num_heads 2"),
    "negative_heads": ({"kv_num_heads": -2}, {}, "num_heads 6 and kv_num_heads -2"),
    "query_int": (
        {},
        {"query": torch.zeros(B, S, HQ * D, dtype=torch.int32)},
        "query is int32, expected float32, float16 or bfloat16",
    ),
    "key_type": ({}, {"key": torch.zeros(B, S, HKV * D).half()}, "key is float16, expected float32"),
    "value_type": ({}, {"value": torch.zeros(B, S, HKV * D).bfloat16()}, "value is bfloat16, expected float32"),
    "past_types": ({}, {"past_value": torch.zeros(B, HKV, L, D).half()}, "past_value is float16, expected float32"),
    "seqlens_type": ({}, {"seqlens_k": torch.tensor([8, 4])}, "seqlens_k is int64, expected int32"),
    "total_type": ({}, {"total_sequence_length": torch.tensor([9])}, "total_sequence_length is int64, expected int32"),
    "cos_type": (
        {"do_rotary": 1},
        {k: v.half() for k, v in rotary().items()},
        "cos_cache is float16, expected float32",
    ),
    "query_rank": ({}, {"query": torch.zeros(B, S, HQ, D)}, r"query has shape \[2, 3, 6, 16\], expected rank 3"),
    "query_strided": (
        {},
        {"query": torch.zeros(B, S, 2 * HQ * D)[:, :, : HQ * D]},
        r"query is \[2, 3, 96\] with strides \[576, 192, 1\], expected a dense row-major tensor",
    ),
    "query_columns": (
        {},
        {"query": torch.zeros(B, S, HQ * D + 1)},
        r"query has shape \[2, 3, 97\], expected a last dimension that 6 heads divide",
    ),
    "packed_columns": (
        {},
        {"query": torch.zeros(B, S, HQ * D + 1), "key": None, "value": None},
        "a last dimension that 10 packed heads divide",
    ),
    "key_shape": ({}, {"key": torch.zeros(B, S, D)}, r"key has shape \[2, 3, 16\], expected \[2, 3, 32\]"),
    "value_shape": (
        {},
        {"value": torch.zeros(B, S + 1, HKV * D)},
        r"value has shape \[2, 4, 32\], expected \[2, 3, 32\]",
    ),
    "seqlens_shape": (
        {},
        {"seqlens_k": torch.zeros(3, dtype=torch.int32)},
        r"seqlens_k has shape \[3\], expected \[2\]",
    ),
    "total_shape": (
        {},
        {"total_sequence_length": torch.zeros(2, dtype=torch.int32)},
        r"total_sequence_length has shape \[2\], expected one element",
    ),
    "total_short": ({}, {"total_sequence_length": 2}, "total_sequence_length is 2, less than the 3 new tokens"),
    "total_negative": ({}, {"total_sequence_length": -1}, "total_sequence_length is -1, less than the 3 new tokens"),
    "past_rank": (
        {},
        {"past_key": torch.zeros(B, HKV, L * D)},
        r"past_key has shape \[2, 2, 192\], expected \[2, 2, capacity, 16\]",
    ),
    "past_heads": (
        {},
        {"past_key": torch.zeros(B, HQ, L, D), "past_value": torch.zeros(B, HQ, L, D)},
        r"past_key has shape \[2, 6, 12, 16\], expected \[2, 2, capacity, 16\]",
    ),
    "past_shapes": (
        {},
        {"past_value": torch.zeros(B, HKV, L + 1, D)},
        r"past_value has shape \[2, 2, 13, 16\], expected past_key's \[2, 2, 12, 16\]",
    ),
    "past_small": (
        {},
        {"total_sequence_length": 100},
        r"past_key \[2, 2, 12, 16\] holds fewer than the 97 past tokens",
    ),
    "past_missing": ({}, {"past_key": None, "past_value": None}, "holds fewer than the 6 past tokens"),
    "rotary_missing": ({"do_rotary": 1}, {}, "do_rotary is 1 but cos_cache and sin_cache are missing"),
    "cos_rank": (
        {"do_rotary": 1},
        {"cos_cache": torch.ones(8), "sin_cache": torch.ones(8)},
        r"cos_cache has shape \[8\], expected rank 2",
    ),
    "sin_shape": (
        {"do_rotary": 1},
        rotary() | {"sin_cache": torch.ones(TOTAL, 4)},
        r"sin_cache has shape \[9, 4\], expected cos_cache's \[9, 8\]",
    ),
    "rotary_dim": (
        {"do_rotary": 1, "rotary_embedding_dim": 8},
        rotary(),
        r"rotary_embedding_dim is 8 but cos_cache \[9, 8\] rotates 16 columns",
    ),
    "rotary_wide": (
        {"do_rotary": 1},
        rotary(half=D),
        "rotates 32 columns, expected a multiple of 8 up to the head size 16",
    ),
    "rotary_odd": ({"do_rotary": 1}, rotary(half=3), "rotates 6 columns, expected a multiple of 8"),
    "rotary_short": ({"do_rotary": 1}, rotary(rows=8), "cos_cache has 8 positions, fewer than total_sequence_length 9"),
    "sink_shape": ({}, {"head_sink": torch.zeros(HKV)}, r"head_sink has shape \[2\], expected \[6\]"),
    "scale": ({"scale": float("nan")}, {}, "scale is nan, expected a finite number of at least 0"),
    "scale_negative": ({"scale": -1.0}, {}, "scale is -1.0+, expected a finite number of at least 0"),
    "softcap": ({"softcap": float("inf")}, {}, "softcap is inf, expected a finite number"),
    "window_zero": ({"local_window_size": 0}, {}, "local_window_size is 0, expected -1"),
    "window_negative": ({"local_window_size": -7}, {}, "local_window_size is -7, expected -1"),
    "softmax_mode": (
        {"softmax_mode": "eager"},
        {},
        'softmax_mode is "eager", expected "unified", "lazy" or "online"',
    ),
    "phi_missing": ({"softmax_mode": "unified"}, {}, 'softmax_mode is "unified" but phi is missing'),
    "phi_shape": (*unified(torch.zeros(HKV)), r"phi has shape \[2\], expected \[6\]"),
    "phi_type": (*unified(torch.zeros(HQ).half()), "phi is float16, expected float32"),
    "phi_lower": (
        *unified(phi_lower=0.0),
        "phi_lower is 0.0+ and phi_upper 8.0+, expected finite numbers below and above 0",
    ),
    "phi_upper": (*unified(phi_upper=-1.0), "phi_lower is -8.0+ and phi_upper -1.0+, expected finite numbers"),
    "phi_lower_nan": (*unified(phi_lower=float("nan")), "phi_lower is nan and phi_upper"),
    "phi_upper_infinite": (*unified(phi_upper=float("inf")), "phi_upper inf, expected finite numbers"),
    "position_ids_type": (
        {"do_rotary": 1},
        rotary() | {"position_ids": torch.zeros(B, S, dtype=torch.int32)},
        "position_ids is int32, expected int64",
    ),
    "position_ids_shape": (
        {"do_rotary": 1},
        rotary() | {"position_ids": torch.zeros(B, S + 1, dtype=torch.int64)},
        r"position_ids has shape \[2, 4\], expected \[2, 3\]",
    ),
    "bias_type": (
        {},
        {"attention_bias": torch.zeros(1, 1, S, TOTAL).half()},
        "attention_bias is float16, expected float32",
    ),
    **{
        f"bias_shape_{'_'.join(map(str, shape))}": (
            {},
            {"attention_bias": torch.zeros(shape)},
            rf"attention_bias has shape \[{', '.join(map(str, shape))}\], expected \[2 or 1, 6 or 1, 3, 9\]",
        )
        for shape in ((S, TOTAL), (3, 1, S, TOTAL), (B, HKV, S, TOTAL), (B, HQ, 1, TOTAL), (B, HQ, S, L))
    },
    "q_norm_alone": ({}, {"q_norm": torch.ones(D)}, "q_norm and k_norm must be given together"),
    "q_norm_shape": (
        {},
        {"q_norm": torch.ones(HQ, D), "k_norm": torch.ones(D)},
        r"q_norm has shape \[6, 16\], expected \[16\]",
    ),
    "k_norm_shape": (
        {},
        {"q_norm": torch.ones(D), "k_norm": torch.ones(D + 8)},
        r"k_norm has shape \[24\], expected \[16\]",
    ),
    "k_norm_type": (
        {},
        {"q_norm": torch.ones(D), "k_norm": torch.ones(D).half()},
        "k_norm is float16, expected float32",
    ),
    "norm_epsilon": (
        {"qk_norm_epsilon": -1.0},
        {"q_norm": torch.ones(D), "k_norm": torch.ones(D)},
        "qk_norm_epsilon is -1.0+, expected a finite number of at least 0",
    ),
    "quant_type": (
        {"k_quant_type": "PER_TOKEN"},
        {},
        'k_quant_type is "PER_TOKEN", expected "NONE", "PER_TENSOR" or "PER_CHANNEL"',
    ),
    "quant_type_v": ({"v_quant_type": "int8"}, {}, 'v_quant_type is "int8", expected "NONE"'),
    "quant_type_of_float": (PER_TENSOR, {}, 'k_quant_type is "PER_TENSOR" but past_key is float32'),
    "quant_type_left_out": ({}, quantized(), 'k_quant_type is "NONE" but past_key is int8'),
    "quant_type_of_one": (
        PER_TENSOR | {"v_quant_type": "NONE"},
        quantized(torch.float8_e4m3fn),
        'v_quant_type is "NONE" but past_key is float8e4m3fn',
    ),
    "scale_of_float": (
        {},
        {"k_scale": torch.ones(1), "v_scale": torch.ones(1)},
        "k_scale is given but past_key is float32, expected int8 or float8e4m3fn",
    ),
    "scale_alone": (PER_TENSOR, quantized(v_scale=None), "k_scale and v_scale must be given together"),
    "scales_missing": (
        PER_TENSOR,
        quantized(k_scale=None, v_scale=None),
        "k_scale is missing: past_key is int8",
    ),
    "k_scale_shape": (
        PER_TENSOR,
        quantized(k_scale=torch.ones(2)),
        r'k_scale has shape \[2\], expected one element, since k_quant_type is "PER_TENSOR"',
    ),
    "v_scale_shape": (
        PER_CHANNEL,
        quantized(k_scale=torch.ones(1, HKV, 1, D)),
        r'v_scale has shape \[1\], expected \[1, 2, 1, 16\], since v_quant_type is "PER_CHANNEL"',
    ),
    "scale_type": (PER_TENSOR, quantized(k_scale=torch.ones(1).half()), "k_scale is float16, expected float32"),
    "caches_of_two_types": (
        PER_TENSOR,
        quantized(past_value=torch.zeros(B, HKV, L, D).to(torch.float8_e4m3fn)),
        "past_value is float8e4m3fn, expected int8",
    ),
}


@pytest.mark.parametrize(("attribute_changes", "input_changes", "message"), VALUE_ERRORS.values(), ids=VALUE_ERRORS)
def test_invalid(attribute_changes: dict, input_changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match="FdppAttention: .*" + message):
        plan(attributes(**attribute_changes), inputs(**input_changes))


def with_head_size(d: int) -> dict[str, object]:
    return {
        "query": torch.zeros(B, S, HQ * d),
        "key": torch.zeros(B, S, HKV * d),
        "value": torch.zeros(B, S, HKV * d),
        "past_key": torch.zeros(B, HKV, L, d),
        "past_value": torch.zeros(B, HKV, L, d),
    }


NOT_SUPPORTED = {
    "head_size_100": (
        with_head_size(100),
        r"head size 100 \(query \[2, 3, 600\] over 6 heads\) is not a multiple of 8",
    ),
    "head_size_1024": (with_head_size(1024), "head size 1024 .* is not a multiple of 8 up to 256"),
    "bfloat16_on_cpu": (
        {k: v.bfloat16() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for k, v in inputs().items()},
        "no kernel for .*bfloat16.* on cpu",
    ),
}


@pytest.mark.parametrize(("input_changes", "message"), NOT_SUPPORTED.values(), ids=NOT_SUPPORTED)
def test_not_supported(input_changes: dict, message: str) -> None:
    with pytest.raises(NotImplementedError, match="FdppAttention: .*" + message):
        plan(attributes(), inputs(**input_changes))


@pytest.mark.parametrize(
    ("seqlens", "message"),
    [
        ([8, 9], r"seqlens_k\[1\] is 9, expected 2 to 8 \(3 new tokens, total_sequence_length 9\)"),
        ([1, 8], r"seqlens_k\[0\] is 1, expected 2 to 8"),
        ([-1, 8], r"seqlens_k\[0\] is -1, expected 2 to 8"),
        ([8, 2**31 - 1], r"seqlens_k\[1\] is 2147483647, expected 2 to 8"),
        ([8, -(2**31)], r"seqlens_k\[1\] is -2147483648, expected 2 to 8"),
    ],
)
def test_lengths(seqlens: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _core.attention(attributes(), inputs(seqlens_k=torch.tensor(seqlens, dtype=torch.int32)), outputs())


@pytest.mark.parametrize(("at", "value"), [((0, 0), -1), ((1, 2), 9), ((1, 0), 2**40), ((0, 1), -(2**40))])
def test_positions(at: tuple[int, int], value: int) -> None:
    positions = torch.zeros(B, S, dtype=torch.int64)
    positions[at] = value
    message = rf"FdppAttention: position_ids\[{at[0]}, {at[1]}\] is {value}, expected 0 to 8, a row of cos_cache"
    with pytest.raises(ValueError, match=message):
        _core.attention(attributes(do_rotary=1), inputs(position_ids=positions, **rotary()), outputs())


def test_lengths_of_a_prompt() -> None:
    prompt = inputs(
        past_key=None, past_value=None, total_sequence_length=S, seqlens_k=torch.tensor([2, 3], dtype=torch.int32)
    )
    present = torch.zeros(2, B, HKV, S, D)
    with pytest.raises(ValueError, match=r"seqlens_k\[1\] is 3, expected 0 to 2"):
        _core.attention(attributes(), prompt, outputs(present_key=present[0], present_value=present[1]))


@pytest.mark.parametrize(("batch", "tokens"), [(0, 3), (2, 0), (0, 0)])
def test_nothing_to_do_is_no_error(batch: int, tokens: int) -> None:
    cache = torch.full((2, batch, HKV, L, D), 7.0)
    output = torch.zeros(batch, tokens, HQ * D)
    new = torch.zeros(batch, tokens, HKV * D)
    call = inputs(
        query=torch.zeros(batch, tokens, HQ * D),
        key=new,
        value=new,
        past_key=cache[0],
        past_value=cache[1],
        seqlens_k=torch.full((batch,), 4, dtype=torch.int32),
    )
    _core.attention(attributes(), call, outputs(output=output, present_key=cache[0], present_value=cache[1]))
    assert (cache == 7).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output": None}, "output is missing"),
        (
            {"output": torch.zeros(B, S, HQ * D).half()},
            r"output is float16 \[2, 3, 96\], expected float32 \[2, 3, 96\]",
        ),
        (
            {"present_key": torch.zeros(B, HKV, L + 1, D)},
            r"present_key is float32 \[2, 2, 13, 16\], expected float32 \[2, 2, 12, 16\]",
        ),
        (
            {"present_value": torch.zeros(B, L, HKV, D).transpose(1, 2)},
            r"present_value is \[2, 2, 12, 16\] with strides",
        ),
        ({"presents": torch.zeros(1)}, 'unknown tensor "presents"'),
    ],
)
def test_outputs(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match="FdppAttention: " + message):
        _core.attention(attributes(), inputs(), outputs(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kv_num_heads": None}, "attribute kv_num_heads is None, a value of the wrong type"),
        ({"num_heads": "six"}, "attribute num_heads is 'six', a value of the wrong type"),
        ({"head_count": 6}, 'unknown attribute "head_count"'),
    ],
)
def test_attributes(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(attributes(**changes), inputs())


def test_required_attribute() -> None:
    with pytest.raises(ValueError, match="FdppAttention: attribute kv_num_heads is missing"):
        plan({"num_heads": HQ}, inputs())


def test_objects_that_are_no_tensors() -> None:
    with pytest.raises(ValueError, match="FdppAttention: query is a list, expected a tensor that speaks DLPack"):
        plan(attributes(), inputs(query=[1.0]))
    with pytest.raises(ValueError, match="FdppAttention: query has DLPack type code 2 with 64 bits"):
        plan(attributes(), inputs(query=torch.zeros(B, S, HQ * D, dtype=torch.float64)))
    with pytest.raises(ValueError, match="threads is 0, expected at least 1"):
        _core.attention(attributes(), inputs(), outputs(), threads=0)


def test_numpy_tensors() -> None:
    """NumPy arrays are borrowed like torch tensors, and written in place."""

    def as_numpy(tensors: dict[str, object]) -> dict[str, object]:
        return {k: v.numpy() if isinstance(v, torch.Tensor) else v for k, v in tensors.items()}

    out = as_numpy(outputs(output=torch.full((B, S, HQ * D), torch.nan)))
    _core.attention(attributes(), as_numpy(inputs(value=torch.ones(B, S, HKV * D))), out)
    assert np.isfinite(out["output"]).all()
    assert (out["present_value"][0, :, TOTAL - S : TOTAL] == 1).all()
