"""One decoding step of an exported decoder in ONNX Runtime, as a CUDA graph."""

from __future__ import annotations

import copy

import onnxruntime
import torch

import fdpp_ort
from common import ort_session

_TYPES = {"tensor(float16)": torch.float16, "tensor(int64)": torch.int64}
_RUNS_BEFORE = 3  # in which kernels are loaded and chosen


def open_session(model: str, stream: torch.cuda.Stream) -> onnxruntime.InferenceSession:
    """Which computes on `stream`."""
    options = onnxruntime.SessionOptions()
    fdpp_ort.register(options)
    provider = {"user_compute_stream": str(stream.cuda_stream)}
    return onnxruntime.InferenceSession(model, options, providers=[("CUDAExecutionProvider", provider)])


class CapturedStep:
    """One token for each of `batch` rows after `context` - 1 others; caches have room for `capacity` tokens."""

    def __init__(
        self, session: onnxruntime.InferenceSession, stream: torch.cuda.Stream, batch: int, context: int, capacity: int
    ):
        self._stream = stream
        sizes = {"batch": batch, "tokens": 1, "total": context, "past": capacity, "present": capacity}
        self._inputs = {port.name: _tensor(port, sizes) for port in session.get_inputs()}
        self._outputs = {
            port.name: self._inputs[port.name.replace("present.", "past.")]
            if port.name.startswith("present.")
            else _tensor(port, sizes)
            for port in session.get_outputs()
        }
        self._session = session
        self._capture()

    def captured_anew(self) -> CapturedStep:
        """The same step over the same tensors with what is chosen now, say by a table that was loaded since."""
        step = copy.copy(self)
        step._capture()
        return step

    def _capture(self) -> None:
        session, stream = self._session, self._stream
        binding, options = ort_session.binding(session, self._inputs, self._outputs), ort_session.run_options()
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            for _ in range(_RUNS_BEFORE):
                session.run_with_iobinding(binding, options)
            stream.synchronize()
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
                session.run_with_iobinding(binding, options)

    def replay(self) -> None:
        """Queues the step."""
        with torch.cuda.stream(self._stream):
            self._graph.replay()

    def replay_times(self, count: int) -> list[float]:
        """Microseconds of each of `count` replays."""
        found = []
        with torch.cuda.stream(self._stream):
            for _ in range(count):
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                self._graph.replay()
                end.record()
                end.synchronize()
                found.append(1e3 * start.elapsed_time(end))
        return found


def _tensor(port, sizes: dict[str, int]) -> torch.Tensor:
    shape = [size if isinstance(size, int) else sizes[size] for size in port.shape]
    if port.name == "attention_mask":
        return torch.ones(shape, dtype=torch.int64, device="cuda")
    if _TYPES[port.type] == torch.int64:
        return torch.randint(0, 1000, shape, device="cuda")
    return torch.randn(shape, dtype=_TYPES[port.type], device="cuda")
