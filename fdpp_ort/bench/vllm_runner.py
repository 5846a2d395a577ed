"""vLLM: a step is what one more token adds to the time of generate()."""

from __future__ import annotations

import random
import time

from fdpp_ort.bench.spec import Spec
from fdpp_ort.bench.timing import timed
from fdpp_ort.bench.torch_runners import has_weights

_REPEATS = 3


class VllmRunner:
    """Weights of the checkpoint, random ones where the folder has a config.json alone."""

    def __init__(self, spec: Spec):
        import vllm

        self.vllm, self.spec = vllm, spec
        self.engine = vllm.LLM(
            model=spec.folder,
            skip_tokenizer_init=True,
            load_format="auto" if has_weights(spec.folder) else "dummy",
            dtype=spec.dtype,
            enforce_eager=not spec.cuda_graph,
            enable_prefix_caching=False,
        )
        self.vocabulary = self.engine.llm_engine.model_config.get_vocab_size()

    def decode(self, batch: int, context: int) -> list[float]:
        steps = self.spec.new_tokens
        self._generate(batch, context - 1, 2)
        found = []
        for _ in range(_REPEATS):
            prompt, all_of_it = (self._generate(batch, context - 1, count) for count in (1, 1 + steps))
            found.append((all_of_it - prompt) / steps)
        return found

    def prefill(self, batch: int, tokens: int, repeats: int) -> list[float]:
        timed(lambda: self._generate(batch, tokens, 1), 1)
        return timed(lambda: self._generate(batch, tokens, 1), repeats)

    def _generate(self, batch: int, tokens: int, new: int) -> float:
        """Its seconds."""
        prompts = [{"prompt_token_ids": random.choices(range(self.vocabulary), k=tokens)} for _ in range(batch)]
        sampling = self.vllm.SamplingParams(temperature=0, max_tokens=new, ignore_eos=True, detokenize=False)
        start = time.perf_counter()
        self.engine.generate(prompts, sampling, use_tqdm=False)
        return time.perf_counter() - start
