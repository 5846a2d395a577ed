"""Graphs of onnxruntime-genai's model builder for small random models: what is rewritten, and the same logits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch_models as models
from builder_models import with_builder, with_builder_of_chatglm
from support import Verified

import fdpp_ort
from fdpp_ort.export import ExportReport, export_model, op_spec

_ALL = "windowed_kv_cache=false"  # no cache that is cut to a window
FLOAT32 = ("Llama 2", "Llama 3", "SmolLM2", "Mistral", "Qwen2.5", "Qwen3", "Phi-3", "Phi-3 long", "Gemma 2", "gpt-oss")
INT4 = tuple(model for model in FLOAT32 if model not in ("Phi-3 long", "gpt-oss"))
# Of the others the builder makes no such graph: their embedding is the head's matrix.
QDQ = tuple(model for model in INT4 if model not in ("SmolLM2", "Gemma 2"))
PAIRS = {
    (f"genai builder{form}", model)
    for form, models_ in (("", (*FLOAT32, "ChatGLM2")), (", int4", INT4), (", int4 QDQ", QDQ), (", int8", INT4))
    for model in models_
}


def export(source: Path, library: str) -> ExportReport:
    return export_model(source, source.parent / "out", library=library, overwrite=True)


def assert_exact(report: ExportReport) -> None:
    assert report.left == []
    assert report.verification.status == "passed"
    assert all(phase.relative_error < 1e-5 and phase.top1_agreement == 1 for phase in report.verification.phases)


def attention_inputs(folder: Path) -> list[set[str]]:
    """Names of the optional inputs that each FdppAttention has, past the cache and the lengths."""
    names = op_spec.input_names(op_spec.ATTENTION)
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    nodes = [node for node in graph.node if node.op_type == op_spec.ATTENTION]
    return [{name for name, value in zip(names, node.input, strict=False) if value} - set(names[:7]) for node in nodes]


@pytest.mark.parametrize("model", FLOAT32)
def test_float32(model: str, tmp_path: Path, library: str, verified: Verified) -> None:
    source = with_builder(model, tmp_path, "fp32", "cpu", _ALL)
    report = export(source, library)
    assert report.rewritten["GroupQueryAttention -> FdppAttention"] == models.LAYERS
    assert_exact(report)
    verified("genai builder", model)


def test_chatglm(tmp_path: Path, library: str, verified: Verified) -> None:
    report = export(with_builder_of_chatglm(tmp_path), library)
    assert report.rewritten["GroupQueryAttention -> FdppAttention"] == models.LAYERS
    assert report.rewritten["silu(gate) * up -> silu_mul"] == models.LAYERS
    assert attributes(tmp_path / "out", "FdppAttention", "rotary_interleaved") == [1] * models.LAYERS
    assert_exact(report)
    verified("genai builder", "ChatGLM2")


@pytest.mark.parametrize("model", ["Llama 2", "Qwen3", "Gemma 2", "gpt-oss"])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_for_gpus(model: str, precision: str, tmp_path: Path, library: str) -> None:
    """Without a GPU only what is rewritten."""
    source = with_builder(model, tmp_path, precision, "cuda", _ALL)
    report = export(source, library)
    assert report.rewritten["GroupQueryAttention -> FdppAttention"] == models.LAYERS
    assert report.left == []
    found = attention_inputs(tmp_path / "out")
    rotary = {"cos_cache", "sin_cache"}
    own = {"Qwen3": {"q_norm", "k_norm"}, "gpt-oss": {"head_sink"}}.get(model, set())
    assert found == [rotary | own] * models.LAYERS


def attributes(folder: Path, op: str, name: str) -> list[object]:
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    nodes = [node for node in graph.node if node.op_type == op]
    return [onnx.helper.get_attribute_value(a) for node in nodes for a in node.attribute if a.name == name]


def test_window_and_softcap(tmp_path: Path, library: str) -> None:
    source = with_builder("Gemma 2", tmp_path, "fp32", "cpu", _ALL)
    export(source, library)
    assert attributes(tmp_path / "out", "FdppAttention", "local_window_size") == [6, -1]
    assert attributes(tmp_path / "out", "FdppAttention", "softcap") == [2, 2]


def test_a_cache_cut_to_a_window_is_left(tmp_path: Path, library: str) -> None:
    report = export(with_builder("Gemma 2", tmp_path, "fp32", "cpu"), library)
    assert report.rewritten["GroupQueryAttention -> FdppAttention"] == 1
    assert [left.reason for left in report.left] == ["attribute sliding_window_cache = 1 is not supported"]
    assert report.verification.status == "passed"
    assert all(phase.relative_error < 1e-5 for phase in report.verification.phases)


@pytest.mark.parametrize("block_size", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("symmetric", ["true", "false"])
def test_int4(block_size: int, symmetric: str, tmp_path: Path, library: str) -> None:
    options = f"block_size={block_size}", f"is_symmetric={symmetric}", "accuracy_level=1"
    report = export(with_builder("Llama 2", tmp_path, "int4", "cpu", *options), library)
    assert report.rewritten["MatMulNBits -> FdppFlatGemm"] == 5 * models.LAYERS + 1
    assert_exact(report)
    assert set(attributes(tmp_path / "out", "FdppFlatGemm", "block_size")) == {block_size if block_size <= 128 else 32}


@pytest.mark.parametrize("model", INT4)
@pytest.mark.parametrize(("precision", "block_size"), [("int4", 32), ("int8", 256)])  # int8 in blocks as long as rows
def test_quantised(
    model: str, precision: str, block_size: int, tmp_path: Path, library: str, verified: Verified
) -> None:
    options = f"block_size={block_size}", "accuracy_level=1", _ALL
    report = export(with_builder(model, tmp_path, precision, "cpu", *options), library)
    assert report.rewritten["MatMulNBits -> FdppFlatGemm"] >= 5 * models.LAYERS
    assert report.rewritten["GroupQueryAttention -> FdppAttention"] == models.LAYERS
    assert_exact(report)
    verified(f"genai builder, {precision}", model)


@pytest.mark.parametrize(("model", "symmetric"), [*((model, "true") for model in QDQ), ("Llama 2", "false")])
def test_int4_qdq(model: str, symmetric: str, tmp_path: Path, library: str, verified: Verified) -> None:
    """ONNX Runtime, too, rounds activations to int8 there."""
    options = "use_qdq=true", f"is_symmetric={symmetric}", _ALL
    report = export(with_builder(model, tmp_path, "int4", "cpu", *options), library)
    assert report.rewritten["DequantizeLinear, MatMul -> FdppFlatGemm"] >= 5 * models.LAYERS
    assert report.left == []
    assert report.verification.status == "passed"
    assert all(phase.relative_error < 3e-2 for phase in report.verification.phases)
    verified("genai builder, int4 QDQ", model)


def test_blocks_of_8_bits_are_left(tmp_path: Path, library: str) -> None:
    report = export(with_builder("Llama 2", tmp_path, "int8", "cpu", "block_size=32"), library)
    assert len(report.left) == 5 * models.LAYERS + 1
    assert all(left.reason.startswith("its weights have 8 bits and a scale for each block") for left in report.left)
    assert report.rewritten == {"GroupQueryAttention -> FdppAttention": models.LAYERS}
    assert report.verification.status == "passed"


def test_frequencies_of_long_rows(tmp_path: Path, library: str) -> None:
    """Which of two tables the graph hands to the op follows from the row's length, here beyond the shorter one's 64."""
    source = with_builder("Phi-3 long", tmp_path, "fp32", "cpu", _ALL)
    export(source, library)
    logits = []
    for folder in (source, tmp_path / "out"):
        options = onnxruntime.SessionOptions()
        fdpp_ort.register(options)
        session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
        tokens = np.random.default_rng(0).integers(1, models.VOCABULARY, (1, 90))
        feeds = {"input_ids": tokens, "attention_mask": np.ones_like(tokens), "position_ids": np.arange(90)[None]}
        feeds |= {
            item.name: np.zeros((1, 2, 0, models.HEAD_SIZE), np.float32)
            for item in session.get_inputs()
            if len(item.shape) == 4
        }
        wanted = {item.name for item in session.get_inputs()}
        logits += session.run(["logits"], {name: value for name, value in feeds.items() if name in wanted})
    np.testing.assert_allclose(logits[1], logits[0], rtol=1e-4, atol=1e-5)
