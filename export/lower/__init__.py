"""From the rewritten graph to what a runtime loads: the ops' options, ONNX Runtime's library beside the model, what
TensorRT's parser takes and the shapes that its engines are built for."""

from .capacity import CACHES, state_caches
from .genai_config import write_genai_config
from .graph import lower
from .into_products import into_products
from .last_logits import keep_last_logits
from .library import checked_library
from .next_weight import hint_next_weights
from .profiles import PROFILES_FILE, engine_limits, write_profiles
from .tensorrt import lower_for_tensorrt

__all__ = [
    "CACHES",
    "PROFILES_FILE",
    "checked_library",
    "engine_limits",
    "hint_next_weights",
    "into_products",
    "keep_last_logits",
    "lower",
    "lower_for_tensorrt",
    "state_caches",
    "write_genai_config",
    "write_profiles",
]
