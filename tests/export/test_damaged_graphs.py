"""Graphs with one thing wrong: an error, or a graph that does what the damaged one does, never anything else."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from both_graphs import run
from onnx import numpy_helper
from spelled_out_models import around, decoder

from fdpp_ort.export import ExportError, export_model

_OUTPUTS, _CACHED = "merged, present_key, present_value", "past_key, past_value"
_BASES = (
    decoder(),
    around(f"{_OUTPUTS} = Attention<q_num_heads = 4, kv_num_heads = 2>(q3, k3, v3, mask, {_CACHED})", 4),
    around(f"{_OUTPUTS} = com.microsoft.MultiHeadAttention<num_heads = 2>(q3, k3, v3, , , mask, {_CACHED})", 2),
)
_SEEDS = 15
Damage = Callable[[onnx.GraphProto, random.Random], None]


def _some_input(graph: onnx.GraphProto, chance: random.Random) -> tuple[onnx.NodeProto, int]:
    node = chance.choice([node for node in graph.node if node.input])
    return node, chance.randrange(len(node.input))


def drop_input(graph: onnx.GraphProto, chance: random.Random) -> None:
    node, index = _some_input(graph, chance)
    del node.input[index]


def omit_input(graph: onnx.GraphProto, chance: random.Random) -> None:
    node, index = _some_input(graph, chance)
    node.input[index] = ""


def read_another(graph: onnx.GraphProto, chance: random.Random) -> None:
    node, index = _some_input(graph, chance)
    node.input[index] = chance.choice([name for other in graph.node for name in other.output])


def drop_attributes(graph: onnx.GraphProto, chance: random.Random) -> None:
    del chance.choice([node for node in graph.node if node.attribute]).attribute[:]


def untype_attribute(graph: onnx.GraphProto, chance: random.Random) -> None:
    chance.choice([node for node in graph.node if node.attribute]).attribute[0].ClearField("type")


def another_op(graph: onnx.GraphProto, chance: random.Random) -> None:
    chance.choice(graph.node).op_type = chance.choice([node.op_type for node in graph.node] + ["If", "Unheard"])


def shorten_constant(graph: onnx.GraphProto, chance: random.Random) -> None:
    tensor = chance.choice(graph.initializer)
    values = numpy_helper.to_array(tensor).ravel()[: chance.randrange(3)]
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def drop_graph_input(graph: onnx.GraphProto, chance: random.Random) -> None:
    del graph.input[chance.randrange(len(graph.input))]


def forget_shape(graph: onnx.GraphProto, chance: random.Random) -> None:
    chance.choice([*graph.input, *graph.output]).type.tensor_type.ClearField("shape")


def drop_node(graph: onnx.GraphProto, chance: random.Random) -> None:
    graph.node.remove(chance.choice(graph.node))


_DAMAGES = (
    drop_input,
    omit_input,
    read_another,
    drop_attributes,
    untype_attribute,
    another_op,
    shorten_constant,
    drop_graph_input,
    forget_shape,
    drop_node,
)


@pytest.mark.parametrize("damage", _DAMAGES, ids=lambda damage: damage.__name__)
def test_an_error_or_the_same(damage: Damage, tmp_path: Path, library: str) -> None:
    exported = 0
    for seed in range(_SEEDS):
        chance = random.Random(seed)
        proto = onnx.ModelProto.FromString(chance.choice(_BASES).SerializeToString())
        damage(proto.graph, chance)
        (tmp_path / "in.onnx").write_bytes(proto.SerializeToString())
        try:
            export_model(
                tmp_path / "in.onnx", tmp_path / "out", verify=False, library=library, max_length=64, overwrite=True
            )
        except ExportError:
            continue
        try:
            wanted = run(proto)
        except Exception:  # of ONNX Runtime: what it does not run cannot be compared
            continue
        exported += 1
        for want, got in zip(wanted, run(onnx.load(tmp_path / "out" / "model.onnx")), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4, err_msg=f"seed {seed}")
    assert damage is not forget_shape or exported  # most damages leave nothing to export
