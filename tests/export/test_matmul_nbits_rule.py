"""MatMulNBits -> FdppFlatGemm with int4 or int8 weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper
from small_models import FLOAT, FLOAT16, HIDDEN, add_input, decoder, ir_node, node_named, quantise, save_folder

from fdpp_ort.export import export_model
from fdpp_ort.export.fuse import fuse
from fdpp_ort.export.report import ExportReport
from fdpp_ort.export.weight_format import WeightFormat

NAME = "layers.0.o"
KIND = "MatMulNBits -> FdppFlatGemm"


def rewrite(proto: onnx.ModelProto, report: ExportReport, weights: str = "keep") -> ir.Model:
    model = ir.from_proto(proto)
    fuse(model, WeightFormat.parse(weights), report)
    return model


def initializer(proto: onnx.ModelProto, name: str) -> np.ndarray:
    return numpy_helper.to_array(next(w for w in proto.graph.initializer if w.name == name))


def numbers_of(packed: np.ndarray) -> np.ndarray:
    """FdppFlatGemm's int4 numbers [N, K] by the statement of fdpp/gemm.h."""
    words = packed.view("<u4")
    nibble_of = [k // 2 + k % 2 * 4 for k in range(8)]
    return np.stack([words >> 4 * j & 15 for j in nibble_of], axis=-1).reshape(len(packed), -1)


@pytest.mark.parametrize("weights", ["keep", "f16"])
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("zero_points", [False, True])
@pytest.mark.parametrize("block_size", [16, 32, 64, 128])
def test_keeps_every_number(block_size: int, zero_points: bool, flat: bool, weights: str, report: ExportReport) -> None:
    proto = decoder()
    quantise(proto, NAME, block_size=block_size, zero_points=zero_points, flat=flat, accuracy_level=4)
    node = ir_node(rewrite(proto, report, weights), NAME)
    assert (node.domain, node.op_type) == ("fdpp", "FdppFlatGemm")
    assert {name: attribute.value for name, attribute in node.attributes.items()} == {
        "N": HIDDEN,
        "K": HIDDEN,
        "weight_format": "int4",
        "block_size": block_size,
        "accuracy_level": 4,
    }
    b, scales, *rest = (value.const_value.numpy() for value in node.inputs[1:])
    original = initializer(proto, f"{NAME}.numbers").reshape(HIDDEN, -1)
    np.testing.assert_array_equal(numbers_of(b), np.stack((original & 15, original >> 4), -1).reshape(HIDDEN, -1))
    blocks = -(-HIDDEN // block_size)
    np.testing.assert_array_equal(scales, initializer(proto, f"{NAME}.scales").reshape(HIDDEN, blocks))
    assert len(rest) == zero_points
    if zero_points:
        expected = initializer(proto, f"{NAME}.zero_points").reshape(HIDDEN, -(-blocks // 2))
        np.testing.assert_array_equal(rest[0], expected)
    assert report.rewritten[KIND] == 1 and report.rewritten["MatMul -> FdppFlatGemm"] == 2
    assert report.left == []


def values_of(node: ir.Node, block_size: int) -> np.ndarray:
    """What the int4 weights of an FdppFlatGemm stand for, float32 [N, blocks * block_size]."""
    b, scales, *points = (value.const_value.numpy() for value in node.inputs[1:])
    numbers = numbers_of(b).reshape(*scales.shape, block_size)
    zero = np.full(scales.shape, 8)
    if points:
        zero = np.stack((points[0] & 15, points[0] >> 4), -1).reshape(len(scales), -1)[:, : scales.shape[1]]
    return ((numbers.astype(np.int8) - zero[..., None].astype(np.int8)) * scales[..., None]).reshape(len(scales), -1)


@pytest.mark.parametrize("zero_points", [False, True])
@pytest.mark.parametrize(("columns", "block_size", "stored"), [(640, 256, 128), (544, 512, 128), (192, 256, 32)])
def test_cuts_larger_blocks(
    columns: int, block_size: int, stored: int, zero_points: bool, report: ExportReport
) -> None:
    """Into some of the same scale and zero point, as many as K needs."""
    proto = decoder(hidden=columns, tied=False)
    quantise(proto, "lm_head", block_size=block_size, zero_points=zero_points)
    numbers, scales = (initializer(proto, f"lm_head.{name}") for name in ("numbers", "scales"))
    unpacked = np.stack((numbers & 15, numbers >> 4), -1).reshape(*scales.shape, block_size)
    zero = np.full(scales.shape, 8)
    if zero_points:
        points = initializer(proto, "lm_head.zero_points")
        zero = np.stack((points & 15, points >> 4), -1).reshape(len(scales), -1)[:, : scales.shape[1]]
    expected = (unpacked.astype(np.int8) - zero[..., None].astype(np.int8)) * scales[..., None]
    node = ir_node(rewrite(proto, report), "lm_head")
    assert report.left == [] and node.attributes["block_size"].value == stored
    assert node.inputs[2].const_value.shape == (len(scales), -(-columns // stored))
    np.testing.assert_array_equal(values_of(node, stored)[:, :columns], expected.reshape(len(scales), -1)[:, :columns])


def eight_bits(proto: onnx.ModelProto, name: str, points: int | None = 128, same_scales: bool = True) -> None:
    """Turns the MatMul `name` into a MatMulNBits of 8 bits in blocks of 16; points: of all blocks, None: not given."""
    quantise(proto, name, block_size=16, bits=8)
    stored, scales = {weight.name: weight for weight in proto.graph.initializer}, initializer(proto, f"{name}.scales")
    rows, blocks = scales.shape
    numbers = np.random.default_rng(rows).integers(0, 256, (rows, blocks, 16), np.uint8)
    scales = np.repeat(scales[:, :1] / 16, blocks, axis=1) * (
        1 if same_scales else np.arange(1, blocks + 1, dtype="f4")
    )
    for part, values in (("numbers", numbers), ("scales", scales)):
        stored[f"{name}.{part}"].CopyFrom(numpy_helper.from_array(values, f"{name}.{part}"))
    if points is not None:
        values = np.full((rows, blocks), points, np.uint8)
        proto.graph.initializer.append(numpy_helper.from_array(values, f"{name}.zero_points"))
        node_named(proto, name).input.append(f"{name}.zero_points")


@pytest.mark.parametrize("points", [None, 128])
@pytest.mark.parametrize("accuracy_level", [0, 4])
def test_eight_bits_with_a_scale_a_column(
    points: int | None, accuracy_level: int, library: str, tmp_path: Path
) -> None:
    proto = decoder(layers=2)
    for layer in range(2):
        eight_bits(proto, f"layers.{layer}.o", points)
        with_attribute("accuracy_level", accuracy_level)(proto, node_named(proto, f"layers.{layer}.o"))
    report = export_model(save_folder(proto, tmp_path / "in"), tmp_path / "out", library=library)
    assert report.rewritten[KIND] == 2 and report.left == []
    assert report.verification.status == "passed"
    bound = 1e-5 if accuracy_level == 0 else 1e-1  # there ONNX Runtime rounds activations, and int8 kernels do not
    assert all(phase.relative_error < bound for phase in report.verification.phases)


@pytest.mark.parametrize(
    ("points", "same_scales", "reason"),
    [
        (128, False, "its weights have 8 bits and a scale for each block of K, expected one for each column"),
        (127, True, "its weights have 8 bits and zero points other than 128"),
    ],
)
def test_eight_bits_that_int8_does_not_hold(points: int, same_scales: bool, reason: str, report: ExportReport) -> None:
    proto = decoder()
    eight_bits(proto, NAME, points, same_scales)
    model = rewrite(proto, report)
    assert [item.reason for item in report.left] == [reason]
    assert ir_node(model, NAME).op_type == "MatMulNBits"


def test_carries_the_bias(report: ExportReport) -> None:
    proto = decoder()
    quantise(proto, NAME)
    proto.graph.initializer.append(numpy_helper.from_array(np.ones(HIDDEN, np.float32), "bias"))
    node_named(proto, NAME).input.extend(["", "", "bias"])
    node = ir_node(rewrite(proto, report), NAME)
    assert [value and value.name for value in node.inputs[2:]] == [f"{NAME}.scales", None, "bias"]
    assert "accuracy_level" not in node.attributes


def test_packs_a_shared_weight_once(report: ExportReport) -> None:
    proto = decoder(layers=2)
    for name in (NAME, "layers.1.o"):
        quantise(proto, name)
    node_named(proto, "layers.1.o").input[1:] = node_named(proto, NAME).input[1:]
    model = rewrite(proto, report)
    assert ir_node(model, NAME).inputs[1] is ir_node(model, "layers.1.o").inputs[1]


def test_takes_float16(report: ExportReport) -> None:
    proto = decoder(dtype=FLOAT16)
    quantise(proto, NAME)
    node = ir_node(rewrite(proto, report), NAME)
    assert node.op_type == "FdppFlatGemm"
    assert node.attributes["weight_format"].value == "int4"
    assert node.inputs[2].const_value.dtype == ir.DataType.FLOAT16
    assert report.left == []


def with_attribute(name: str, value: int):
    def edit(_: onnx.ModelProto, node: onnx.NodeProto) -> None:
        kept = [attribute for attribute in node.attribute if attribute.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute(name, value)])

    return edit


def with_input(index: int, values: np.ndarray):
    def edit(proto: onnx.ModelProto, node: onnx.NodeProto) -> None:
        proto.graph.initializer.append(numpy_helper.from_array(values, "other"))
        node.input.extend([""] * (index + 1 - len(node.input)))
        node.input[index] = "other"

    return edit


def weight_from_outside(proto: onnx.ModelProto, node: onnx.NodeProto) -> None:
    node.input[1] = add_input(proto, "outer", 2, [HIDDEN, 4, 8])


def narrow_input(proto: onnx.ModelProto, node: onnx.NodeProto) -> None:
    node.input[0] = add_input(proto, "narrow", FLOAT, ["batch", "tokens", HIDDEN // 2])


REFUSED = {
    "bits": (with_attribute("bits", 2), "its weights have 2 bits, expected 4 or 8"),
    "block size": (
        with_attribute("block_size", 24),
        "block_size is 24, expected 16, 32, 64, 128 or a multiple of 128",
    ),
    "unknown attribute": (with_attribute("weight_prepacked", 1), "attribute weight_prepacked = 1 is not supported"),
    "accuracy level": (with_attribute("accuracy_level", 5), "accuracy_level is 5, expected 0 to 4"),
    "no N": (with_attribute("N", 0), "attribute N or K is missing or not positive"),
    "g_idx": (with_input(4, np.zeros(HIDDEN, np.int32)), "g_idx (other) is not supported"),
    "float zero points": (
        with_input(3, np.ones((HIDDEN, 4), np.float32)),
        "zero_points (other) is float32, expected uint8",
    ),
    "unpacked zero points": (with_input(3, np.ones((HIDDEN, 4), np.uint8)), "zero_points (other) has 256 elements"),
    "scales": (with_input(2, np.ones((HIDDEN, 3), np.float32)), "scales (other) has 192 elements, expected 256"),
    "float64 scales": (with_input(2, np.ones((HIDDEN, 4))), "no kernel multiplies double activations by int4"),
    "bias": (with_input(5, np.ones(HIDDEN + 1, np.float32)), "bias (other) has 65 columns, expected 64"),
    "not constant": (weight_from_outside, "B (outer) is not constant"),
    "columns": (narrow_input, "A (narrow) has 32 columns, expected 64"),
}


@pytest.mark.parametrize(("edit", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_leaves_what_the_kernels_refuse(edit, reason: str, report: ExportReport) -> None:
    proto = decoder()
    quantise(proto, NAME)
    node = node_named(proto, NAME)
    edit(proto, node)
    before = onnx.NodeProto.FromString(node.SerializeToString())
    model = rewrite(proto, report)
    assert [item.node for item in report.left] == [NAME]
    assert report.left[0].op == "com.microsoft::MatMulNBits" and reason in report.left[0].reason
    assert ir.to_proto(ir_node(model, NAME)) == before
    assert report.rewritten["MatMul -> FdppFlatGemm"] == 2


@pytest.mark.parametrize("accuracy_level", [0, 4])
def test_exported_model_gives_the_same_logits(accuracy_level: int, library: str, tmp_path: Path) -> None:
    proto = decoder(layers=2, tied=False)
    products = [node.name for node in proto.graph.node if node.op_type == "MatMul"]
    for index, name in enumerate(products):
        quantise(
            proto, name, block_size=(16, 32, 64)[index % 3], zero_points=index % 2 == 0, accuracy_level=accuracy_level
        )
    source = save_folder(proto, tmp_path / "in")
    report = export_model(source, tmp_path / "out", library=library)
    assert report.rewritten[KIND] == len(products) and report.left == []
    assert report.verification.status == "passed"
    # At level 4 the shapes of a call say whether activations are rounded to int8.
    least = 1 if accuracy_level == 0 else 0.9
    assert all(phase.top1_agreement >= least for phase in report.verification.phases)
    # Packed without a byte more.
    assert report.weight_bytes_after == report.weight_bytes_before
