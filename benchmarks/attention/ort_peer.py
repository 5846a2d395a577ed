"""ONNX Runtime's GroupQueryAttention node as a candidate: a session of that node alone, caches bound in place.

The session computes on the timer's stream and does not wait at the end of a run, so that a CUDA graph captures it like
any other kernel. Which kernel the node takes, environment variables say; they are read when the session is made.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper

from attention.candidate import Candidate
from attention.operands import Operands, rotary_tables, rotated

KERNELS = {
    "ort": {},
    "ort_xqa": {"ORT_ENABLE_XQA": "1"},
    "ort_flash": {"ORT_ENABLE_XQA": "0", "ORT_ENABLE_CUDNN_FLASH_ATTENTION": "0"},
    "ort_cudnn": {"ORT_ENABLE_XQA": "0", "ORT_ENABLE_CUDNN_FLASH_ATTENTION": "1"},
}
_sessions: dict[tuple, onnxruntime.InferenceSession] = {}


def model(q_heads: int, kv_heads: int, head_size: int, rotary: bool) -> bytes:
    half, i32 = TensorProto.FLOAT16, TensorProto.INT32
    tokens = {"query": q_heads * head_size, "key": kv_heads * head_size, "value": kv_heads * head_size}
    cache = ["B", kv_heads, "L", head_size]
    inputs = [helper.make_tensor_value_info(name, half, ["B", "S", columns]) for name, columns in tokens.items()]
    inputs += [helper.make_tensor_value_info(name, half, cache) for name in ("past_key", "past_value")]
    inputs += [helper.make_tensor_value_info("seqlens_k", i32, ["B"])]
    inputs += [helper.make_tensor_value_info("total_sequence_length", i32, [1])]
    if rotary:
        table = ["P", head_size // 2]
        inputs += [helper.make_tensor_value_info(name, half, table) for name in ("cos_cache", "sin_cache")]
    outputs = [helper.make_tensor_value_info("output", half, ["B", "S", q_heads * head_size])]
    outputs += [helper.make_tensor_value_info(name, half, cache) for name in ("present_key", "present_value")]
    node = helper.make_node(
        "GroupQueryAttention",
        [value.name for value in inputs],
        [value.name for value in outputs],
        domain="com.microsoft",
        num_heads=q_heads,
        kv_num_heads=kv_heads,
        do_rotary=int(rotary),
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph([node], "attention", inputs, outputs)
    made = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.checker.check_model(made)
    return made.SerializeToString()


@contextlib.contextmanager
def environment(variables: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def session(kernel: str, problem: tuple[int, int, int, bool], stream: int) -> onnxruntime.InferenceSession:
    """One for all batches and contexts of a problem (Hq, Hkv, D, rotary)."""
    key = (kernel, problem, stream)
    if key not in _sessions:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        provider = {"user_compute_stream": str(stream), "arena_extend_strategy": "kSameAsRequested"}
        with environment(KERNELS[kernel]):
            made = onnxruntime.InferenceSession(
                model(*problem), options, providers=[("CUDAExecutionProvider", provider)]
            )
        if "CUDAExecutionProvider" not in made.get_providers():
            raise RuntimeError("onnxruntime cannot load its CUDA provider")
        _sessions[key] = made
    return _sessions[key]


def candidate(operands: Operands, kernel: str, stream: torch.cuda.Stream, *, rotary: bool = False) -> Candidate:
    case, query = operands.case, operands.query
    b, s = case.batch, case.queries
    of_kernel = session(kernel, (case.q_heads, case.kv_heads, case.head_size, rotary), stream.cuda_stream)
    common = {
        "query": query.view(b, s, -1),
        "key": operands.key.view(b, s, -1),
        "value": operands.value.view(b, s, -1),
        "seqlens_k": torch.full((b,), case.context - 1, dtype=torch.int32, device=query.device),
    }
    scored, new_key = query, operands.key
    if rotary:
        cos, sin = rotary_tables(case.context, case.head_size, query.device)
        common |= {"cos_cache": cos, "sin_cache": sin}
        scored, new_key = (rotated(x, cos, sin, case.context - s) for x in (query, operands.key))
    output = torch.full_like(common["query"], float("nan"))
    total = np.array([case.context], dtype=np.int32)
    run_options = onnxruntime.RunOptions()
    run_options.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def binding(key: torch.Tensor, value: torch.Tensor) -> onnxruntime.IOBinding:
        made = of_kernel.io_binding()
        for name, tensor in {**common, "past_key": key, "past_value": value}.items():
            made.bind_input(name, *_place(tensor))
        made.bind_cpu_input("total_sequence_length", total)
        for name, tensor in {"output": output, "present_key": key, "present_value": value}.items():
            made.bind_output(name, *_place(tensor))
        return made

    bindings = [binding(key, value) for key, value in operands.caches]

    def run(index: int) -> torch.Tensor:
        of_kernel.run_with_iobinding(bindings[index], run_options)
        return output

    # The bindings know addresses alone.
    return Candidate(operands, run, query=scored, new_key=new_key, keeps=(common, total))


def _place(tensor: torch.Tensor) -> tuple:
    kind = np.float16 if tensor.dtype == torch.float16 else np.int32
    return tensor.device.type, tensor.device.index or 0, kind, list(tensor.shape), tensor.data_ptr()
