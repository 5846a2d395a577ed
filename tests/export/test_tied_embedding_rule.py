"""An embedding that is the transposed weight of the language model head reads the packed weight."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper
from small_models import FLOAT, FLOAT16, decoder, ir_node, node_named

from fdpp_ort.export.fuse import fuse
from fdpp_ort.export.lower import lower
from fdpp_ort.export.report import ExportReport
from fdpp_ort.export.weight_format import WeightFormat

KIND = "Gather -> Gather of the packed weight"


def rewrite(proto: onnx.ModelProto, report: ExportReport, weights: str = "keep") -> ir.Model:
    model = ir.from_proto(proto)
    fuse(model, WeightFormat.parse(weights), report)
    lower(model, "lazy")
    return model


@pytest.mark.parametrize("dtype", [FLOAT, FLOAT16])
def test_the_matrix_is_held_once(dtype: int, report: ExportReport) -> None:
    model = rewrite(decoder(dtype=dtype), report)
    packed = ir_node(model, "lm_head").inputs[1]
    assert ir_node(model, "embed").inputs[0] is packed
    assert "lm_head.weight" not in model.graph.initializers
    assert not [node for node in model.graph if node.op_type == "Transpose"]
    assert report.rewritten[KIND] == 1


@pytest.mark.parametrize("weights", ["f16", "bf16"])
def test_narrow_rows_are_cast_back(weights: str, report: ExportReport) -> None:
    model = rewrite(decoder(), report, weights)
    gather = ir_node(model, "embed")
    (cast,) = gather.outputs[0].consumers()
    assert cast.op_type == "Cast" and cast.attributes["to"].value == ir.DataType.FLOAT
    assert gather.outputs[0].dtype == gather.inputs[0].dtype != ir.DataType.FLOAT
    assert (cast.outputs[0].name, cast.outputs[0].dtype) == ("x.0", ir.DataType.FLOAT)


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_an_embedding_is_not_quantised(weights: str, report: ExportReport) -> None:
    proto = decoder()
    original = numpy_helper.to_array(next(w for w in proto.graph.initializer if w.name == "lm_head.weight"))
    model = rewrite(proto, report, weights)
    rows = ir_node(model, "embed").inputs[0]
    np.testing.assert_array_equal(rows.const_value.numpy(), original.T)
    assert "lm_head.weight" not in model.graph.initializers
    assert not [node for node in model.graph if node.op_type == "Transpose"]
    assert report.rewritten["Gather of a transpose -> Gather of rows"] == 1 and KIND not in report.rewritten


def test_columns_are_not_rows(report: ExportReport) -> None:
    proto = decoder()
    node_named(proto, "embed").attribute.append(helper.make_attribute("axis", 1))
    model = rewrite(proto, report)
    assert ir_node(model, "embed").inputs[0].name == "embedding"
    assert KIND not in report.rewritten
    assert "lm_head.weight" in model.graph.initializers  # kept beside the packed one: it is still read


def test_other_readers_keep_the_original(report: ExportReport) -> None:
    proto = decoder()
    proto.graph.node.append(helper.make_node("Abs", ["embedding"], ["magnitudes"], name="abs"))
    proto.graph.output.append(helper.make_tensor_value_info("magnitudes", FLOAT, None))
    model = rewrite(proto, report)
    assert ir_node(model, "embed").inputs[0] is ir_node(model, "lm_head").inputs[1]
    assert ir_node(model, "abs").inputs[0].name == "embedding"
    assert "lm_head.weight" in model.graph.initializers


def stored_twice(change: float = 0.0, dtype: int = FLOAT) -> onnx.ModelProto:
    """An untied decoder whose embedding is the head's weight transposed, but for one number."""
    proto = decoder(tied=False, dtype=dtype)
    head, embedding = (
        next(tensor for tensor in proto.graph.initializer if tensor.name == name)
        for name in ("lm_head.weight", "embedding")
    )
    values = numpy_helper.to_array(head).T.copy()
    values[-1, -1] += change
    embedding.CopyFrom(numpy_helper.from_array(values, embedding.name))
    return proto


@pytest.mark.parametrize("dtype", [FLOAT, FLOAT16])
def test_an_equal_matrix_is_held_once(dtype: int, report: ExportReport) -> None:
    model = rewrite(stored_twice(dtype=dtype), report)
    assert ir_node(model, "embed").inputs[0] is ir_node(model, "lm_head").inputs[1]
    assert not {"embedding", "lm_head.weight"} & set(model.graph.initializers)
    assert report.rewritten[KIND] == 1


def test_a_head_that_transposes_the_embedding(report: ExportReport) -> None:
    proto = decoder(tied=False)
    node = node_named(proto, "lm_head")
    proto.graph.node.insert(0, helper.make_node("Transpose", ["embedding"], ["head"], name="transpose", perm=[1, 0]))
    node.input[1] = "head"
    embedding = numpy_helper.to_array(next(t for t in proto.graph.initializer if t.name == "embedding"))
    model = rewrite(proto, report)
    packed = ir_node(model, "lm_head").inputs[1]
    assert ir_node(model, "embed").inputs[0] is packed
    np.testing.assert_array_equal(packed.const_value.numpy(), embedding)
    assert not {"embedding", "lm_head.weight"} & set(model.graph.initializers)
    assert report.rewritten[KIND] == 1


def test_an_almost_equal_matrix_stays(report: ExportReport) -> None:
    model = rewrite(stored_twice(change=1e-3), report)
    assert ir_node(model, "embed").inputs[0].name == "embedding"


def test_an_untied_embedding_stays(report: ExportReport) -> None:
    model = rewrite(decoder(tied=False), report)
    assert ir_node(model, "embed").inputs[0].name == "embedding"
    assert KIND not in report.rewritten
