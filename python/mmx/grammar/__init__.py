"""Constrained answers: JSON schemas, regular expressions, grammars and calls in the notations of M2 and M3.

``build`` makes a grammar of what a request asks for (front end); ``sequence.Sequence`` follows one answer and
computes its token masks (engine).
"""

from mmx.grammar.build import MARKERS, MAX_CALLS, TRIGGER, Built, Calls, CallTool, Document, build
from mmx.grammar.errors import SchemaError

__all__ = [
    "MARKERS",
    "MAX_CALLS",
    "TRIGGER",
    "Built",
    "CallTool",
    "Calls",
    "Document",
    "SchemaError",
    "build",
]
