"""The dense form inside an ONNX Runtime session on the CPU: the same bits as the plain form."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import helper

from .attention_feeds import assert_right_in_place, attributes, feeds, with_int8_cache
from .models import attention_model, dense, gemm_model
from .test_gemm_session import int4_weights


def assert_same(session, model: bytes, feed: dict[str, np.ndarray]) -> None:
    dense_feed = dict(feed)
    if "total_sequence_length" in feed:
        dense_feed["total_sequence_length"] = np.zeros((1, int(feed["total_sequence_length"][0])), np.int64)
    expected, got = session(model).run(None, feed), session(dense(model)).run(None, dense_feed)
    assert len(expected) == len(got)
    for mine, other in zip(got, expected, strict=True):
        assert mine.dtype == other.dtype
        np.testing.assert_array_equal(mine, other)


def weight(dtype: type, n: int, k: int) -> np.ndarray:
    values = np.random.default_rng(0).standard_normal((n, k), dtype=np.float32)
    return (values * 40).astype(dtype) if dtype == np.int8 else values.astype(dtype)


@pytest.mark.parametrize(
    "dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.int8, ml_dtypes.float8_e4m3fn], ids=lambda d: d.__name__
)
@pytest.mark.parametrize("m", [1, 20])
def test_product(session, dtype, m):
    rng = np.random.default_rng(1)
    narrow = np.dtype(dtype).itemsize == 1
    constants = {"scales": rng.uniform(0.01, 0.1, 33).astype(np.float32)} if narrow else {}
    constants["next_weight"] = weight(dtype, 20, 64)
    model = gemm_model(weight(dtype, 33, 48), residual=True, rank=3, constants=constants)
    a, residual = (rng.standard_normal((1, m, columns), dtype=np.float32) for columns in (48, 33))
    assert_same(session, model, {"a": a, "residual": residual})


@pytest.mark.parametrize("zero_points", [False, True])
@pytest.mark.parametrize(("k", "block"), [(64, 16), (100, 32), (47, 16)])
def test_int4(session, k, block, zero_points):
    """33 rows of zero points have 132, 66 and 66 bytes: some need padding."""
    _, ours, _ = int4_weights(33, k, block, zero_points)
    model = gemm_model(ours.pop("b"), constants=ours, N=33, K=k, weight_format="int4", block_size=block)
    assert_same(session, model, {"a": np.random.default_rng(2).standard_normal((3, k), dtype=np.float32)})


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(("lengths", "new"), [([7], 7), ([30, 12, 30], 1), ([20], 5)])
def test_attention(session, lengths, new, packed):
    feed = feeds(lengths, new, packed=packed, capacity=40)
    feed["past_key"], feed["past_value"] = map(np.nan_to_num, (feed["past_key"], feed["past_value"]))
    assert_same(session, attention_model("FdppAttention", list(feed), **attributes(feed)), feed)


def test_attention_without_past(session):
    feed = {name: values for name, values in feeds([7], 7).items() if not name.startswith("past")}
    assert_same(session, attention_model("FdppAttention", list(feed), **attributes(feed)), feed)


def test_attention_with_int8_cache_and_position_ids(session):
    feed = with_int8_cache(feeds([13, 9], 1), "PER_CHANNEL")
    feed["position_ids"] = np.array([[3], [8]], np.int64)
    kinds = {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL"}
    assert_same(session, attention_model("FdppAttention", list(feed), cache="int8", **attributes(feed, **kinds)), feed)


def test_attention_in_place(session):
    """Past and present in one buffer, which the caller alone can ask for."""
    lengths = [30, 12]
    feed = feeds(lengths, 1, capacity=40)
    feed["total_sequence_length"] = np.zeros((2, 30), np.int64)
    plain_feed = {**feed, "total_sequence_length": np.array([30], np.int32)}
    model = attention_model("FdppAttention", list(feed), **attributes(feed))
    expected = session(model).run(None, plain_feed)
    assert_right_in_place(session(dense(model)), feed, expected, lengths)


def without_stated_types(model: bytes) -> bytes:
    """`model` with an Identity behind each output, so that nothing states the types of the node's own outputs."""
    proto = onnx.load_from_string(model)
    for value in proto.graph.output:
        proto.graph.node.append(helper.make_node("Identity", [value.name], [f"{value.name}.out"]))
        value.name += ".out"
    return proto.SerializeToString()


def test_output_types_are_inferred(session):
    feed = feeds([13], 1)
    for name in ("past_key", "past_value"):
        feed[name] = feed[name].astype(np.float16)
    model = attention_model("FdppAttention", list(feed), cache="float16", **attributes(feed))
    output, key, value = session(without_stated_types(dense(model))).get_outputs()
    assert [output.type, key.type, value.type] == ["tensor(float)", "tensor(float16)", "tensor(float16)"]
    assert output.shape[:2] == ["query_0", "query_1"] and key.shape[:2] == ["past_key_0", "past_key_1"]
    # The lengths of keys and values are equal, but the runtime cannot know.
    assert len({output.shape[2], key.shape[2], value.shape[2]}) == 3

    (y,) = session(without_stated_types(dense(gemm_model(weight(np.float16, 33, 48), rank=3)))).get_outputs()
    assert (y.type, y.shape) == ("tensor(float)", ["d0", "d1", 33])


def renamed(**names: str):
    """Changes names in the attribute `inputs`."""

    def change(text: str) -> str:
        return ",".join(names.get(name, name) for name in text.split(","))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (renamed(seqlens_k="lengths"), "lengths is no input of it, or is not in its order"),
        (lambda text: text.removesuffix(",sin_cache"), "but the node has 7 of them"),
        (lambda text: "", "query is missing"),
        (renamed(query="key"), 'inputs is ".*": query is missing'),
    ],
)
def test_bad_list_of_inputs(session, change, message):
    feed = feeds([13], 1)
    proto = onnx.load_from_string(dense(attention_model("FdppAttention", list(feed), **attributes(feed))))
    attribute = next(item for item in proto.graph.node[0].attribute if item.name == "inputs")
    attribute.s = change(attribute.s.decode()).encode()
    with pytest.raises(Exception, match=message):
        session(proto.SerializeToString())


def test_weights_in_bytes_are_refused(session):
    """A graph whose B is what the plain form takes."""
    model = gemm_model(weight(np.int8, 8, 16), constants={"scales": np.ones(8, np.float32)})
    proto = onnx.load_from_string(model)
    proto.graph.node[0].domain = "fdpp.dense"
    proto.graph.node[0].attribute.append(helper.make_attribute("inputs", "A,B,scales"))
    proto.opset_import.append(helper.make_opsetid("fdpp.dense", 1))
    with pytest.raises(Exception, match=r"B is int8 \[8, 16\], expected int32 \[rows, words\] in the dense form"):
        session(proto.SerializeToString()).run(None, {"a": np.zeros((1, 16), np.float32)})


def test_a_total_length_without_dimensions_is_refused(session):
    feed = feeds([13], 1)
    proto = onnx.load_from_string(dense(attention_model("FdppAttention", list(feed), **attributes(feed))))
    total = next(value for value in proto.graph.input if value.name == "total_sequence_length")
    del total.type.tensor_type.shape.dim[:]
    feed["total_sequence_length"] = np.array(13, np.int64)
    with pytest.raises(Exception, match="total_sequence_length has no dimension"):
        session(proto.SerializeToString()).run(None, feed)
