"""Hugging Face transformers: as it is, and compiled with a static cache. A step includes its greedy choice."""

from __future__ import annotations

from pathlib import Path

from fdpp_ort.bench.spec import Spec
from fdpp_ort.bench.timing import WARM_UP, timed

_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


def has_weights(folder: str) -> bool:
    """Whether the checkpoint in `folder` is more than a config.json."""
    return any(next(Path(folder).glob(pattern), None) for pattern in _WEIGHTS)


class EagerRunner:
    """Weights of the checkpoint, random ones where the folder has a config.json alone."""

    def __init__(self, spec: Spec):
        import torch
        import transformers

        transformers.logging.set_verbosity_error()
        self.torch, self.transformers, self.spec = torch, transformers, spec
        if spec.threads:
            torch.set_num_threads(spec.threads)
        torch.set_grad_enabled(False)
        dtype = getattr(torch, spec.dtype)
        kind = transformers.AutoModelForCausalLM
        if has_weights(spec.folder):
            model = kind.from_pretrained(spec.folder, dtype=dtype).to(spec.provider)
        else:
            config = transformers.AutoConfig.from_pretrained(spec.folder)
            with torch.device(spec.provider):
                model = kind.from_config(config, dtype=dtype)
        self.model = model.eval()

    def decode(self, batch: int, context: int) -> list[float]:
        self._give_back()
        step = self._stepper(batch, context)
        timed(step, WARM_UP)
        return timed(step, self.spec.new_tokens)

    def prefill(self, batch: int, tokens: int, repeats: int) -> list[float]:
        self._give_back()
        prompt = self._tokens(batch, tokens)

        def run() -> None:
            self._choose(self.model(prompt, use_cache=True, logits_to_keep=1))
            self._wait()

        timed(run, 1)
        return timed(run, repeats)

    def _stepper(self, batch: int, context: int):
        output = self.model(self._tokens(batch, context - 1), use_cache=True, logits_to_keep=1)
        cache, token = output.past_key_values, self._choose(output)

        def step() -> None:
            nonlocal token
            token = self._choose(self.model(token, past_key_values=cache, use_cache=True))
            self._wait()

        return step

    def _tokens(self, batch: int, count: int):
        vocabulary = self.model.config.vocab_size
        return self.torch.randint(0, vocabulary, (batch, count), device=self.spec.provider)

    def _choose(self, output):
        return output.logits[:, -1:].argmax(dim=-1)

    def _give_back(self) -> None:
        """What the last cell had."""
        if self.spec.provider == "cuda":
            self.torch.cuda.empty_cache()

    def _wait(self) -> None:
        if self.spec.provider == "cuda":
            self.torch.cuda.synchronize()


class CompiledRunner(EagerRunner):
    """torch.compile in the mode reduce-overhead, which captures CUDA graphs; compiled anew for each batch and capacity,
    since sizes that may change make slower code. Prompts run as they are."""

    def _stepper(self, batch: int, context: int):
        torch = self.torch
        torch.compiler.reset()
        self._give_back()  # again: the graphs of the last cell are gone only now
        capacity = context + WARM_UP + self.spec.new_tokens
        cache = self.transformers.StaticCache(config=self.model.config, max_cache_len=capacity)
        output = self.model(self._tokens(batch, context - 1), past_key_values=cache, use_cache=True, logits_to_keep=1)
        token = self._choose(output).clone()
        position = torch.tensor([[context - 1]] * batch, device=self.spec.provider)
        forward = torch.compile(self._forward, mode="reduce-overhead", dynamic=False)

        def step() -> None:
            nonlocal token, position
            token = forward(token, position, cache).clone()
            position = position + 1
            self._wait()

        return step

    def _forward(self, token, position, cache):
        return self._choose(self.model(token, position_ids=position, past_key_values=cache, use_cache=True))
