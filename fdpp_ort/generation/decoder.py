"""One batch of sequences moving through a graph: fixed KV buffers, a prompt step and decode steps."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from fdpp_ort.errors import FdppError
from fdpp_ort.generation.model import Model
from fdpp_ort.library import import_onnxruntime

if TYPE_CHECKING:
    import onnxruntime

_NUMPY = {1: np.float32, 10: np.float16, 16: np.uint16}  # bfloat16 has no numpy type; its zeros are uint16's

_NO_CAPTURE = "-1"
_graph_ids = itertools.count(1)  # one a decoder: a session replays what it captured under an id, whatever is bound


class Decoder:
    """Holds the cache, [B, heads, capacity, head_size] for each layer's keys and values, on the model's device. Every
    buffer is bound as past and as present, so the graph appends in place. Made once, used for many prompts.

    With a CUDA graph, decode steps have fixed shapes and addresses: the attention mask is [B, capacity] with ones in
    its first `length` places, so that only its sum, the sequence length, changes from step to step. `fixed_inputs`: so
    they are without one, too. `allocate` makes the buffers of the cache, zeros if left out.
    """

    def __init__(
        self,
        model: Model,
        batch: int,
        capacity: int,
        *,
        fixed_inputs: bool = False,
        allocate: Callable[[tuple[int, ...], int], onnxruntime.OrtValue] | None = None,
    ):
        if batch < 1 or capacity < 1:
            raise FdppError(f"batch is {batch} and capacity {capacity}, expected at least 1 of each")
        limit = model.folder.context_length
        if limit is not None and capacity > limit:
            raise FdppError(f"a capacity of {capacity} tokens is more than the model's context length {limit}")
        self.model = model
        self.batch = batch
        self.capacity = capacity
        self.length = 0  # tokens in the cache
        self._onnxruntime = import_onnxruntime()
        self._graph_id = str(next(_graph_ids))
        allocate = allocate or self._zeros
        self._cache = [
            allocate((batch, cache.heads, capacity, cache.head_size), cache.element_type) for cache in model.caches
        ]
        self._step_logits = self._zeros((batch, 1, model.vocabulary), model.logits_type)
        self._step_binding = self._bind_cache()
        self._step_binding.bind_ortvalue_output(model.logits, self._step_logits)
        self._mask = np.ones((batch, capacity), np.int64)
        self._step_inputs = self._fixed_step_inputs() if model.cuda_graph or fixed_inputs else None

    def _zeros(self, shape: tuple[int, ...], element_type: int):
        value = self._onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, element_type, self.model.device, 0)
        value.update_inplace(np.zeros(shape, _NUMPY[element_type]))
        return value

    def _bind_cache(self):
        binding = self.model.session.io_binding()
        for cache, value in zip(self.model.caches, self._cache, strict=True):
            binding.bind_ortvalue_input(cache.past, value)
            binding.bind_ortvalue_output(cache.present, value)
        return binding

    def _fixed_step_inputs(self) -> dict:
        """Device buffers that a captured graph reads, bound once; each step copies new values into them."""
        shapes = {self.model.input_ids: (self.batch, 1), self.model.attention_mask: (self.batch, self.capacity)}
        if self.model.position_ids is not None:
            shapes[self.model.position_ids] = (self.batch, 1)
        values = {}
        for name, shape in shapes.items():
            zeros = np.zeros(shape, np.int64)
            values[name] = self._onnxruntime.OrtValue.ortvalue_from_numpy(zeros, self.model.device, 0)
            self._step_binding.bind_ortvalue_input(name, values[name])
        return values

    def _values(self, tokens: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
        values = {self.model.input_ids: np.ascontiguousarray(tokens, np.int64), self.model.attention_mask: mask}
        if self.model.position_ids is not None:
            positions = np.arange(self.length, self.length + tokens.shape[1], dtype=np.int64)
            values[self.model.position_ids] = np.tile(positions, (self.batch, 1))
        return values

    def _run(self, binding, graph_id: str) -> None:
        options = self._onnxruntime.RunOptions()
        if self.model.cuda_graph:
            options.add_run_config_entry("gpu_graph_id", graph_id)
        try:
            self.model.session.run_with_iobinding(binding, options)
        except Exception as error:  # ONNX Runtime's exceptions have no common base of their own
            raise FdppError(
                f"{self.model.folder.model_file}: ONNX Runtime failed after {self.length} tokens: {error}"
            ) from error

    def _checked(self, tokens: np.ndarray) -> np.ndarray:
        if tokens.ndim != 2 or tokens.shape[0] != self.batch or tokens.shape[1] == 0:
            raise FdppError(f"tokens have shape {list(tokens.shape)}, expected [{self.batch}, at least 1]")
        if tokens.min() < 0 or tokens.max() >= self.model.vocabulary:
            raise FdppError(
                f"tokens lie in {tokens.min()}..{tokens.max()}, the vocabulary has {self.model.vocabulary} entries"
            )
        if self.length + tokens.shape[1] > self.capacity:
            raise FdppError(
                f"{self.length + tokens.shape[1]} tokens do not fit the KV cache's capacity of {self.capacity}"
            )
        return tokens

    def warm_up(self) -> None:
        """Runs one token: pays what only a first run costs (mapped weights are read in, GPU libraries start)."""
        self.prefill(np.zeros((self.batch, 1), np.int64))

    def prefill(self, tokens: np.ndarray):
        """Starts new sequences with `tokens`, integers [B, S], and runs the graph over them. Returns an OrtValue with
        the logits [B, S, vocabulary] on the device; last_row() reads it."""
        self.length = 0
        tokens = self._checked(tokens)
        mask = np.ones(tokens.shape, np.int64)
        binding = self._bind_cache()  # of its own, so that the prompt's logits are freed with it
        for name, value in self._values(tokens, mask).items():
            binding.bind_cpu_input(name, value)
        binding.bind_output(self.model.logits, self.model.device)
        self._run(binding, _NO_CAPTURE)
        self.length = tokens.shape[1]
        return binding.get_outputs()[-1]

    def pretend(self, length: int) -> None:
        """From now on the first `length` places of the cache count as tokens, whatever they hold: for timing steps."""
        if not 0 <= length <= self.capacity:
            raise FdppError(f"length is {length}, expected 0 to the capacity {self.capacity}")
        self.length = length

    def step(self, tokens: np.ndarray) -> np.ndarray:
        """Appends `tokens`, integers [B, 1], and returns the next logits, float [B, vocabulary]."""
        self.prepare_step(tokens)
        self.run_step()
        return last_row(self._step_logits)

    def prepare_step(self, tokens: np.ndarray) -> None:
        """Binds the inputs of the step that appends `tokens`, integers [B, 1]."""
        tokens = self._checked(tokens)
        total = self.length + 1
        if self._step_inputs is None:
            mask = np.ascontiguousarray(self._mask[:, :total])
            for name, value in self._values(tokens, mask).items():
                self._step_binding.bind_cpu_input(name, value)
        else:
            mask = (np.arange(self.capacity) < total).astype(np.int64)
            for name, value in self._values(tokens, np.tile(mask, (self.batch, 1))).items():
                self._step_inputs[name].update_inplace(value)

    def run_step(self) -> None:
        """Runs the prepared step and waits for the device; its logits stay there."""
        self._run(self._step_binding, self._graph_id)
        self.length += 1


def last_row(logits) -> np.ndarray:
    """The logits of the last position, [B, vocabulary], of an OrtValue [B, S, vocabulary]."""
    return logits.numpy()[:, -1]
