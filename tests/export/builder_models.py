"""Small random decoders of transformers, made ONNX by onnxruntime-genai's model builder."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import torch_models
from onnxruntime_genai.models import builder
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast


def with_builder(kind: str, folder: Path, precision: str, provider: str, *options: str) -> Path:
    """The folder that the builder writes for the architecture `kind` of torch_models.

    precision, provider, options: as on the builder's command line, where `options` are name=value."""
    checkpoint, out = folder / "checkpoint", folder / "built"
    torch_models.model(kind, "eager").save_pretrained(checkpoint)
    words = {f"<{number}>": number for number in range(torch_models.VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<0>"))
    special = {"eos_token": "<1>", "bos_token": "<2>", "pad_token": "<0>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(checkpoint)
    given = "", str(checkpoint), str(out), precision, provider, str(folder / "cache")
    with contextlib.redirect_stdout(io.StringIO()):
        builder.create_model(*given, **builder.parse_extra_options(*given, list(options)))
    return out
