"""Text generation with plain ONNX Runtime: the KV cache lives in fixed buffers that the graph appends to in place.

    model = load_model("folder", provider="cpu")
    decoder = Decoder(model, batch=1, capacity=512)
    result = generate(decoder, prompt_ids, max_new_tokens=64)

It runs every decoder graph whose attention reads and writes one shared cache buffer: onnxruntime-genai's builder's
(GroupQueryAttention) and fdpp-export's (FdppAttention).
"""

from fdpp_ort.generation.decoder import Decoder
from fdpp_ort.generation.folder import ModelFolder
from fdpp_ort.generation.loop import Generation, Statistics, generate
from fdpp_ort.generation.model import Model, load_model
from fdpp_ort.generation.sampling import Sampler
from fdpp_ort.generation.text import TextCodec

__all__ = [
    "Decoder",
    "Generation",
    "Model",
    "ModelFolder",
    "Sampler",
    "Statistics",
    "TextCodec",
    "generate",
    "load_model",
]
