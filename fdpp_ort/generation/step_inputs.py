"""What a decode step reads besides the cache, in buffers on the model's device that stay where they are."""

from __future__ import annotations

import itertools

import numpy as np

from fdpp_ort.generation.model import Model
from fdpp_ort.generation.readout import Readout
from fdpp_ort.generation.sampling import refuse_nan
from fdpp_ort.library import import_onnxruntime


class StepInputs:
    """Tokens and positions [B, 1] and attention mask [B, capacity], int64, of the step that comes next. `advance` makes
    them from the last step's, so that a step of greedy generation uploads nothing and reads back B tokens; the mask has
    ones in its first `length + 1` places, so that only its sum, the sequence length, changes from step to step.

    Whoever writes them from the host, with place() or write(), has to see to it that no step is under way."""

    def __init__(self, model: Model, batch: int, capacity: int, logits):
        """`logits`: the OrtValue [B, 1, vocabulary] that steps write."""
        self._model = model
        self._tokens = self._buffer(np.zeros((batch, 1), np.int64))
        self._positions = self._buffer(np.zeros((batch, 1), np.int64))
        self._mask = self._buffer(np.zeros((batch, capacity), np.int64))
        self._known: np.ndarray | None = None  # what the host knows _tokens to hold
        # Two in turn: one is read while the step behind writes the other.
        self._runs = itertools.cycle([self._bind_advance(logits, Readout(model, batch)) for _ in range(2)])
        self._newest: Readout | None = None

    def _buffer(self, values: np.ndarray):
        return import_onnxruntime().OrtValue.ortvalue_from_numpy(values, self._model.device, 0)

    def _bind_advance(self, logits, readout: Readout):
        binding = self._model.advance.io_binding()
        binding.bind_ortvalue_input("logits", logits)
        binding.bind_ortvalue_output("next_tokens", self._tokens)
        for name, value in (("positions", self._positions), ("attention_mask", self._mask)):
            binding.bind_ortvalue_input(name, value)
            binding.bind_ortvalue_output(f"next_{name}", value)
        readout.bind_to(binding, "host_tokens")
        return binding, readout

    def bind_to(self, binding) -> None:
        """Makes them the inputs of a step."""
        binding.bind_ortvalue_input(self._model.input_ids, self._tokens)
        binding.bind_ortvalue_input(self._model.attention_mask, self._mask)
        if self._model.position_ids is not None:
            binding.bind_ortvalue_input(self._model.position_ids, self._positions)

    def place(self, length: int) -> None:
        """The next step appends a token after `length` others."""
        self._positions.update_inplace(np.full(self._positions.shape(), length - 1, np.int64))
        self.advance()

    def advance(self, wait: bool = True) -> Readout:
        """To the step behind the one that ran last, with its likeliest tokens; read() takes what is returned, before
        the next but one. Without `wait` it may still be under way."""
        binding, self._newest = next(self._runs)
        self._model.run(self._model.advance, binding, wait=wait)
        self._newest.mark()
        self._known = None
        return self._newest

    def holds(self, tokens: np.ndarray) -> bool:
        return self._known is not None and np.array_equal(self._known, tokens)

    def write(self, tokens: np.ndarray) -> None:
        """`tokens`, integers [B, 1], in place of the likeliest."""
        self._known = None
        self._tokens.update_inplace(np.ascontiguousarray(tokens, np.int64))

    def read(self, readout: Readout) -> np.ndarray:
        """The likeliest tokens, int64 [B, 1], of one advance(). FdppError: a logit is NaN."""
        tokens = readout.read()
        refuse_nan((tokens < 0).any())
        if readout is self._newest:
            self._known = tokens
        return tokens
