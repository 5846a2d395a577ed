"""What a run on the device leaves for the host."""

from __future__ import annotations

import numpy as np

from fdpp_ort.generation.model import Model, gpu_failures
from fdpp_ort.library import core


class Readout:
    """int64 [rows, 1] in host memory that a run writes, for the host to read without waiting for the runs behind it: on
    a model's stream the kernel itself writes there. Without one runs wait, and ONNX Runtime copies where it has to."""

    def __init__(self, model: Model, rows: int):
        self._stream = model.stream
        shape = (rows, 1)
        if self._stream is None:
            self._values = np.zeros(shape, np.int64)
        else:
            with gpu_failures():
                self._mailbox = core().HostMailbox(self._stream, rows * np.dtype(np.int64).itemsize)
            self._values = np.frombuffer(self._mailbox, np.int64).reshape(shape)

    def bind_to(self, binding, output: str) -> None:
        """Makes it an output of a run."""
        device, address = ("cpu", self._values.ctypes.data) if self._stream is None else ("cuda", self._mailbox.address)
        binding.bind_output(output, device, 0, np.int64, list(self._values.shape), address)

    def mark(self) -> None:
        """The run to read is the one queued last."""
        if self._stream is not None:
            with gpu_failures():
                self._mailbox.mark(self._stream)

    def read(self) -> np.ndarray:
        """What that run wrote; waits for it. FdppError: the GPU failed."""
        if self._stream is not None:
            with gpu_failures():
                self._mailbox.wait()
        return self._values.copy()
