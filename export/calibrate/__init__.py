"""Calibration of the unified softmax: runs the exported graph over the user's text, looks at the scores of each head,
picks phi and says which layers had better not use it."""

from .calibration import calibrate_phi
from .findings import Calibration, HeadScores, LayerScores
from .tokens import read_tokens

__all__ = ["Calibration", "HeadScores", "LayerScores", "calibrate_phi", "read_tokens"]
