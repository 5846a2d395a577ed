"""From the rewritten graph to what a runtime loads: the ops' options, and ONNX Runtime's library beside the model."""

from .genai_config import write_genai_config
from .graph import lower
from .library import checked_library

__all__ = ["checked_library", "lower", "write_genai_config"]
