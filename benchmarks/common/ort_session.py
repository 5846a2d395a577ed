"""ONNX Runtime as a candidate: a session of one node, whose tensors are bound where they lie.

The session computes on the timer's stream and does not wait at the end of a run, so that a CUDA graph captures it like
any other kernel.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper

OPSETS = (("", 17), ("com.microsoft", 1))
_TYPES = {torch.float16: TensorProto.FLOAT16, torch.int32: TensorProto.INT32, torch.uint8: TensorProto.UINT8}
_NUMPY = {torch.float16: np.float16, torch.int32: np.int32, torch.int64: np.int64, torch.uint8: np.uint8}
Port = tuple[str, torch.dtype, list]  # name, element type, shape (numbers and names)


def one_node(node: onnx.NodeProto, inputs: list[Port], outputs: list[Port]) -> bytes:
    """The model of a node alone."""

    def values(ports: list[Port]) -> list:
        return [helper.make_tensor_value_info(name, _TYPES[dtype], shape) for name, dtype, shape in ports]

    graph = helper.make_graph([node], "one_node", values(inputs), values(outputs))
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid(*opset) for opset in OPSETS], ir_version=10)
    onnx.checker.check_model(made)
    return made.SerializeToString()


def cuda_session(model: bytes, stream: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    provider = {"user_compute_stream": str(stream), "arena_extend_strategy": "kSameAsRequested"}
    made = onnxruntime.InferenceSession(model, options, providers=[("CUDAExecutionProvider", provider)])
    if "CUDAExecutionProvider" not in made.get_providers():
        raise RuntimeError("onnxruntime cannot load its CUDA provider")
    return made


def run_options() -> onnxruntime.RunOptions:
    """Runs return once all is queued."""
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    return options


def binding(
    session: onnxruntime.InferenceSession, inputs: dict[str, torch.Tensor], outputs: dict[str, torch.Tensor]
) -> onnxruntime.IOBinding:
    """It knows addresses alone: the tensors must live as long as it does."""
    made = session.io_binding()
    for name, tensor in inputs.items():
        made.bind_input(name, *_place(tensor))
    for name, tensor in outputs.items():
        made.bind_output(name, *_place(tensor))
    return made


def _place(tensor: torch.Tensor) -> tuple:
    return (
        tensor.device.type,
        tensor.device.index or 0,
        _NUMPY[tensor.dtype],
        list(tensor.shape),
        tensor.data_ptr(),
    )
