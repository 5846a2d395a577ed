"""Ways to damage a model folder (model.onnx and model.onnx.data): its bytes, its data's, its graph."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

Damage = Callable[[Path, random.Random], None]
_Chance = random.Random
_GRAPH, _DATA = "model.onnx", "model.onnx.data"


def _in_file(name: str, change: Callable[[bytearray, _Chance], None]) -> Damage:
    def damage(folder: Path, chance: _Chance) -> None:
        content = bytearray((folder / name).read_bytes())
        change(content, chance)
        (folder / name).write_bytes(content)

    damage.__name__ = change.__name__.strip("_") + (" of the data" if name == _DATA else " of the graph")
    return damage


def _in_graph(change: Callable[[onnx.GraphProto, _Chance], None]) -> Damage:
    def damage(folder: Path, chance: _Chance) -> None:
        model = onnx.load(folder / _GRAPH, load_external_data=False)
        change(model.graph, chance)
        (folder / _GRAPH).write_bytes(model.SerializeToString())

    damage.__name__ = change.__name__.strip("_")
    return damage


def _flip_bits(content: bytearray, chance: _Chance) -> None:
    for _ in range(chance.choice((1, 1, 2, 8))):
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)


def _overwrite_bytes(content: bytearray, chance: _Chance) -> None:
    start, count = chance.randrange(len(content)), chance.choice((1, 2, 4, 16))
    content[start : start + count] = chance.randbytes(count)


def _remove_bytes(content: bytearray, chance: _Chance) -> None:
    start = chance.randrange(len(content))
    del content[start : start + chance.choice((1, 2, 16, 256))]


def _insert_bytes(content: bytearray, chance: _Chance) -> None:
    start = chance.randrange(len(content))
    content[start:start] = chance.randbytes(chance.choice((1, 2, 16)))


def _repeat_bytes(content: bytearray, chance: _Chance) -> None:
    start = chance.randrange(len(content))
    content[start:start] = content[start : start + chance.choice((2, 16, 256))]


def _cut_off(content: bytearray, chance: _Chance) -> None:
    del content[chance.randrange(len(content)) :]


def _lose_the_data(folder: Path, chance: _Chance) -> None:
    (folder / _DATA).unlink()


def _some_input(graph: onnx.GraphProto, chance: _Chance) -> tuple[onnx.NodeProto, int]:
    node = chance.choice([node for node in graph.node if node.input])
    return node, chance.randrange(len(node.input))


def _some_attribute(graph: onnx.GraphProto, chance: _Chance) -> onnx.AttributeProto:
    return chance.choice([attribute for node in graph.node for attribute in node.attribute])


def _drop_input(graph: onnx.GraphProto, chance: _Chance) -> None:
    node, index = _some_input(graph, chance)
    del node.input[index]


def _omit_input(graph: onnx.GraphProto, chance: _Chance) -> None:
    node, index = _some_input(graph, chance)
    node.input[index] = ""


def _swap_inputs(graph: onnx.GraphProto, chance: _Chance) -> None:
    node = chance.choice([node for node in graph.node if len(node.input) > 1])
    first, second = chance.sample(range(len(node.input)), 2)
    node.input[first], node.input[second] = node.input[second], node.input[first]


def _read_another(graph: onnx.GraphProto, chance: _Chance) -> None:
    """A node's input becomes any other node's output, at times its own or a later one's."""
    node, index = _some_input(graph, chance)
    node.input[index] = chance.choice([name for other in graph.node for name in other.output])


def _close_a_circle(graph: onnx.GraphProto, chance: _Chance) -> None:
    node, index = _some_input(graph, chance)
    node.input[index] = node.output[0]


def _write_twice(graph: onnx.GraphProto, chance: _Chance) -> None:
    """Two nodes' outputs have one name."""
    first, second = chance.sample(list(graph.node), 2)
    second.output[0] = first.output[0]


def _double_a_name(graph: onnx.GraphProto, chance: _Chance) -> None:
    """An initializer or a graph input is there twice."""
    values = chance.choice((graph.initializer, graph.input, graph.output))
    values.add().CopyFrom(chance.choice(values))


def _drop_node(graph: onnx.GraphProto, chance: _Chance) -> None:
    graph.node.remove(chance.choice(graph.node))


def _repeat_node(graph: onnx.GraphProto, chance: _Chance) -> None:
    graph.node.add().CopyFrom(chance.choice(graph.node))


def _shuffle_nodes(graph: onnx.GraphProto, chance: _Chance) -> None:
    nodes = list(graph.node)
    chance.shuffle(nodes)
    del graph.node[:]
    graph.node.extend(nodes)


def _drop_attributes(graph: onnx.GraphProto, chance: _Chance) -> None:
    del chance.choice([node for node in graph.node if node.attribute]).attribute[:]


def _untype_attribute(graph: onnx.GraphProto, chance: _Chance) -> None:
    _some_attribute(graph, chance).ClearField("type")


def _retype_attribute(graph: onnx.GraphProto, chance: _Chance) -> None:
    attribute = _some_attribute(graph, chance)
    tensor = numpy_helper.from_array(np.ones(3))
    value = chance.choice((3, -1, 2**40, 0.5, float("nan"), "text", [1, 2], [0.5], ["a"], tensor))
    attribute.CopyFrom(helper.make_attribute(attribute.name, value))


def _another_op(graph: onnx.GraphProto, chance: _Chance) -> None:
    chance.choice(graph.node).op_type = chance.choice([node.op_type for node in graph.node] + ["If", "Loop", "Unheard"])


def _shorten_constant(graph: onnx.GraphProto, chance: _Chance) -> None:
    tensor = chance.choice(graph.initializer)
    values = np.zeros(chance.randrange(3), helper.tensor_dtype_to_np_dtype(tensor.data_type))
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def _reshape_constant(graph: onnx.GraphProto, chance: _Chance) -> None:
    tensor = chance.choice([tensor for tensor in graph.initializer if tensor.dims])
    tensor.dims[chance.randrange(len(tensor.dims))] = chance.choice((0, 1, 3, -1, 2**31, 2**62))


def _retype_constant(graph: onnx.GraphProto, chance: _Chance) -> None:
    chance.choice(graph.initializer).data_type = chance.choice((0, 1, 2, 7, 8, 10, 11, 16, 22, 99))


def _drop_constant(graph: onnx.GraphProto, chance: _Chance) -> None:
    graph.initializer.remove(chance.choice(graph.initializer))


def _drop_graph_input(graph: onnx.GraphProto, chance: _Chance) -> None:
    del graph.input[chance.randrange(len(graph.input))]


def _drop_graph_output(graph: onnx.GraphProto, chance: _Chance) -> None:
    del graph.output[chance.randrange(len(graph.output))]


def _retype_port(graph: onnx.GraphProto, chance: _Chance) -> None:
    chance.choice([*graph.input, *graph.output]).type.tensor_type.elem_type = chance.choice((0, 1, 6, 7, 9, 10, 16, 99))


def _resize_port(graph: onnx.GraphProto, chance: _Chance) -> None:
    sizes = [size for value in (*graph.input, *graph.output) for size in value.type.tensor_type.shape.dim]
    chance.choice(sizes).dim_value = chance.choice((0, 1, 3, -5, 2**40))


def _forget_shape(graph: onnx.GraphProto, chance: _Chance) -> None:
    chance.choice([*graph.input, *graph.output]).type.tensor_type.ClearField("shape")


_BYTES = (_flip_bits, _overwrite_bytes, _remove_bytes, _insert_bytes, _repeat_bytes, _cut_off)
_GRAPHS = (
    _drop_input,
    _omit_input,
    _swap_inputs,
    _read_another,
    _close_a_circle,
    _write_twice,
    _double_a_name,
    _drop_node,
    _repeat_node,
    _shuffle_nodes,
    _drop_attributes,
    _untype_attribute,
    _retype_attribute,
    _another_op,
    _shorten_constant,
    _reshape_constant,
    _retype_constant,
    _drop_constant,
    _drop_graph_input,
    _drop_graph_output,
    _retype_port,
    _resize_port,
    _forget_shape,
)
# Bytes of the graph come more often: there is more in them to hit.
DAMAGES: tuple[Damage, ...] = (
    *(_in_file(_GRAPH, change) for change in _BYTES for _ in range(3)),
    *(_in_file(_DATA, change) for change in (_flip_bits, _cut_off)),
    _lose_the_data,
    *map(_in_graph, _GRAPHS),
)
