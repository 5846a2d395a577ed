"""One batch of sequences moving through a graph: KV buffers that grow by doubling, a prompt step and decode steps."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from fdpp_ort.errors import FdppError
from fdpp_ort.generation.model import Model
from fdpp_ort.generation.readout import Readout
from fdpp_ort.generation.sampling import likeliest
from fdpp_ort.generation.step_inputs import StepInputs
from fdpp_ort.library import import_onnxruntime

if TYPE_CHECKING:
    import onnxruntime

SMALLEST_BUCKET = 256  # tokens; of Llama2-7B in float16 they take 128 MiB a row
_NUMPY = {1: np.float32, 10: np.float16, 16: np.uint16}  # bfloat16 has no numpy type; its zeros are uint16's
_graph_ids = itertools.count(1)  # one a decoder and bucket: a session replays what it captured under an id


class Decoder:
    """Holds the cache, [B, heads, bucket, head_size] for each layer's keys and values, on the model's device. Every
    buffer is bound as past and as present, so the graph appends in place. Made once, used for many prompts.

    `bucket` is `smallest`, doubled as often as the tokens need, and at most `capacity`. A full cache is copied into the
    next bucket, and with a CUDA graph the next step is captured anew. A bucket stays for the prompts that follow: a
    captured step takes a short sequence the same time in a large one.

    On CUDA, or with `fixed_inputs`, decode steps have fixed shapes and addresses (StepInputs), and greedy() queues a
    step ahead; otherwise a step's mask is as long as its sequence. `allocate` makes the buffers of the cache, zeros if
    left out.
    """

    def __init__(
        self,
        model: Model,
        batch: int,
        capacity: int,
        *,
        smallest: int = SMALLEST_BUCKET,
        fixed_inputs: bool = False,
        allocate: Callable[[tuple[int, ...], int], onnxruntime.OrtValue] | None = None,
    ):
        if batch < 1 or capacity < 1 or smallest < 1:
            raise FdppError(
                f"batch is {batch}, capacity {capacity} and smallest {smallest}, expected at least 1 of each"
            )
        limit = model.folder.context_length
        if limit is not None and capacity > limit:
            raise FdppError(f"a capacity of {capacity} tokens is more than the model's context length {limit}")
        self.model = model
        self.batch = batch
        self.capacity = capacity
        self.length = 0  # tokens in the cache
        self.bucket = 0  # tokens that the buffers have room for
        self._smallest = smallest
        self._fixed_inputs = fixed_inputs or model.device == "cuda"
        self._runs_ahead = fixed_inputs or model.queues
        self._onnxruntime = import_onnxruntime()
        self._allocate = allocate or self._zeros
        self._logits = self._zeros((batch, 1, model.vocabulary), model.logits_type)
        self._cache: list[onnxruntime.OrtValue] = []
        self._inputs: StepInputs | None = None
        # Steps that were queued and do not count yet, the oldest first, each with what it leaves for the host.
        self._queued: deque[Readout | None] = deque()
        self._settled = True  # nothing is queued, and the inputs are those of the step behind `length` tokens
        self._turn = object()  # a new one whenever another call takes the sequence on

    def _empty(self, shape: tuple[int, ...], element_type: int):
        return self._onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, element_type, self.model.device, 0)

    def _zeros(self, shape: tuple[int, ...], element_type: int):
        value = self._empty(shape, element_type)
        value.update_inplace(np.zeros(shape, _NUMPY[element_type]))
        return value

    def _enter_bucket(self, tokens: int, keep: bool = False) -> None:
        """Makes room for `tokens` tokens where there is less. `keep`: with what the cache holds."""
        if tokens <= self.bucket:
            return
        bucket = self._smallest
        while bucket < tokens:
            bucket *= 2
        bucket = min(bucket, self.capacity)
        self.bucket, self._step_binding = 0, None  # the binding would hold the old buffers
        old = self._cache if keep else []
        self._cache = []
        for cache in self.model.caches:
            shape = (self.batch, cache.heads, bucket, cache.head_size)
            # One at a time, so that never all are there twice.
            grow = partial(self._extended, old.pop(0)) if old else self._allocate
            self._cache.append(grow(shape, cache.element_type))
        self.bucket = bucket
        self._graph_id = str(next(_graph_ids))
        self._step_binding = self._bind_cache()
        self._step_binding.bind_ortvalue_output(self.model.logits, self._logits)
        if self._fixed_inputs:
            self._inputs = StepInputs(self.model, self.batch, bucket, self._logits)
            self._inputs.bind_to(self._step_binding)

    def _extended(self, old, shape: tuple[int, ...], element_type: int):
        """A buffer of `shape` that holds `old`'s tokens, then zeros. To the graph that copies it is float32 whatever it
        is, in rows of one head's tokens."""
        new = self._empty(shape, element_type)
        rows, width = shape[0] * shape[1], shape[3] * np.dtype(_NUMPY[element_type]).itemsize // 4
        short, long = [rows, old.shape()[2] * width], [rows, shape[2] * width]
        binding = self.model.extend.io_binding()
        binding.bind_input("short", self.model.device, 0, np.float32, short, old.data_ptr())
        binding.bind_cpu_input("pads", np.array([0, 0, 0, long[1] - short[1]], np.int64))
        binding.bind_output("long", self.model.device, 0, np.float32, long, new.data_ptr())
        self.model.run(self.model.extend, binding)
        return new

    def _bind_cache(self):
        binding = self.model.session.io_binding()
        for cache, value in zip(self.model.caches, self._cache, strict=True):
            binding.bind_ortvalue_input(cache.past, value)
            binding.bind_ortvalue_output(cache.present, value)
        return binding

    def _bind_values(self, binding, tokens: np.ndarray) -> None:
        """Inputs of the host, with a mask as long as the sequence will be."""
        total = self.length + tokens.shape[1]
        binding.bind_cpu_input(self.model.input_ids, np.ascontiguousarray(tokens, np.int64))
        binding.bind_cpu_input(self.model.attention_mask, np.ones((self.batch, total), np.int64))
        if self.model.position_ids is not None:
            positions = np.arange(self.length, total, dtype=np.int64)
            binding.bind_cpu_input(self.model.position_ids, np.tile(positions, (self.batch, 1)))

    def _check(self, tokens: np.ndarray) -> None:
        if tokens.ndim != 2 or tokens.shape[0] != self.batch or tokens.shape[1] == 0:
            raise FdppError(f"tokens have shape {list(tokens.shape)}, expected [{self.batch}, at least 1]")
        if tokens.min() < 0 or tokens.max() >= self.model.vocabulary:
            raise FdppError(
                f"tokens lie in {tokens.min()}..{tokens.max()}, the vocabulary has {self.model.vocabulary} entries"
            )

    def _check_room(self, count: int) -> None:
        if self.length + count > self.capacity:
            raise FdppError(f"{self.length + count} tokens do not fit the KV cache's capacity of {self.capacity}")

    def warm_up(self, length: int = 1) -> None:
        """Runs one token and the step after `length` of them: pays what only first runs cost (mapped weights are read
        in, GPU libraries start, the step is captured)."""
        token = np.zeros((self.batch, 1), np.int64)
        self._enter_bucket(min(length + 1, self.capacity))
        self.prefill(token)
        if length < self.capacity:
            self.pretend(length)
            self.step(token)

    def prefill(self, tokens: np.ndarray):
        """Starts new sequences with `tokens`, integers [B, S], and runs the graph over them. Returns an OrtValue with
        the logits [B, S, vocabulary] on the device; last_row() reads it."""
        self._take_over()
        self.length = 0
        self._check(tokens)
        count = tokens.shape[1]
        self._check_room(count)
        self._enter_bucket(min(count + 1, self.capacity))
        binding = self._bind_cache()  # of its own, so that the prompt's logits are freed with it
        self._bind_values(binding, tokens)
        binding.bind_output(self.model.logits, self.model.device)
        self.model.run(self.model.session, binding)
        self._place(count)
        return binding.get_outputs()[-1]

    def pretend(self, length: int) -> None:
        """From now on the first `length` places of the cache count as tokens, whatever they hold: for timing steps."""
        if not 0 <= length <= self.capacity:
            raise FdppError(f"length is {length}, expected 0 to the capacity {self.capacity}")
        self._take_over()
        self._enter_bucket(min(length + 1, self.capacity))
        self._place(length)

    def _place(self, length: int) -> None:
        self.length = length
        if self._inputs is not None:
            self._inputs.place(length)

    def _take_over(self) -> object:
        """Ends what an iterator of greedy() has begun; returns what tells whether another call has taken over since."""
        self._settle()
        self._turn = object()
        return self._turn

    def _settle(self) -> None:
        """Undoes the steps that were queued and do not count: what they appended lies behind the sequence."""
        if not self._settled:
            self.model.wait()
            self._queued.clear()
            self._place(self.length)
            self._settled = True

    def step(self, tokens: np.ndarray) -> np.ndarray:
        """Appends `tokens`, integers [B, 1], and returns the next logits, float [B, vocabulary]."""
        self._take_over()
        self._prepare(tokens)
        self._queue(wait=True)
        self._count()
        return last_row(self._logits)

    def greedy(self, tokens: np.ndarray, steps: int | None = None) -> Iterator[np.ndarray]:
        """Appends `tokens`, integers [B, 1], and yields the likeliest next ones, int64 [B, 1]; then appends those, and
        so on: for `steps` steps, or until the cache is full. With fixed inputs tokens are chosen on the device, where
        the step behind finds them: it is queued before they are read, and counts in `length` once its own are yielded.
        So the iterator may be left at any token, for a prefill(), step() or greedy() from there.
        FdppError: no room for a first step, a logit is NaN, or another call has taken the sequence on since."""
        turn = self._take_over()
        self._check_room(1)
        room = self.capacity - self.length
        try:
            for behind in reversed(range(room if steps is None else min(steps, room))):
                if turn is not self._turn:
                    raise FdppError("another call has taken the sequence on, and these greedy steps cannot go on")
                if not self._queued:
                    self._prepare(tokens)
                    self._queue()
                if behind and self._runs_ahead and self.length + 1 < self.bucket:
                    self._queue()
                tokens = self._likeliest(self._count())
                yield tokens.copy()  # the caller's
        finally:
            if turn is self._turn and not self._settled:
                self.model.wait()  # the buffers may be freed now; the next call settles the rest

    def _prepare(self, tokens: np.ndarray) -> None:
        """`tokens` are what the next step appends. None is queued."""
        self._check_room(1)
        if self.length == self.bucket:
            self._enter_bucket(self.length + 1, keep=True)
            self._place(self.length)
        if self._inputs is None:
            self._check(tokens)
            self._bind_values(self._step_binding, tokens)
        elif not self._inputs.holds(tokens):
            self._check(tokens)
            self._inputs.write(tokens)

    def _queue(self, wait: bool = False) -> None:
        """A step, behind which the inputs of the next are made."""
        self._settled = False
        self.model.run(self.model.session, self._step_binding, self._graph_id, wait=self._inputs is None)
        self._queued.append(None if self._inputs is None else self._inputs.advance(wait))

    def _count(self) -> Readout | None:
        """From now on the oldest step that was queued counts."""
        self.length += 1
        readout = self._queued.popleft()
        self._settled = not self._queued
        return readout

    def _likeliest(self, readout: Readout | None) -> np.ndarray:
        return likeliest(last_row(self._logits))[:, None] if readout is None else self._inputs.read(readout)


def last_row(logits) -> np.ndarray:
    """The logits of the last position, [B, vocabulary], of an OrtValue [B, S, vocabulary]."""
    return logits.numpy()[:, -1]
