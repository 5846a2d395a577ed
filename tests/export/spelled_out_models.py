"""A small decoder layer, as text, so that tests can change a line of it: in standard ops, and around an op."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import numpy_helper

HEADS, KV_HEADS, HEAD_SIZE = 4, 2, 8
_HIDDEN, _VOCABULARY = HEADS * HEAD_SIZE, 50

GRAPH = """
<ir_version: 8, opset_import: ["" : 18]>
decoder (int64[batch, tokens] input_ids, int64[batch, total] attention_mask,
         float[batch, 2, past, 8] past_key, float[batch, 2, past, 8] past_value)
     => (float[batch, tokens, 32] hidden,
         float[batch, 2, longer, 8] present_key, float[batch, 2, longer, 8] present_value)
{
  x = Gather(embedding, input_ids)
  q3 = MatMul(x, wq)
  k3 = MatMul(x, wk)
  v3 = MatMul(x, wv)
  q4 = Reshape(q3, q_shape)
  k4 = Reshape(k3, kv_shape)
  v4 = Reshape(v3, kv_shape)
  q = Transpose<perm = [0, 2, 1, 3]>(q4)
  k = Transpose<perm = [0, 2, 1, 3]>(k4)
  v = Transpose<perm = [0, 2, 1, 3]>(v4)

  past1 = Shape<start = 2, end = 3>(past_key)
  new1 = Shape<start = 1, end = 2>(input_ids)
  total1 = Add(past1, new1)
  past0 = Squeeze(past1)
  total0 = Squeeze(total1)
  places = Range(past0, total0, one)
  column = Unsqueeze(places, axis1)
  numbers = Cast<to = 1>(column)
  angles = Mul(numbers, frequencies)
  angles2 = Concat<axis = -1>(angles, angles)
  cos = Cos(angles2)
  sin = Sin(angles2)
  q_left = Slice(q, i0, i4, i3)
  q_right = Slice(q, i4, i8, i3)
  q_minus = Neg(q_right)
  q_turned = Concat<axis = -1>(q_minus, q_left)
  q_cos = Mul(q, cos)
  q_sin = Mul(q_turned, sin)
  query = Add(q_cos, q_sin)
  k_left = Slice(k, i0, i4, i3)
  k_right = Slice(k, i4, i8, i3)
  k_minus = Neg(k_right)
  k_turned = Concat<axis = -1>(k_minus, k_left)
  k_cos = Mul(k, cos)
  k_sin = Mul(k_turned, sin)
  key = Add(k_cos, k_sin)

  present_key = Concat<axis = 2>(past_key, key)
  present_value = Concat<axis = 2>(past_value, v)
  keys5 = Unsqueeze(present_key, axis2)
  keys_all = Expand(keys5, groups)
  keys = Reshape(keys_all, all_shape)
  values5 = Unsqueeze(present_value, axis2)
  values_all = Expand(values5, groups)
  values = Reshape(values_all, all_shape)

  every = Range(zero, total0, one)
  row = Unsqueeze(every, axis0)
  causal = LessOrEqual(row, column)
  wide = Unsqueeze(attention_mask, axis12)
  real = Cast<to = 9>(wide)
  visible = And(causal, real)
  mask = Where(visible, zero_f, lowest)

  keys_t = Transpose<perm = [0, 1, 3, 2]>(keys)
  scores = MatMul(query, keys_t)
  scaled = Mul(scores, scale)
  masked = Add(scaled, mask)
  weights = Softmax<axis = -1>(masked)
  heads = MatMul(weights, values)
  heads_last = Transpose<perm = [0, 2, 1, 3]>(heads)
  merged = Reshape(heads_last, merged_shape)
  hidden = MatMul(merged, wo)
}
"""

# With ATTENTION for the line of the op; its heads are those of the caches.
OP_GRAPH = """
<ir_version: 10, opset_import: ["" : 23, "com.microsoft" : 1]>
decoder (int64[batch, tokens] input_ids, int64[batch, total] attention_mask,
         float[batch, 2, past, 8] past_key, float[batch, 2, past, 8] past_value)
     => (float[batch, tokens, 32] hidden,
         float[batch, 2, longer, 8] present_key, float[batch, 2, longer, 8] present_value)
{
  x = Gather(embedding, input_ids)
  q3 = MatMul(x, wq)
  k3 = MatMul(x, wk)
  v3 = MatMul(x, wv)
  past1 = Shape<start = 2, end = 3>(past_key)
  new1 = Shape<start = 1, end = 2>(input_ids)
  total1 = Add(past1, new1)
  past0 = Squeeze(past1)
  total0 = Squeeze(total1)
  places = Range(past0, total0, one)
  column = Unsqueeze(places, axis1)
  every = Range(zero, total0, one)
  row = Unsqueeze(every, axis0)
  causal = LessOrEqual(row, column)
  wide = Unsqueeze(attention_mask, axis12)
  real = Cast<to = 9>(wide)
  visible = And(causal, real)
  mask = Where(visible, zero_f, lowest)
  ATTENTION
  hidden = MatMul(merged, wo)
}
"""


# New tokens are written into caches of a fixed size.
WRITTEN_GRAPH = """
<ir_version: 11, opset_import: ["" : 24]>
decoder (int64[batch, tokens] input_ids, int64[batch] write_indices,
         float[batch, 2, 16, 8] past_key, float[batch, 2, 16, 8] past_value)
     => (float[batch, tokens, 32] hidden,
         float[batch, 2, 16, 8] present_key, float[batch, 2, 16, 8] present_value)
{
  x = Gather(embedding, input_ids)
  q3 = MatMul(x, wq)
  k3 = MatMul(x, wk)
  v3 = MatMul(x, wv)
  q4 = Reshape(q3, q_shape)
  k4 = Reshape(k3, kv_shape)
  v4 = Reshape(v3, kv_shape)
  q = Transpose<perm = [0, 2, 1, 3]>(q4)
  k = Transpose<perm = [0, 2, 1, 3]>(k4)
  v = Transpose<perm = [0, 2, 1, 3]>(v4)
  present_key = TensorScatter<axis = -2>(past_key, k, write_indices)
  present_value = TensorScatter<axis = -2>(past_value, v, write_indices)
  new1 = Shape<start = 1, end = 2>(input_ids)
  in_use = Add(write_indices, new1)
  heads = Attention<is_causal = 1, scale = 0.3>(q, present_key, present_value, , , , in_use)
  heads_last = Transpose<perm = [0, 2, 1, 3]>(heads)
  merged = Reshape(heads_last, merged_shape)
  hidden = MatMul(merged, wo)
}
"""


# One new token, which is written into past; with ATTENTION for the line of the op.
ONE_TOKEN_GRAPH = """
<ir_version: 10, opset_import: ["" : 18, "com.microsoft" : 1]>
decoder (int64[batch, 1] input_ids, int32[batch, total] attention_mask, int32[1] past_sequence_length,
         float[batch, 2, room, 8] past_key, float[batch, 2, room, 8] past_value)
     => (float[batch, 1, 32] hidden,
         float[batch, 2, room, 8] present_key, float[batch, 2, room, 8] present_value)
{
  x = Gather(embedding, input_ids)
  q3 = MatMul(x, wq)
  k3 = MatMul(x, wk)
  v3 = MatMul(x, wv)
  ATTENTION
  hidden = MatMul(merged, wo)
}
"""


def one_token(attention: str) -> onnx.ModelProto:
    """The layer whose line `attention` makes merged, present_key and present_value of one token; two query heads."""
    return _model(ONE_TOKEN_GRAPH.replace("ATTENTION", attention), KV_HEADS)


def written(*changes: tuple[str, str]) -> onnx.ModelProto:
    """The layer whose caches are of a fixed size, with each of the lines `changes` (old, new) in place of another."""
    return _model(_changed(WRITTEN_GRAPH, changes), HEADS)


def around(attention: str, heads: int) -> onnx.ModelProto:
    """The layer whose line `attention` makes merged, present_key and present_value; `heads` query heads."""
    return _model(OP_GRAPH.replace("ATTENTION", attention), heads)


def decoder(*changes: tuple[str, str], dtype: type[np.floating] = np.float32) -> onnx.ModelProto:
    """The layer with each of the lines `changes` (old, new) in place of another, of float32 or float16."""
    text = _changed(GRAPH, changes)
    if dtype == np.float16:
        text = text.replace("float[", "float16[").replace("Cast<to = 1>", "Cast<to = 10>")
    return _model(text, HEADS, dtype)


def with_logits(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model`, whose hidden states are called logits from now on."""
    for names in (*(node.output for node in model.graph.node), *(node.input for node in model.graph.node)):
        names[:] = ["logits" if name == "hidden" else name for name in names]
    model.graph.output[0].name = "logits"
    return model


def with_room(proto: onnx.ModelProto, room: int | str) -> onnx.ModelProto:
    """`proto` whose caches have that size, a number or a name."""
    for value in (*proto.graph.input[2:], *proto.graph.output[1:]):
        size = value.type.tensor_type.shape.dim[2]
        size.Clear()
        setattr(size, "dim_param" if isinstance(room, str) else "dim_value", room)
    return proto


def _changed(text: str, changes: Iterable[tuple[str, str]]) -> str:
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def _model(text: str, heads: int, dtype: type[np.floating] = np.float32) -> onnx.ModelProto:
    model = onnx.parser.parse_model(text)
    random = np.random.default_rng(0)
    constants = {
        "embedding": random.standard_normal((_VOCABULARY, _HIDDEN), np.float32),
        "frequencies": (0.1 ** np.arange(HEAD_SIZE // 2)).astype(np.float32),
        "sinks": np.array([0.5, -1, 2, 0], np.float32).reshape(1, 4, 1, 1),
        "norm_weight": np.linspace(0.5, 2, HEAD_SIZE, dtype=np.float32),
        "half": np.float32(0.5),
        "many": np.int64(64),
        "end": np.array([2**62]),
        "i1_int32": np.array([1], np.int32),
        "slopes": np.array([0.5, 0.25, 0.125, 0.0625], np.float32).reshape(4, 1, 1),
        "scale": np.float32(0.3),
        "zero_f": np.float32(0),
        "lowest": np.finfo(dtype).min,
        "zero": np.int64(0),
        "one": np.int64(1),
        "window": np.int64(3),
        "two": np.float32(2),
        "q_shape": np.array([0, 0, HEADS, HEAD_SIZE]),
        "kv_shape": np.array([0, 0, KV_HEADS, HEAD_SIZE]),
        "groups": np.array([1, 1, HEADS // KV_HEADS, 1, 1]),
        "other_groups": np.array([1, HEADS // KV_HEADS, 1, 1, 1]),
        "all_shape": np.array([0, HEADS, -1, HEAD_SIZE]),
        "merged_shape": np.array([0, 0, _HIDDEN]),
        "pairs": np.array([0, 0, 0, HEAD_SIZE]),
        "angle_pairs": np.array([0, HEAD_SIZE]),
        "axis_last": np.array([-1]),
        "wb": np.linspace(-1, 1, 48, dtype=np.float32),
        "axis0": np.array([0]),
        "axis1": np.array([1]),
        "axis2": np.array([2]),
        "axis12": np.array([1, 2]),
        **{f"i{number}": np.array([number]) for number in (0, 1, 2, 3, 4, 8)},
    }
    kv_columns, columns = KV_HEADS * HEAD_SIZE, heads * HEAD_SIZE
    for name, shape in {
        "wq": (_HIDDEN, columns),
        "wk": (_HIDDEN, kv_columns),
        "wv": (_HIDDEN, kv_columns),
        "wo": (columns, _HIDDEN),
    }.items():
        constants[name] = random.standard_normal(shape, np.float32) / 4
    used = {name for node in model.graph.node for name in node.input}
    for name, values in constants.items():
        if name in used:
            values = np.asarray(values)
            values = values.astype(dtype) if values.dtype.kind == "f" else values
            model.graph.initializer.append(numpy_helper.from_array(values, name))
    onnx.checker.check_model(model)
    return model
