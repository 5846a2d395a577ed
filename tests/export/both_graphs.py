"""A graph before and after its attention was rewritten, run on the same tokens."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime

import fdpp_ort
from fdpp_ort.export.fuse import attention
from fdpp_ort.export.lower import lower
from fdpp_ort.export.normalise import to_grouped_query
from fdpp_ort.export.report import ExportReport

POSITIONS = 64


def rewrite(proto: onnx.ModelProto, report: ExportReport) -> onnx.ModelProto:
    model = ir.from_proto(proto)
    to_grouped_query(model, POSITIONS, report)
    attention.rewrite(model, report)
    lower(model, "lazy")
    return ir.to_proto(model)


def run(proto: onnx.ModelProto) -> list[np.ndarray]:
    """Hidden states of the tokens that are no padding, and caches: of a prompt, three tokens and single ones."""
    options = onnxruntime.SessionOptions()
    fdpp_ort.register(options)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    random, results = np.random.default_rng(0), []
    past = {name: np.zeros((2, 2, 0, 8), np.float32) for name in ("past_key", "past_value")}
    mask = np.zeros((2, 0), np.int64)
    for tokens in (5, 3, 1, 1):
        real = np.ones((2, tokens), np.int64)
        real[1, : 0 if mask.size else 2] = 0
        mask = np.concatenate([mask, real], axis=1)
        feeds = {"input_ids": random.integers(0, 50, (2, tokens)), "attention_mask": mask, **past}
        feeds["encoder"] = np.ones((2, 4, 32), np.float32)
        wanted = {item.name for item in session.get_inputs()}
        hidden, *present = session.run(None, {name: value for name, value in feeds.items() if name in wanted})
        results += [hidden[real.astype(bool)], *present]
        past = dict(zip(past, present, strict=True))
    return results


def assert_same(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    for want, got in zip(run(before), run(after), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
