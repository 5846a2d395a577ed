"""Graphs of torch.onnx and transformers, exported and run beside the original in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnxruntime
import pytest
import torch_models as models
from support import Verified

import fdpp_ort
from fdpp_ort.export import ExportError, export_model
from fdpp_ort.export.normalise.attention import multi_head_attention, spelled_out, standard_attention

Graph = Callable[[str, Path], Path]


def torch_onnx(opset: int, attention: str = "sdpa", **options: bool) -> Graph:
    def make(model: str, folder: Path) -> Path:
        inner = models.model(model, attention)
        return models.to_onnx(inner, folder / "decoder.onnx", opset=opset, **({"position_ids": False} | options))

    return make


def transformers(fusions: str | None = None) -> Graph:
    return lambda model, folder: models.with_transformers(models.model(model), folder / "transformers", fusions)


def optimum(attention: str = "sdpa", position_ids: bool = True) -> Graph:
    return torch_onnx(17, attention, position_ids=position_ids, dynamo=False)


def onnx_runtime(position_ids: bool = True) -> Graph:
    def make(model: str, folder: Path) -> Path:
        return models.optimised(optimum(position_ids=position_ids)(model, folder), models.model(model))

    return make


OPTIMIZER = "optimum, ONNX Runtime's optimizer"
# By exporter and model: the spelling that each is to match, and the graph. Tracing for today's exporter takes ten times
# as long as for optimum's.
GRAPHS: dict[tuple[str, str], tuple[ModuleType, Graph]] = {
    ("torch.onnx, opset 18", "Llama 3"): (spelled_out, torch_onnx(18, position_ids=True)),
    ("torch.onnx, opset 18", "GLM"): (spelled_out, torch_onnx(18)),
    ("torch.onnx, opset 18", "ChatGLM2"): (spelled_out, torch_onnx(18, position_ids=True)),
    ("torch.onnx, opset 23", "Qwen2.5"): (standard_attention, torch_onnx(23, position_ids=True)),
    ("torch.onnx, opset 23", "OPT"): (standard_attention, torch_onnx(23)),
    ("transformers", "Llama 2"): (spelled_out, transformers()),
    ("transformers, fused", "Llama 2"): (multi_head_attention, transformers("cuda")),
    ("optimum", "Llama 2"): (spelled_out, optimum()),
    ("optimum", "Llama 3"): (spelled_out, optimum()),
    ("optimum", "SmolLM2"): (spelled_out, optimum()),
    ("optimum", "Mistral"): (spelled_out, optimum()),
    ("optimum", "Qwen2.5"): (spelled_out, optimum(position_ids=False)),
    ("optimum", "Qwen3"): (spelled_out, optimum()),
    ("optimum", "Phi-3"): (spelled_out, optimum()),
    ("optimum", "Gemma 2"): (spelled_out, optimum("eager", position_ids=False)),
    ("optimum", "Gemma 3"): (spelled_out, optimum()),
    ("optimum", "ChatGLM2"): (spelled_out, optimum()),
    ("optimum", "gpt-oss"): (spelled_out, optimum("eager")),
    ("optimum", "OPT"): (spelled_out, optimum(position_ids=False)),
    **{(OPTIMIZER, model): (spelled_out, onnx_runtime()) for model in ("Llama 2", "Llama 3", "Qwen3", "Phi-3")},
    (OPTIMIZER, "Qwen2.5"): (spelled_out, onnx_runtime(position_ids=False)),
    (OPTIMIZER, "OPT"): (spelled_out, onnx_runtime(position_ids=False)),
}


@pytest.mark.filterwarnings("ignore")  # of torch's tracer
@pytest.mark.parametrize("pair", GRAPHS, ids=", ".join)
def test_same_logits(pair: tuple[str, str], tmp_path: Path, library: str, verified: Verified) -> None:
    (exporter, model), (dialect, make) = pair, GRAPHS[pair]
    source = make(model, tmp_path)
    report = export_model(source, tmp_path / "out", library=library, max_length=256)
    assert report.rewritten[f"{dialect.NAME} -> GroupQueryAttention"] == models.LAYERS
    assert report.rewritten["GroupQueryAttention -> FdppAttention"] == models.LAYERS
    assert report.verification.status == "passed"
    # Two rows, the second with padding.
    assert report.verification.rows == "prompts of 17, 12 tokens, padded on the left"
    assert [phase.tokens for phase in report.verification.phases] == [17 + 12, 32]
    experts = 2 * models.LAYERS if model == "gpt-oss" else 0
    assert [left.reason.endswith("is not constant") for left in report.left] == [True] * experts
    norms = sum(count for kind, count in report.rewritten.items() if kind.startswith("RMS norm"))
    assert norms >= (0 if model == "OPT" or exporter in (OPTIMIZER, "transformers, fused") else 2 * models.LAYERS + 1)
    packed = ("Q, K, V -> one product", "parts of one tensor -> packed input of FdppAttention")
    if model in ("Llama 2", "Qwen2.5", "Qwen3", "Phi-3", "ChatGLM2", "OPT"):
        assert sum(report.rewritten.get(kind, 0) for kind in packed) == models.LAYERS
        assert report.rewritten.get("norms of heads -> FdppAttention", 0) == (model == "Qwen3") * models.LAYERS
        assert report.rewritten.get("silu(gate) * up -> silu_mul", 0) == (model != "OPT") * models.LAYERS
    for phase in report.verification.phases:
        assert phase.relative_error < 1e-5 and phase.top1_agreement == 1

    original = source if source.suffix == ".onnx" else source / "model.onnx"
    exported = onnx.load(tmp_path / "out" / "model.onnx")
    before = onnx.load(original, load_external_data=False)
    for side in ("input", "output"):
        names = [[value.name for value in getattr(model.graph, side)] for model in (before, exported)]
        assert names[0] == names[1]
    ops = {node.op_type for node in exported.graph.node}
    gone = {"Softmax", "Attention", "RotaryEmbedding", "Cos", "Sin", "Range", "GatherND", "ReduceMean"}
    assert not ops & gone - ({"Softmax"} if experts else set())  # that of the router

    want = run_padded(session(original))
    exported = session(tmp_path / "out" / "model.onnx")
    for got in (run_padded(exported), run_padded(exported, room=32)):
        for step, (a, b) in enumerate(zip(want, got, strict=True)):
            np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-5, err_msg=f"step {step}")
    verified(exporter, model)


@pytest.mark.filterwarnings("ignore")
def test_latent_caches_are_left(tmp_path: Path, library: str) -> None:
    source = optimum("eager")("DeepSeek-V3", tmp_path)
    with pytest.raises(
        ExportError, match="no attention was rewritten: .*: its keys or values are not past and new ones"
    ):
        export_model(source, tmp_path / "out", library=library, max_length=256)


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    fdpp_ort.register(options)
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run_padded(decoder: onnxruntime.InferenceSession, room: int = 0) -> list[np.ndarray]:
    """Logits of the tokens that are no padding, of a prompt, three tokens at once and four single ones.

    The second row has three tokens of padding on the left. room: tokens that the caches have room for; 0: they grow."""
    random = np.random.default_rng(0)
    # What is not in use may hold anything.
    past = {
        item.name: np.full((2, int(item.shape[1]), room, int(item.shape[3])), 7, np.float32)
        for item in decoder.get_inputs()
        if len(item.shape) == 4
    }
    presents = [output.name for output in decoder.get_outputs() if output.name != "logits"]
    mask, results = np.zeros((2, 0), np.int64), []
    for tokens in (9, 3, 1, 1, 1, 1):
        real = np.ones((2, tokens), np.int64)
        if not mask.size:
            real[1, :3] = 0
        mask = np.concatenate([mask, real], axis=1)
        feeds = {
            "input_ids": random.integers(1, models.VOCABULARY, (2, tokens)),
            "attention_mask": mask,
            "position_ids": np.maximum(mask.cumsum(axis=1) - 1, 0)[:, -tokens:],
            **past,
        }
        wanted = {item.name for item in decoder.get_inputs()}
        logits, *present = decoder.run(["logits", *presents], {k: v for k, v in feeds.items() if k in wanted})
        results.append(logits[real.astype(bool)])
        past = dict(zip(past, present, strict=True))
    return results
