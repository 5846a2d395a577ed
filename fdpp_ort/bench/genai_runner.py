"""onnxruntime-genai: a step is generate_next_token(), its greedy choice included, and reading the token."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from fdpp_ort.bench.spec import Spec
from fdpp_ort.bench.timing import WARM_UP, timed
from fdpp_ort.generation.folder import read_json


class GenaiRunner:
    def __init__(self, spec: Spec):
        import onnxruntime_genai as genai

        self.genai, self.spec = genai, spec
        self.vocabulary = read_json(Path(spec.folder) / "genai_config.json")["model"]["vocab_size"]
        config = genai.Config(spec.folder)
        config.clear_providers()
        if spec.provider == "cuda":
            config.append_provider("cuda")
            config.set_provider_option("cuda", "enable_cuda_graph", str(int(spec.cuda_graph)))
        options = {"intra_op_num_threads": spec.threads} if spec.threads else {}
        # Without an end of text, rows are as long as they are asked to be.
        config.overlay(json.dumps({"model": {"eos_token_id": [], "decoder": {"session_options": options}}}))
        self.model = genai.Model(config)
        self.random = np.random.default_rng(0)

    def decode(self, batch: int, context: int) -> list[float]:
        steps = self.spec.new_tokens
        generator = self._prompted(batch, context - 1, context + WARM_UP + steps)

        def step() -> None:
            generator.generate_next_token()
            generator.get_next_tokens()

        timed(step, WARM_UP)
        return timed(step, steps)

    def prefill(self, batch: int, tokens: int, repeats: int) -> list[float]:
        def prompt() -> None:
            generator = self._prompted(batch, tokens, tokens + 1)
            generator.generate_next_token()
            generator.get_next_tokens()

        timed(prompt, 1)
        return timed(prompt, repeats)

    def _prompted(self, batch: int, tokens: int, length: int):
        parameters = self.genai.GeneratorParams(self.model)
        parameters.set_search_options(do_sample=False, batch_size=batch, max_length=length)
        generator = self.genai.Generator(self.model, parameters)
        generator.append_tokens(self.random.integers(0, self.vocabulary, (batch, tokens)).astype(np.int32))
        return generator
