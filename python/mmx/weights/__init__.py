"""From checkpoint files to parameters: reading, naming rules, strict loading, random weights."""

from mmx.weights.dummy import fill_random
from mmx.weights.load import load_weights
from mmx.weights.stream import Checkpoint

__all__ = ["Checkpoint", "fill_random", "load_weights"]
