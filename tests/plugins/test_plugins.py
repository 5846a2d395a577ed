"""A plugin's life in TensorRT's order, as far as it goes without a GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from host import VECTORISED, Host, HostError, Tensor
from layers import ATTENTION, GEMM, attention_fields, attention_tensors, gemm_fields, gemm_tensors

from fdpp_ort import _core

ATTENTION_INPUTS = 7
FIELD_TYPES = {"integer": 5, "real": 1, "text": 6}


def test_creators(host: Host) -> None:
    creators = {name: (kind, version, namespace, fields) for kind, name, version, namespace, fields in host.creators()}
    specs = {spec["name"]: spec for spec in _core.op_specs()}
    assert set(creators) == set(specs)
    for name, (kind, version, namespace, fields) in creators.items():
        assert (kind, version, namespace) == ("PLUGIN CREATOR_V3ONE", "1", "")
        attributes = {a["name"]: FIELD_TYPES[a["kind"]] for a in specs[name]["attributes"]}
        assert fields == attributes | dict.fromkeys(("inputs", "tactics", "library", "workspace"), 6)


def test_capabilities(host: Host) -> None:
    plugin = host.create(GEMM, gemm_fields())
    assert plugin.describe() == [GEMM, "1", "", "PLUGIN_V3ONE_CORE", "PLUGIN_V3ONE_BUILD 2", "PLUGIN_V3ONE_RUNTIME"]


@pytest.mark.parametrize(
    ("op", "fields", "message"),
    [
        (GEMM, {"K": 256, "weight_format": "f16", "inputs": "A,B"}, "field N is missing"),
        (GEMM, gemm_fields() | {"N": 96.0}, "field N has type 1 and 1 values, expected an integer"),
        (GEMM, gemm_fields() | {"weight_format": 3}, "field weight_format has type 5 and 1 values, expected text"),
        (GEMM, gemm_fields() | {"colour": 3}, 'field "colour" is unknown'),
        (GEMM, gemm_fields(weight_format="f9"), 'weight_format is "f9", expected f32'),
        (GEMM, gemm_fields(n=0), "N is 0 and K is 256, expected positive numbers"),
        (GEMM, gemm_fields(inputs="B,A"), "A is missing"),
        (GEMM, gemm_fields(inputs="A"), "B is missing"),
        (GEMM, gemm_fields(inputs=""), "A is missing"),
        (GEMM, gemm_fields(inputs="A,B,colour"), "colour is no input of it"),
        (GEMM, gemm_fields(inputs="A,B,"), "an empty name is no input of it"),
        (GEMM, gemm_fields(tactics="random"), 'tactics is "random", expected heuristic or timed'),
        (GEMM, gemm_fields(library="0.0.1"), "built with version 0.0.1 of the library"),
        (ATTENTION, attention_fields() | {"softmax_mode": "soft"}, "softmax_mode"),
        (ATTENTION, attention_fields(heads=0), "num_heads is 0"),
        (ATTENTION, attention_fields(inputs="query,seqlens_k,total_sequence_length"), "past_key is missing"),
    ],
)
def test_fields_that_are_wrong(host: Host, op: str, fields: dict, message: str) -> None:
    with pytest.raises(HostError, match=f"fdpp: {op}: .*{message}"):
        host.create(op, fields)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("weights", ["same", "int8", "fp8", "int4"])
def test_types_of_a_product(host: Host, dtype: str, weights: str) -> None:
    weight_format = {"float16": "f16", "bfloat16": "bf16"}[dtype] if weights == "same" else weights
    inputs = "A,B,bias,next_weight" if weights == "same" else "A,B,scales,bias,next_weight"
    plugin = host.create(
        GEMM, gemm_fields(weight_format=weight_format, inputs=inputs, block_size=32 * (weights == "int4"))
    )
    tensors = gemm_tensors(dtype=dtype, weight_format=weight_format, bias=True, next_weight=True)
    check_types(plugin, tensors)
    assert plugin.output_types([t.type for t in tensors[:-1]]) == [dtype]


@pytest.mark.parametrize(
    ("dtype", "cache"), [("float16", ""), ("bfloat16", ""), ("float16", "int8"), ("bfloat16", "float8")]
)
def test_types_of_attention(host: Host, dtype: str, cache: str) -> None:
    tensors = attention_tensors(dtype=dtype, cache=cache)
    plugin = host.create(ATTENTION, attention_fields())
    check_types(plugin, tensors, either={4: {"int32", "int64"}, 1: {dtype, "int8", "float8"}})
    cache_type = cache or dtype
    assert plugin.output_types([t.type for t in tensors[:ATTENTION_INPUTS]]) == [dtype, cache_type, cache_type]


def check_types(plugin, tensors: list[Tensor], either: dict[int, set[str]] | None = None) -> None:
    """Each tensor may be what it is, and nothing else but the first, which others follow."""
    for at, tensor in enumerate(tensors):
        assert plugin.supports(at, tensors)
        assert not plugin.supports(at, [*tensors[:at], replace(tensor, format=VECTORISED), *tensors[at + 1 :]])
        right = (either or {}).get(at, {tensor.type})
        for other in ("float32", "float16", "bfloat16", "int32", "int64", "int8", "uint8", "bool", "float8"):
            if at > 0:
                taken = plugin.supports(at, [*tensors[:at], replace(tensor, type=other), *tensors[at + 1 :]])
                assert taken == (other in right), (at, other)
    first = [replace(tensors[0], type="float32"), *tensors[1:]]
    assert not plugin.supports(0, first)


def test_shapes(host: Host) -> None:
    product = host.create(GEMM, gemm_fields())
    assert product.output_shapes(gemm_tensors()[:-1]) == [(1, 4, 96)]
    attention = host.create(ATTENTION, attention_fields())
    tensors = attention_tensors()
    assert attention.output_shapes(tensors[:ATTENTION_INPUTS]) == [tuple(t.most) for t in tensors[ATTENTION_INPUTS:]]
    separate = "query,key,value,past_key,past_value,seqlens_k,total_sequence_length"
    attention = host.create(ATTENTION, attention_fields(inputs=separate) | {"do_rotary": 0})
    shapes = attention.output_shapes(
        [Tensor("float16", (2, 16, 256)), *[Tensor("float16", (2, 16, 128))] * 2, *tensors[1:5]]
    )
    assert shapes == [(2, 16, 256), (2, 2, 128, 64), (2, 2, 128, 64)]


def test_caches_are_in_place(host: Host) -> None:
    attention = host.create(ATTENTION, attention_fields())
    assert [attention.aliased_input(i) for i in range(3)] == [-1, 1, 2]
    assert host.create(GEMM, gemm_fields()).aliased_input(0) == -1


def test_a_layer_with_other_tensors_than_named(host: Host) -> None:
    plugin = host.create(GEMM, gemm_fields(inputs="A,B,bias"))
    with pytest.raises(HostError, match="a layer of 2 inputs and 1 outputs, but field inputs names 3"):
        plugin.configure(gemm_tensors())


@pytest.mark.parametrize(
    ("op", "fields", "tensors", "message"),
    [
        (GEMM, gemm_fields(k=128), gemm_tensors(), "A has"),
        (GEMM, gemm_fields(n=95), gemm_tensors(), r"B has shape \[96, 256\], expected \[N, K\] = \[95, 256\]"),
        (
            GEMM,
            gemm_fields(weight_format="int4", inputs="A,B,scales", block_size=64),
            gemm_tensors(weight_format="int4"),
            "scales is float16",
        ),
        (ATTENTION, attention_fields(), attention_tensors(total=129), "fewer than total_sequence_length 129"),
        (
            ATTENTION,
            attention_fields(),
            attention_tensors(total=129, positions=200),
            "129, more than past_key's capacity 128",
        ),
        (ATTENTION, attention_fields(kv_heads=4), attention_tensors(), "query"),
        (ATTENTION, attention_fields(heads=3), attention_tensors(), "num_heads"),
    ],
)
def test_profiles_that_do_not_fit(host: Host, op: str, fields: dict, tensors: list[Tensor], message: str) -> None:
    with pytest.raises(HostError, match=message):
        host.create(op, fields).configure(tensors)


def test_profiles_that_fit(host: Host) -> None:
    host.create(GEMM, gemm_fields()).configure(gemm_tensors())
    host.create(ATTENTION, attention_fields()).configure(attention_tensors())
    zeros = gemm_fields(weight_format="int4", inputs="A,B,scales,zero_points", block_size=32)
    host.create(GEMM, zeros).configure(gemm_tensors(weight_format="int4", zero_points=True))


@pytest.mark.parametrize(
    ("op", "fields"),
    [
        (GEMM, gemm_fields(activation="silu", norm_epsilon=0.5, tactics="timed")),
        (ATTENTION, attention_fields(softcap=3.0, local_window_size=-1, softmax_mode="online")),
    ],
)
def test_serialised_and_created_again(host: Host, op: str, fields: dict) -> None:
    plugin = host.create(op, fields)
    stored = plugin.serialised()
    again = plugin.reload()
    assert again.serialised() == stored
    assert again.timing_id() == plugin.timing_id()
    assert stored.pop("library")
    given = {name: f"{value:.6f}" if isinstance(value, float) else str(value) for name, value in fields.items()}
    assert stored == given
    copy = plugin.clone()
    del plugin
    assert copy.serialised() == again.serialised()


def test_workspace_of_an_engine(host: Host) -> None:
    """What the engine gives is kept; a plugin that was asked for nothing says nothing."""
    assert "workspace" not in host.create(GEMM, gemm_fields()).serialised()
    plugin = host.create(GEMM, gemm_fields(workspace="4096"))
    assert plugin.serialised()["workspace"] == plugin.reload().clone().serialised()["workspace"] == "4096"
    for wrong in ("4096x", "-1", "1" * 30):
        with pytest.raises(HostError, match=f'workspace is "{wrong}", expected a number of bytes'):
            host.create(GEMM, gemm_fields(workspace=wrong))


def test_without_a_gpu(host: Host) -> None:
    """What needs one says so: no crash, no guess."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    plugin = host.create(GEMM, gemm_fields())
    assert plugin.workspace(gemm_tensors()) == 0
    assert "fdpp: " in host.messages()
    with pytest.raises(HostError, match="fdpp: "):
        plugin.attach()


def test_tactics(host: Host) -> None:
    assert host.create(GEMM, gemm_fields()).tactics() == []
    variants = [v for v in _core.variants() if v["backend"] == "cuda"]
    for op, fields in ((GEMM, gemm_fields(tactics="timed")), (ATTENTION, attention_fields(tactics="timed"))):
        numbers = host.create(op, fields).tactics()
        assert len(set(numbers)) == len(numbers) == sum(v["op"] == op for v in variants)
        assert all(number > 0 for number in numbers)


def test_timing_ids_differ(host: Host) -> None:
    ids = {host.create(GEMM, gemm_fields(n=n, activation=a)).timing_id() for n in (96, 97) for a in ("none", "relu")}
    assert len(ids) == 4
