"""Small graphs that do between decode steps, on the model's device, what the host would otherwise copy for."""

from __future__ import annotations

import numpy as np

_INT64, _FLOAT = 7, 1  # ONNX's numbers


def advance_graph(vocabulary: int, logits_type: int) -> bytes:
    """From a step's logits [B, 1, vocabulary] the inputs of the step that appends the likeliest tokens, for the caller
    to bind over those of the step that was: next_tokens [B, 1], next_positions [B, 1] = positions + 1, and mask
    [B, capacity] with ones up to that position; all int64. `columns` is 0, 1, ... capacity - 1.

    Of equal logits the first wins, as NumPy has it; ONNX Runtime's ArgMax on CUDA promises no order. A row with a NaN
    gets the token -1."""
    from onnx import helper, numpy_helper

    def values(name: str, element_type: int, *shape):
        return helper.make_tensor_value_info(name, element_type, shape)

    constants = {
        "ids": np.arange(vocabulary, dtype=np.float32),  # exact up to 2^24; integers are reduced as floats on CUDA too
        "none": np.array(vocabulary, np.float32),
        "nan": np.array(-1, np.float32),
        "one": np.array(1, np.int64),
    }
    nodes = [
        helper.make_node("Cast", ["logits"], ["scores"], to=_FLOAT),
        helper.make_node("ReduceMax", ["scores"], ["greatest"], axes=[-1], keepdims=1),
        helper.make_node("Equal", ["scores", "greatest"], ["is_greatest"]),
        helper.make_node("Where", ["is_greatest", "ids", "none"], ["candidates"]),
        helper.make_node("IsNaN", ["scores"], ["is_nan"]),
        helper.make_node("Where", ["is_nan", "nan", "candidates"], ["marked"]),
        helper.make_node("ReduceMin", ["marked"], ["first"], axes=[-1], keepdims=0),
        helper.make_node("Cast", ["first"], ["next_tokens"], to=_INT64),
        helper.make_node("Add", ["positions", "one"], ["next_positions"]),
        helper.make_node("LessOrEqual", ["columns", "next_positions"], ["is_token"]),
        helper.make_node("Cast", ["is_token"], ["mask"], to=_INT64),
    ]
    graph = helper.make_graph(
        nodes,
        "advance",
        [
            values("logits", logits_type, "batch", 1, vocabulary),
            values("positions", _INT64, "batch", 1),
            values("columns", _INT64, "capacity"),
        ],
        [
            values("next_tokens", _INT64, "batch", 1),
            values("next_positions", _INT64, "batch", 1),
            values("mask", _INT64, "batch", "capacity"),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return _serialised(graph)


def extend_graph() -> bytes:
    """Float32 [rows, n] -> [rows, n + pads[3]] with zeros behind; pads, int64 [4], is 0, 0, 0 and how many."""
    from onnx import helper

    graph = helper.make_graph(
        [helper.make_node("Pad", ["short", "pads"], ["long"])],
        "extend",
        [
            helper.make_tensor_value_info("short", _FLOAT, ["rows", "n"]),
            helper.make_tensor_value_info("pads", _INT64, [4]),
        ],
        [helper.make_tensor_value_info("long", _FLOAT, ["rows", "more"])],
    )
    return _serialised(graph)


def _serialised(graph) -> bytes:
    from onnx import helper

    # Opset 17: axes of reductions are attributes still, and every ONNX Runtime from 1.20 on has CUDA kernels of it.
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()
