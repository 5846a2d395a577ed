"""A graph in ONNX Runtime, as fdpp-generate runs it. A step is all that greedy generation does for one: its inputs are
brought up to date, the graph runs, tokens are chosen and read."""

from __future__ import annotations

import numpy as np

from fdpp_ort.bench.random_cache import random_cache
from fdpp_ort.bench.spec import Spec
from fdpp_ort.bench.timing import timed, warm_up
from fdpp_ort.generation.decoder import Decoder
from fdpp_ort.generation.model import load_model


class SessionRunner:
    def __init__(self, spec: Spec):
        self.spec = spec
        self.model = load_model(spec.folder, spec.provider, spec.cuda_graph, spec.threads)
        self.random = np.random.default_rng(0)

    def decode(self, batch: int, context: int) -> list[float]:
        steps = self.spec.new_tokens
        limit = self.model.folder.context_length or context + steps
        # One bucket of just these tokens: the peers' caches have no more room either.
        capacity = min(context + steps, limit)
        allocate = random_cache(self.model.device)
        decoder = Decoder(self.model, batch, capacity, smallest=capacity, allocate=allocate)
        tokens = self._tokens(batch, 1)

        def make_room() -> None:
            if decoder.length == decoder.capacity:
                decoder.pretend(context - 1)

        def step() -> None:
            nonlocal tokens
            tokens = decoder.greedy_step(tokens)

        decoder.pretend(context - 1)
        warm_up(step, make_room)
        decoder.pretend(context - 1)
        return timed(step, steps, make_room)

    def prefill(self, batch: int, tokens: int, repeats: int) -> list[float]:
        decoder = Decoder(self.model, batch, tokens, smallest=tokens, allocate=random_cache(self.model.device))
        prompt = self._tokens(batch, tokens)
        timed(lambda: decoder.prefill(prompt), 1)
        return timed(lambda: decoder.prefill(prompt), repeats)

    def _tokens(self, batch: int, count: int) -> np.ndarray:
        return self.random.integers(0, self.model.vocabulary, (batch, count))
