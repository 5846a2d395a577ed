"""Small graphs that do between decode steps, on the model's device, what the host would otherwise copy for."""

from __future__ import annotations

_INT64, _FLOAT = 7, 1  # ONNX's numbers


def advance_graph(vocabulary: int, logits_type: int) -> bytes:
    """FdppGreedyStep alone: from a step's logits [B, 1, vocabulary], positions [B, 1] and attention mask [B, capacity]
    the inputs of the step that appends the likeliest tokens, for the caller to bind over those of the step that was.
    host_tokens [B, 1] are these tokens for the host, -1 for a row with a NaN."""
    from onnx import helper

    inputs = ["logits", "positions", "attention_mask"]
    outputs = ["next_tokens", "next_positions", "next_attention_mask", "host_tokens"]
    one, mask = ["batch", 1], ["batch", "capacity"]
    graph = helper.make_graph(
        [helper.make_node("FdppGreedyStep", inputs, outputs, domain="fdpp")],
        "advance",
        [
            helper.make_tensor_value_info(inputs[0], logits_type, ["batch", 1, vocabulary]),
            helper.make_tensor_value_info(inputs[1], _INT64, one),
            helper.make_tensor_value_info(inputs[2], _INT64, mask),
        ],
        [
            helper.make_tensor_value_info(name, _INT64, shape)
            for name, shape in zip(outputs, (one, one, mask, one), strict=True)
        ],
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

    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("fdpp", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()
