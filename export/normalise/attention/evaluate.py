"""Parts of a graph, run during the export by ONNX's reference evaluator."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from ...decoder_inputs import TOKENS
from .contrib_ops import OPS
from .declined import Declined
from .samples import is_past


def structural_values(graph: ir.Graph) -> set[ir.Value]:
    """Values that follow from shapes, masks, positions and constants, whatever the tokens and the caches hold."""
    found = {value for value in graph.inputs if value.name not in TOKENS and not is_past(value)}
    found.update(graph.initializers.values())
    for node in graph:
        if node.op_type in ("Shape", "Size") or all(value is None or value in found for value in node.inputs):
            found.update(node.outputs)
    return found


def ancestors(values: Iterable[ir.Value], given: Iterable[ir.Value] = ()) -> list[ir.Node]:
    """The nodes that `values` need where `given` is known, each after those that it needs itself."""
    done, order, given = set(), [], set(given)
    stack = [(value.producer(), False) for value in values if value not in given]
    while stack:
        node, inputs_done = stack.pop()
        if node is None or (node in done and not inputs_done):
            continue
        if inputs_done:
            order.append(node)
            continue
        done.add(node)
        stack.append((node, True))
        stack += [(value.producer(), False) for value in node.inputs if value is not None and value not in given]
    return order


def evaluate(
    outputs: list[ir.Value], given: Mapping[ir.Value, np.ndarray], opsets: Mapping[str, int]
) -> list[np.ndarray]:
    """`outputs` where the values of `given` are as there. Raises Declined where they need more, or cannot be run."""
    given = {**given, **_shapes(outputs, given)}
    if all(value in given for value in outputs):
        return [given[value] for value in outputs]
    nodes = ancestors(outputs, given)
    inputs, constants = {}, {}
    for value in (*(value for node in nodes for value in node.inputs), *outputs):
        if value is None or value.producer() is not None and value not in given:
            continue
        if value in given:
            inputs[value.name] = given[value]
        elif value.const_value is not None:
            constants[value.name] = value.const_value
        else:
            raise Declined(f"it depends on {value.name}, whose values are not known")
    proto = _proto(nodes, inputs, outputs, constants, opsets)
    try:
        with np.errstate(all="ignore"):
            return ReferenceEvaluator(proto, new_ops=list(OPS)).run([value.name for value in outputs], inputs)
    except Exception as error:  # whatever an op's implementation raises
        cause = (str(error).splitlines() or [type(error).__name__])[0]
        raise Declined(f"{outputs[0].name} cannot be evaluated: {cause[:120]}") from error


def _shapes(outputs: list[ir.Value], given: Mapping[ir.Value, np.ndarray]) -> dict[ir.Value, np.ndarray]:
    """Outputs of Shape nodes whose input's dimensions have names that `given` has, too: nobody need compute it then."""
    sizes = {}
    for value, array in given.items():
        for dimension, size in zip(value.shape or (), array.shape, strict=False):
            if isinstance(dimension, ir.SymbolicDim) and dimension.value is not None:
                sizes[str(dimension.value)] = size
    known = {}
    for node in ancestors(outputs, given):
        if (node.domain, node.op_type) != ("", "Shape") or node.inputs[0].shape is None or node.inputs[0] in given:
            continue
        dims = [size if isinstance(size, int) else sizes.get(str(size.value)) for size in node.inputs[0].shape]
        dims = dims[slice(node.attributes.get_int("start", 0), node.attributes.get_int("end", None))]
        if None not in dims:
            known[node.outputs[0]] = np.array(dims, np.int64)
    return known


def _proto(
    nodes: list[ir.Node],
    inputs: dict[str, np.ndarray],
    outputs: list[ir.Value],
    constants: dict[str, ir.TensorProtocol],
    opsets: Mapping[str, int],
) -> onnx.ModelProto:
    graph = onnx.helper.make_graph(
        [ir.serde.serialize_node(node) for node in nodes],
        "part",
        [
            onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), None)
            for name, array in inputs.items()
        ],
        [onnx.ValueInfoProto(name=value.name) for value in outputs],
        [
            ir.serde.serialize_tensor(ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=name))
            for name, tensor in constants.items()
        ],
    )
    imports = [onnx.helper.make_opsetid(domain, version) for domain, version in opsets.items()]
    return onnx.helper.make_model(graph, opset_imports=imports)
