"""Which computations of total_sequence_length name the tensor that has it as its last dimension."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from fdpp_ort.export.lower.total_length import tensor_of_length


def found(nodes: list[tuple], index: int = 1, shape: list | None = ("batch", "total")) -> str | None:
    """The name of the tensor that tensor_of_length finds behind the last of `nodes`, (op, inputs, attributes) each."""
    protos = [helper.make_node(op, inputs, [f"v{i}"], **more) for i, (op, inputs, more) in enumerate(nodes)]
    graph = helper.make_graph(
        protos,
        "g",
        [helper.make_tensor_value_info("mask", TensorProto.INT64, shape)],
        [helper.make_tensor_value_info(f"v{len(nodes) - 1}", TensorProto.INT32, None)],
        [helper.make_tensor("index", TensorProto.INT64, [], [index])],
    )
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))
    value = tensor_of_length(model.graph.outputs[0])
    return value.name if value is not None else None


SHAPE, GATHER, CAST = ("Shape", ["mask"], {}), ("Gather", ["v0", "index"], {}), ("Cast", ["v1"], {"to": 6})


@pytest.mark.parametrize("index", [1, -1])
def test_as_the_builder_writes_it(index: int) -> None:
    assert found([SHAPE, GATHER, CAST], index) == "mask"


@pytest.mark.parametrize("index", [0, -2, 2, -3])
def test_another_dimension(index: int) -> None:
    assert found([SHAPE, GATHER, CAST], index) is None


def test_of_unknown_rank() -> None:
    assert found([SHAPE, GATHER], -1, shape=None) == "mask"
    assert found([SHAPE, GATHER], 1, shape=None) is None


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [({"start": 1}, "mask"), ({"start": -1}, "mask"), ({"start": 1, "end": 2}, "mask"), ({"end": 1}, None), ({}, None)],
)
def test_a_slice_of_the_shape(attributes: dict, expected: str | None) -> None:
    assert found([("Shape", ["mask"], attributes), ("Squeeze", ["v0"], {})]) == expected


def test_constant_index(tmp_path) -> None:
    index = helper.make_tensor("one", TensorProto.INT64, [1], [1])
    nodes = [SHAPE, ("Constant", [], {"value": index}), ("Gather", ["v0", "v1"], {}), ("Reshape", ["v2", "index"], {})]
    assert found(nodes) == "mask"


@pytest.mark.parametrize(
    "nodes",
    [
        [("ReduceMax", ["mask"], {})],
        [SHAPE, ("Gather", ["v0", "mask"], {}), CAST],
        [SHAPE, GATHER, ("Add", ["v1", "v1"], {})],
        [SHAPE, ("Gather", ["v0", "index"], {}), ("Gather", ["v1", "index"], {})],
    ],
)
def test_computed_in_another_way(nodes: list) -> None:
    assert found(nodes) is None


def test_graph_input() -> None:
    value = ir.from_proto(onnx.helper.make_tensor_value_info("total", TensorProto.INT32, [1]))
    assert tensor_of_length(value) is None
