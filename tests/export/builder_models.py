"""Small random decoders of transformers, made ONNX by onnxruntime-genai's model builder."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from types import SimpleNamespace

import onnx_ir as ir
import torch
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


def with_builder_of_chatglm(folder: Path) -> Path:
    """The same for ChatGLM2 in float32; the builder would get its model's code from elsewhere."""
    inner, out = torch_models.model("ChatGLM2"), folder / "built"
    config = SimpleNamespace(
        **vars(inner.config), architectures=["ChatGLMModel"], _name_or_path="", hidden_act="swiglu", rms_norm_eps=1e-5
    )
    out.mkdir()
    with torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
        float32 = ir.DataType.FLOAT
        made = builder.ChatGLMModel(config, float32, float32, "cpu", str(folder / "cache"), {})
        made.load_weights = lambda _: inner
        made.make_model("")
        made.save_model(str(out))
    return out
