"""A real model in the spellings of four exporters: all exports give the same tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import torch_models
from transformers import AutoModelForCausalLM

import fdpp_ort
from fdpp_ort.export import export_model
from fdpp_ort.generation import TextCodec

NEW_TOKENS = 64
LAYERS, HEADS, HEAD_SIZE = 30, 3, 64


def by_optimum(model: torch.nn.Module, folder: Path) -> None:
    torch_models.to_onnx(model, folder / "model.onnx", opset=17, position_ids=True, dynamo=False)


def by_optimizer(model: torch.nn.Module, folder: Path) -> None:
    """ONNX Runtime's, of optimum's graph."""
    by_optimum(model, folder)
    torch_models.optimised(folder / "model.onnx", model)
    (folder / "model.onnx").unlink()


def by_torch(model: torch.nn.Module, folder: Path) -> None:
    torch_models.to_onnx(model, folder / "model.onnx", opset=18, position_ids=True)


@pytest.fixture(scope="module")
def prompt(smollm2) -> list[int]:
    return TextCodec(smollm2["original"]).encode_prompt("Explain in simple words why the sky is blue.", raw=False)


def generate(path: Path, prompt: list[int]) -> list[int]:
    """Greedy tokens of the one graph in the folder `path`, whose caches grow."""
    (graph,) = path.glob("*.onnx")
    options = onnxruntime.SessionOptions()
    fdpp_ort.register(options)
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    inputs = [port.name for port in session.get_inputs()]
    outputs = [port.name for port in session.get_outputs()]
    past = {name: np.zeros((1, HEADS, 0, HEAD_SIZE), np.float32) for name in inputs if name.startswith("past")}
    assert len(past) == 2 * LAYERS
    tokens, found = np.array([prompt]), []
    for _ in range(NEW_TOKENS):
        total = len(prompt) + len(found)
        known = {
            "input_ids": tokens,
            "attention_mask": np.ones((1, total), np.int64),
            "position_ids": np.arange(total - tokens.shape[1], total)[None],
        }
        feeds = {name: known[name] for name in inputs if name in known}
        results = dict(zip(outputs, session.run(outputs, feeds | past), strict=True))
        tokens = results["logits"][:, -1:].argmax(axis=-1)
        found.append(int(tokens[0, 0]))
        past = {name: results[name.replace("past_key_values", "present")] for name in past}
    return found


@pytest.fixture(scope="module")
def expected(smollm2, prompt) -> list[int]:
    """Of the graph that onnxruntime-genai's builder wrote, as it is."""
    return generate(smollm2["original"], prompt)


def test_genai_builder(smollm2, prompt, expected) -> None:
    assert len(set(expected)) > 20
    assert generate(smollm2["fdpp"], prompt) == expected


@pytest.mark.parametrize("exporter", [by_optimum, by_optimizer, by_torch])
def test_others(exporter: Callable[[torch.nn.Module, Path], None], smollm2, prompt, expected, tmp_path) -> None:
    model = AutoModelForCausalLM.from_pretrained(smollm2["original"].parent / "transformers", dtype="float32").eval()
    folder = tmp_path / "exported"
    folder.mkdir()
    exporter(model, folder)
    report = export_model(folder, tmp_path / "fdpp", library=fdpp_ort.library_path(), verify=False, max_length=256)
    assert report.left == []
    assert generate(tmp_path / "fdpp", prompt) == expected
