"""A GGUF file -> a transformers model in float32 and its tokenizer, in a folder.

Usage: gguf_to_transformers.py FILE.gguf OUT
"""

import sys
from pathlib import Path

import torch
import transformers


def convert(gguf: Path, out: Path) -> None:
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    model = transformers.AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    # The weights are float32 by now. What still says that they are quantised keeps transformers from saving them.
    del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    model.save_pretrained(out)
    tokenizer = transformers.AutoTokenizer.from_pretrained(**source)
    if tokenizer.chat_template is None:
        raise SystemExit(f"{gguf}: no chat template came along")
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
