"""The language model head on each row's last token alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper
from small_models import FLOAT, HEAD_SIZE, KV_HEADS, VOCABULARY, decoder, node_named, save_folder

import fdpp_ort
from fdpp_ort.cli.export import main
from fdpp_ort.export import ExportError, ExportReport, export_model

KIND = "logits -> of the last token alone"


def export(proto: onnx.ModelProto, tmp_path: Path, library: str, **options) -> ExportReport:
    options = {"last_logits": True} | options
    return export_model(save_folder(proto, tmp_path / "in"), tmp_path / "out", library=library, **options)


def session(folder: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    fdpp_ort.register(options)
    return onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])


def test_shape_and_verification(tmp_path: Path, library: str) -> None:
    report = export(decoder(layers=2), tmp_path, library)
    check = report.verification
    assert report.rewritten[KIND] == 1 and check.status == "passed"
    assert [(phase.name, phase.tokens) for phase in check.phases] == [("prefill", 2), ("decode", 32)]
    assert all(phase.relative_error < 1e-5 for phase in check.phases)
    # By this onnxruntime-genai knows such a graph.
    assert session(tmp_path / "out").get_outputs()[0].shape == ["batch", 1, VOCABULARY]


@pytest.mark.parametrize(("lengths", "steps"), [([7, 4, 1], [7, 1, 1]), ([5], [5, 3, 1])])
def test_rows_of_different_lengths(lengths: list[int], steps: list[int], tmp_path: Path, library: str) -> None:
    """Padding on the right of a prompt, as onnxruntime-genai has it; then single tokens, and several at once in one
    row, where ONNX Runtime's own attention takes them."""
    assert export(decoder(layers=2), tmp_path, library, verify=False).rewritten[KIND] == 1
    rows, random = len(lengths), np.random.default_rng(2)
    empty = np.zeros((rows, KV_HEADS, 0, HEAD_SIZE), np.float32)
    past = {f"past.{layer}.{part}": empty for layer in range(2) for part in "kv"}
    runs = [session(tmp_path / name) for name in ("in", "out")]
    pasts, mask = [past, past], np.arange(steps[0]) < np.array(lengths)[:, None]
    for step, tokens in enumerate(steps):
        if step:
            mask = np.concatenate([mask, np.ones((rows, tokens), bool)], axis=1)
        feeds = {"input_ids": random.integers(0, VOCABULARY, (rows, tokens)), "attention_mask": mask.astype(np.int64)}
        (want, *first), (got, *second) = (run.run(None, feeds | past) for run, past in zip(runs, pasts, strict=True))
        last = np.full(rows, tokens - 1) if step else np.array(lengths) - 1
        assert got.shape == (rows, 1, VOCABULARY)
        want = want[np.arange(rows), last]
        np.testing.assert_allclose(got[:, 0], want, rtol=1e-5, atol=1e-5, err_msg=f"step {step}")
        pasts = [dict(zip(past, present, strict=True)) for present in (first, second)]


def test_a_scaled_head(tmp_path: Path, library: str) -> None:
    proto = decoder()
    node_named(proto, "lm_head").output[0] = "raw"
    proto.graph.value_info.append(helper.make_tensor_value_info("raw", FLOAT, ["batch", "tokens", VOCABULARY]))
    proto.graph.initializer.append(numpy_helper.from_array(np.array(0.5, np.float32), "half"))
    proto.graph.node.append(helper.make_node("Mul", ["raw", "half"], ["logits"], name="scaled"))
    assert export(proto, tmp_path, library).verification.status == "passed"
    shapes = {value.name: value for value in onnx.load(tmp_path / "out" / "model.onnx").graph.value_info}
    assert shapes["raw"].type.tensor_type.shape.dim[1].dim_value == 1


def test_with_the_other_options(tmp_path: Path, library: str) -> None:
    options = {"weights": "int8", "prefetch": True}
    assert export(decoder(layers=2, packed=False), tmp_path, library, **options).verification.status == "passed"


def no_head(proto: onnx.ModelProto) -> None:
    node_named(proto, "lm_head").output[0] = "raw"
    proto.graph.node.append(helper.make_node("Exp", ["raw"], ["logits"], name="exp"))


def one_token(proto: onnx.ModelProto) -> None:
    proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 1


def read_elsewhere(proto: onnx.ModelProto) -> None:
    node_named(proto, "lm_head").output[0] = "raw"
    proto.graph.node.append(helper.make_node("Tanh", ["raw"], ["logits"], name="tanh"))
    proto.graph.output.append(helper.make_tensor_value_info("raw", FLOAT, None))


REFUSED = {
    "no head": (no_head, "no product makes an output named logits"),
    "one token already": (one_token, r"expected \[batch, tokens, vocabulary\]"),
    "read elsewhere": (read_elsewhere, "others than logits read what the product lm_head makes"),
}


@pytest.mark.parametrize(("edit", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_refuses(edit, reason: str, tmp_path: Path, library: str) -> None:
    proto = decoder()
    edit(proto)
    with pytest.raises(ExportError, match=reason):
        export(proto, tmp_path, library)
    assert not (tmp_path / "out").exists()


def test_not_for_tensorrt(tmp_path: Path, library: str) -> None:
    with pytest.raises(ExportError, match="last_logits is of the target onnxruntime alone"):
        export(decoder(), tmp_path, library, target="tensorrt")


@pytest.mark.parametrize(("option", "found"), [("--last-logits", True), ("--no-last-logits", False)])
def test_option(option: str, found: bool, model_folder: Path, tmp_path: Path) -> None:
    assert main([str(model_folder), str(tmp_path / "out"), "--no-verify", option]) == 0
    nodes = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False).graph.node
    assert ("GatherND" in {node.op_type for node in nodes}) == found
