"""A graph in ONNX Runtime, as fdpp-generate runs it. A step is all that greedy generation does for one, from tokens to
the next: its inputs are brought up to date, the graph runs, tokens are chosen and read."""

from __future__ import annotations

import numpy as np

from fdpp_ort.bench.random_cache import random_cache
from fdpp_ort.bench.spec import Spec
from fdpp_ort.bench.timing import WARM_UP, intervals, timed, warm_up
from fdpp_ort.generation.decoder import Decoder
from fdpp_ort.generation.model import load_model


class SessionRunner:
    def __init__(self, spec: Spec):
        self.spec = spec
        self.model = load_model(spec.folder, spec.provider, spec.cuda_graph, spec.threads)
        self.random = np.random.default_rng(0)

    def decode(self, batch: int, context: int) -> list[float]:
        steps = self.spec.new_tokens
        tokens_at_most = context + steps + 1
        # One bucket of just these tokens: the peers' caches have no more room either.
        capacity = min(tokens_at_most, self.model.folder.context_length or tokens_at_most)
        allocate = random_cache(self.model.device)
        decoder = Decoder(self.model, batch, capacity, smallest=capacity, allocate=allocate)
        tokens = self._tokens(batch, 1)

        def between_tokens(count: int) -> list[float]:
            """Seconds, `count` times; fewer times where the model's context ends."""
            decoder.pretend(min(context - 1, capacity - 3))
            return intervals(decoder.greedy(tokens, count + 2))

        warm_up(lambda: between_tokens(WARM_UP))
        seconds: list[float] = []
        while len(seconds) < steps:
            seconds += between_tokens(steps - len(seconds))
        return seconds

    def prefill(self, batch: int, tokens: int, repeats: int) -> list[float]:
        decoder = Decoder(self.model, batch, tokens, smallest=tokens, allocate=random_cache(self.model.device))
        prompt = self._tokens(batch, tokens)
        timed(lambda: decoder.prefill(prompt), 1)
        return timed(lambda: decoder.prefill(prompt), repeats)

    def _tokens(self, batch: int, count: int) -> np.ndarray:
        return self.random.integers(0, self.model.vocabulary, (batch, count))
