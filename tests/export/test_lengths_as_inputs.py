"""Graphs whose rows' lengths are inputs of their own, past_seq_len and total_seq_len, as Olive writes them."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
import small_models
import torch_models
from builder_models import with_builder
from onnx_ir.passes.common import RemoveUnusedNodesPass
from spelled_out_models import decoder, with_logits
from support import Verified

from fdpp_ort.export import ExportReport, export_model

PAST, TOTAL = "past_seq_len", "total_seq_len"
EXPORTER = "genai builder, lengths as inputs"
PAIRS = {(EXPORTER, "Llama 2")}


def with_lengths(proto: onnx.ModelProto, past_shape: list[int | str], total_shape: list[int]) -> onnx.ModelProto:
    """`proto`, of genai's builder, with these inputs in the place of attention_mask."""
    model = ir.from_proto(proto)
    lengths = [
        ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.INT32))
        for name, shape in ((PAST, past_shape), (TOTAL, total_shape))
    ]
    for node in model.graph:
        if node.op_type == "GroupQueryAttention":
            for index, value in zip((5, 6), lengths, strict=True):
                node.replace_input_with(index, value)
    RemoveUnusedNodesPass()(model)
    model.graph.inputs.extend(lengths)
    model.graph.inputs.remove(next(value for value in model.graph.inputs if value.name == "attention_mask"))
    return ir.to_proto(model)


def export(proto: onnx.ModelProto, tmp_path: Path, library: str, **options) -> ExportReport:
    onnx.save(proto, tmp_path / "in.onnx")
    return export_model(tmp_path / "in.onnx", tmp_path / "out", library=library, **options)


def assert_verified(report: ExportReport, rows: str) -> None:
    check = report.verification
    assert report.left == []
    assert (check.status, check.rows) == ("passed", rows)
    assert all(phase.relative_error < 1e-5 and phase.top1_agreement == 1 for phase in check.phases)


@pytest.mark.parametrize("total", [(1,), ()])
@pytest.mark.parametrize("past", [(), (1,)])
def test_builder(past: tuple[int, ...], total: tuple[int, ...], tmp_path: Path, library: str) -> None:
    proto = with_lengths(small_models.decoder(layers=2), ["batch", *past], list(total))
    report = export(proto, tmp_path, library)
    assert report.rewritten["GroupQueryAttention -> FdppAttention"] == 2
    assert_verified(report, "prompts of 17, 12 tokens, padded on the right")


def test_model_of_the_builder(tmp_path: Path, library: str, verified: Verified) -> None:
    source = with_builder("Llama 2", tmp_path, "fp32", "cpu")
    report = export(with_lengths(onnx.load(source / "model.onnx"), ["batch", 1], [1]), tmp_path, library)
    assert report.rewritten["GroupQueryAttention -> FdppAttention"] == torch_models.LAYERS
    assert_verified(report, "prompts of 17, 12 tokens, padded on the right")
    verified(EXPORTER, "Llama 2")


def renamed(proto: onnx.ModelProto, names: dict[str, str]) -> onnx.ModelProto:
    model = ir.from_proto(proto)
    for value in model.graph.inputs:
        value.name = names.get(value.name, value.name)
    return ir.to_proto(model)


def test_names_of_the_op_itself(tmp_path: Path, library: str) -> None:
    proto = with_lengths(small_models.decoder(), ["batch"], [])
    report = export(renamed(proto, {PAST: "seqlens_k", TOTAL: "total_sequence_length"}), tmp_path, library)
    assert_verified(report, "prompts of 17, 12 tokens, padded on the right")


def test_a_length_of_unknown_meaning(tmp_path: Path, library: str) -> None:
    proto = with_lengths(small_models.decoder(), ["batch", 1], [1])
    check = export(renamed(proto, {TOTAL: "length"}), tmp_path, library).verification
    assert check.status == "not verified" and "the graph's input length (tensor(int32))" in check.reason


def test_spelled_out(tmp_path: Path, library: str) -> None:
    """Mask and positions follow from the total."""
    proto = decoder(
        ("int64[batch, total] attention_mask,", f"int32[batch, 1] {PAST}, int32[1] {TOTAL},"),
        (
            "total1 = Add(past1, new1)",
            f"""total1 = Cast<to = 7>({TOTAL})
            behind1 = Sub(total1, new1)""",
        ),
        ("past0 = Squeeze(past1)", "past0 = Squeeze(behind1)"),
        ("wide = Unsqueeze(attention_mask, axis12)", ""),
        ("real = Cast<to = 9>(wide)", "real = Less(row, total1)"),
    )
    report = export(with_logits(proto), tmp_path, library, max_length=64)
    assert report.rewritten["GroupQueryAttention -> FdppAttention"] == 1
    assert_verified(report, "prompts of 17, 17 tokens")
