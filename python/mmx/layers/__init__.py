"""Building blocks of the models: modules without device or checkpoint knowledge, built on meta."""

from mmx.layers.attention import Attention
from mmx.layers.batch import ForwardBatch, LayerCache
from mmx.layers.embedding import Embedding
from mmx.layers.linear import Linear
from mmx.layers.mlp import GatedMlp
from mmx.layers.moe import Moe
from mmx.layers.norm import RmsNorm

__all__ = ["Attention", "Embedding", "ForwardBatch", "GatedMlp", "LayerCache", "Linear", "Moe", "RmsNorm"]
