"""Finds the tensor whose last dimension is total_sequence_length, which the dense form takes in place of the number."""

from __future__ import annotations

import onnx_ir as ir

# They hand on the one number that they get.
_SAME_NUMBER = ("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze")


def tensor_of_length(number: ir.Value) -> ir.Value | None:
    """The tensor whose last dimension is `number`, by how the graph computes it; None: it is not computed so.

    onnxruntime-genai's builder writes Cast(Gather(Shape(attention_mask), 1)).
    """
    index = None
    while (node := number.producer()) is not None and node.domain == "":
        if node.op_type == "Shape":
            return node.inputs[0] if _is_last_dimension(node, index) else None
        if node.op_type == "Gather" and index is None:
            index = _constant(node.inputs[1])
            if index is None:
                return None
        elif node.op_type not in _SAME_NUMBER:
            return None
        number = node.inputs[0]
    return None


def _is_last_dimension(shape: ir.Node, index: int | None) -> bool:
    """Whether element `index` (None: the only one) of what the Shape node yields is its input's last dimension."""
    start, end = shape.attributes.get_int("start", 0), shape.attributes.get_int("end", None)
    known = shape.inputs[0].shape
    if known is None:
        return (start, end, index) == (0, None, -1)
    dimensions = range(len(known))[start:end]
    if index is None:
        return list(dimensions) == [len(known) - 1]
    return -len(dimensions) <= index < len(dimensions) and dimensions[index] == len(known) - 1


def _constant(value: ir.Value) -> int | None:
    tensor = ir.convenience.get_const_tensor(value)
    return int(tensor.numpy().item()) if tensor is not None and tensor.size == 1 else None
