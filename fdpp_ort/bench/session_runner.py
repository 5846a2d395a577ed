"""A graph in ONNX Runtime, with all of a step's tensors bound where they lie."""

from __future__ import annotations

import numpy as np

from fdpp_ort.bench.random_cache import random_cache
from fdpp_ort.bench.spec import Spec
from fdpp_ort.bench.timing import WARM_UP, timed
from fdpp_ort.generation.decoder import Decoder
from fdpp_ort.generation.model import load_model


class SessionRunner:
    """A step begins with its token and lengths on the device and ends with the logits there."""

    def __init__(self, spec: Spec):
        self.spec = spec
        self.model = load_model(spec.folder, spec.provider, spec.cuda_graph, spec.threads)
        self.random = np.random.default_rng(0)

    def decode(self, batch: int, context: int) -> list[float]:
        steps = self.spec.new_tokens
        limit = self.model.folder.context_length or context + steps
        capacity, allocate = min(context + steps, limit), random_cache(self.model.device)
        on_gpu = self.model.device == "cuda"
        decoder = Decoder(self.model, batch, capacity, fixed_inputs=on_gpu, allocate=allocate)

        def prepare() -> None:
            if decoder.length == decoder.capacity:
                decoder.pretend(context - 1)
            decoder.prepare_step(self._tokens(batch, 1))

        decoder.pretend(context - 1)
        timed(decoder.run_step, WARM_UP, prepare)
        decoder.pretend(context - 1)
        return timed(decoder.run_step, steps, prepare)

    def prefill(self, batch: int, tokens: int, repeats: int) -> list[float]:
        decoder = Decoder(self.model, batch, tokens, allocate=random_cache(self.model.device))
        prompt = self._tokens(batch, tokens)
        timed(lambda: decoder.prefill(prompt), 1)
        return timed(lambda: decoder.prefill(prompt), repeats)

    def _tokens(self, batch: int, count: int) -> np.ndarray:
        return self.random.integers(0, self.model.vocabulary, (batch, count))
