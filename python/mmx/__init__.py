"""mmx: the inference engine for MiniMax M2.5, M2.7 and M3."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mmx.config import SamplingParams

if TYPE_CHECKING:
    from mmx.llm import LLM

__version__ = "0.1.0"
__all__ = ["LLM", "SamplingParams", "__version__"]


def __getattr__(name: str) -> Any:
    # Why: the server and the tools import mmx without paying for torch.
    if name == "LLM":
        from mmx.llm import LLM

        return LLM
    raise AttributeError(f"module 'mmx' has no attribute {name!r}")
