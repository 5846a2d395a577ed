"""The original graph with the values that an export stores for its weights: what a quantised export is to compute."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes import common

from .fuse.weight import weight_of
from .normalise import canonicalise, load
from .pack import register
from .progress import Progress
from .write import write_model

_PRODUCTS = ("MatMul", "Gemm")


def write_reference(
    original: Path, stored: Mapping[str, ir.TensorProtocol], folder: Path, progress: Progress | None
) -> Path:
    """Writes the graph file `original` to `folder`, whose products read `stored` in place of the weights of these
    names. Other nodes, such as an embedding, keep the weights. Returns the new graph's path."""
    model, _ = load(original)
    canonicalise(model)
    made: dict[str, ir.Value] = {}
    for node in list(model.graph.all_nodes()):
        weight = weight_of(node) if node.domain == "" and node.op_type in _PRODUCTS else None
        if weight is None or weight.value.name not in stored:
            continue
        name = weight.value.name
        if name not in made:
            made[name] = register(weight.value.graph, stored[name])
        b = made[name]
        if node.inputs[1] is not weight.value:  # behind a Transpose
            transpose = ir.node("Transpose", [b], attributes={"perm": [1, 0]}, name=f"{node.name}/{name}.stored")
            node.graph.insert_before(node, transpose)
            b = transpose.outputs[0]
        node.replace_input_with(1, b)
    common.RemoveUnusedNodesPass()(model)
    path = folder / original.name
    write_model(model, path, progress)
    return path
