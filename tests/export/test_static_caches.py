"""Caches of a fixed size, into which new tokens are written: TensorScatter of opset 24, StaticCache of transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch_models as models
from both_graphs import rewrite
from spelled_out_models import with_logits, with_room, written
from support import Verified

import fdpp_ort
from fdpp_ort.export import export_model
from fdpp_ort.export.report import ExportReport

STATIC = "torch.onnx, opset 24, StaticCache"
PAIRS = {(STATIC, "Qwen2.5")}


def session(graph: Path | bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    fdpp_ort.register(options)
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def run(proto: onnx.ModelProto) -> list[np.ndarray]:
    """Hidden states and slots in use of a prompt, three tokens and single ones; the second row has two tokens more."""
    decoder, random = session(proto.SerializeToString()), np.random.default_rng(0)
    caches = [random.standard_normal((2, 2, 16, 8), np.float32) for _ in "kv"]
    first, results = np.array([0, 2]), []
    for tokens in (5, 3, 1, 1):
        feeds = {"input_ids": random.integers(0, 50, (2, tokens)), "write_indices": first}
        hidden, *caches = decoder.run(None, feeds | dict(zip(("past_key", "past_value"), caches, strict=True)))
        first = first + tokens
        results += [hidden, *(cache[row, :, :used] for cache in caches for row, used in enumerate(first))]
    return results


@pytest.mark.parametrize("room", [16, "room"])
def test_tensor_scatter(room: int | str, report: ExportReport) -> None:
    before = with_room(written(), room)
    after = rewrite(before, report)
    assert report.left == []
    assert report.rewritten == {"Attention -> GroupQueryAttention": 1, "GroupQueryAttention -> FdppAttention": 1}
    assert not {"TensorScatter", "Attention"} & {node.op_type for node in after.graph.node}
    for want, got in zip(run(before), run(after), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("room", "lengths"), [(16 + 9, "9, 4"), (64, "17, 12"), ("room", "17, 12")])
def test_verification_of_tensor_scatter(room: int | str, lengths: str, tmp_path: Path, library: str) -> None:
    """The shorter row ends with padding; what is written there is overwritten by the next tokens."""
    onnx.save(with_logits(with_room(written(), room)), tmp_path / "in.onnx")
    check = export_model(tmp_path / "in.onnx", tmp_path / "out", library=library).verification
    assert (check.status, check.rows) == ("passed", f"prompts of {lengths} tokens, padded on the right")
    assert all(phase.relative_error < 1e-5 for phase in check.phases)
    assert all(output.relative_error < 1e-5 for output in check.outputs)


def test_calibration(tmp_path: Path, library: str) -> None:
    """Its rows are as long as the caches."""
    onnx.save(with_logits(with_room(written(), 64)), tmp_path / "in.onnx")
    np.savez(tmp_path / "tokens.npz", np.random.default_rng(0).integers(0, 32, 300))
    options = {"library": library, "calibrate": tmp_path / "tokens.npz"}
    report = export_model(tmp_path / "in.onnx", tmp_path / "out", **options)
    assert (report.calibration.tokens, report.calibration.row_tokens) == (4 * 64, 64)
    assert report.verification.status == "passed"


def test_too_little_room_for_verification(tmp_path: Path, library: str) -> None:
    onnx.save(with_logits(written()), tmp_path / "in.onnx")
    check = export_model(tmp_path / "in.onnx", tmp_path / "out", library=library).verification
    assert (check.status, check.reason) == ("not verified", "its caches have room for 16 tokens alone")


IN_USE = ("(q, present_key, present_value, , , , in_use)", "(q, present_key, present_value)")
LEFT = {
    "causal from the first slot on": ("what its nodes compute is not what GroupQueryAttention computes", (IN_USE,)),
    "not causal": (
        "it has no mask: a query sees later tokens",
        (("is_causal = 1, ", ""),),
    ),
    "in a circle": (
        "its caches begin anew when they are full",
        tuple(
            (f"present_{name} = TensorScatter<axis", f'present_{name} = TensorScatter<mode = "circular", axis')
            for name in ("key", "value")
        ),
    ),
    "always in front": (
        "its keys or values are not past and new ones",
        tuple((f"({x}, {new}, write_indices)", f"({x}, {new})") for x, new in (("past_key", "k"), ("past_value", "v"))),
    ),
}


@pytest.mark.parametrize("case", LEFT)
def test_is_left(case: str, report: ExportReport) -> None:
    reason, changes = LEFT[case]
    before = written(*changes)
    after = rewrite(before, report)
    assert report.rewritten == {}
    (left,) = report.left
    assert left.op == "Attention" and reason in left.reason
    assert {"TensorScatter", "Attention"} <= {node.op_type for node in after.graph.node}
    for want, got in zip(run(before), run(after), strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.filterwarnings("ignore")  # of torch's tracer
def test_static_cache(tmp_path: Path, library: str, verified: Verified) -> None:
    source = models.with_static_cache(models.model("Qwen2.5"), tmp_path / "decoder.onnx", opset=24)
    report = export_model(source, tmp_path / "out", library=library)
    assert report.rewritten["Attention -> GroupQueryAttention"] == models.LAYERS
    assert report.rewritten["GroupQueryAttention -> FdppAttention"] == models.LAYERS
    assert report.left == []
    check = report.verification
    assert (check.status, check.rows) == ("passed", "prompts of 16, 11 tokens, padded on the left")
    assert all(phase.relative_error < 1e-5 for phase in check.phases)
    exported = tmp_path / "out" / "model.onnx"
    ops = {node.op_type for node in onnx.load(exported).graph.node}
    assert not ops & {"ScatterND", "Attention", "Cos", "Sin", "GatherND"}
    for want, got in zip(run_static(session(source)), run_static(session(exported)), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    verified(STATIC, "Qwen2.5")


def run_static(decoder: onnxruntime.InferenceSession) -> list[np.ndarray]:
    """Logits of the tokens that are no padding, of two rows; the second one begins with three tokens of padding."""
    random = np.random.default_rng(0)
    outputs = [item.name for item in decoder.get_outputs()]
    shapes = {item.name: item.shape for item in decoder.get_inputs() if len(item.shape) == 4}
    past = {name: random.standard_normal((2, *shape[1:]), np.float32) for name, shape in shapes.items()}
    mask, results, total = np.zeros((2, models.ROOM), np.int64), [], 0
    for tokens in (9, 3, 1, 1):
        positions = np.arange(total, total + tokens)
        mask[:, positions] = 1
        mask[1, :3] = 0
        total += tokens
        feeds = {"input_ids": random.integers(1, 96, (2, tokens)), "attention_mask": mask, "cache_position": positions}
        logits, *present = decoder.run(outputs, feeds | past)
        results.append(logits[mask[:, positions].astype(bool)])
        past = {name.replace("present", "past_key_values"): v for name, v in zip(outputs[1:], present, strict=True)}
    return results
