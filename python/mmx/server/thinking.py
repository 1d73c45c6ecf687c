"""One thinking mode out of the many ways in which clients ask for it."""

from __future__ import annotations

from typing import Any, NamedTuple

from mmx.server.errors import clip, invalid
from mmx.server.schemas import ChatRequest, Thinking, TokenizeRequest

MODES = ("disabled", "adaptive", "enabled")
_EFFORTS = {
    "none": "disabled",
    "minimal": "disabled",
    "low": "adaptive",
    "medium": "adaptive",
    "high": "enabled",
    "xhigh": "enabled",
    "max": "enabled",
}
_DEFAULTS = {"m3": "adaptive", "m2": "enabled"}


class ThinkingChoice(NamedTuple):
    """The effective ``mode``, the variables for the template, what the client should know, and how many
    tokens a thought may have."""

    mode: str
    template_kwargs: dict[str, Any]
    warnings: list[str]
    budget: int | None = None


def _mode(value: Any, path: str) -> str:
    if value not in MODES:
        raise invalid(path, f"must be one of {', '.join(MODES)}, got {clip(value)!r}")
    return str(value)


def _switch(value: Any, path: str) -> str:
    if not isinstance(value, bool):
        raise invalid(path, "must be a boolean", "invalid_type")
    return "enabled" if value else "disabled"


def _effort(value: str | float, path: str) -> str:
    if isinstance(value, str):
        if value not in _EFFORTS:
            raise invalid(path, f"must be one of {', '.join(_EFFORTS)}, got {clip(value)!r}")
        return _EFFORTS[value]
    if not 0 <= value <= 1:
        raise invalid(path, f"must be a word or 0 to 1, got {value}")
    return "disabled" if value == 0 else "adaptive" if value <= 0.5 else "enabled"


def _from_kwargs(kwargs: dict[str, Any], path: str) -> list[tuple[str, str]]:
    found = []
    if kwargs.get("thinking_mode") is not None:
        found.append((f"{path}.thinking_mode", _mode(kwargs["thinking_mode"], f"{path}.thinking_mode")))
    for name in ("enable_thinking", "thinking"):
        if kwargs.get(name) is not None:
            found.append((f"{path}.{name}", _switch(kwargs[name], f"{path}.{name}")))
    return found


def _from_thinking(thinking: Thinking | bool) -> list[tuple[str, str]]:
    if isinstance(thinking, bool):
        return [("thinking", _switch(thinking, "thinking"))]
    if thinking.type is not None:
        return [("thinking.type", _mode(thinking.type, "thinking.type"))]
    if thinking.effort is not None:
        return [("thinking.effort", _effort(thinking.effort, "thinking.effort"))]
    return []


def choose(
    request: ChatRequest | TokenizeRequest, default_kwargs: dict[str, Any], family: str | None
) -> ThinkingChoice:
    """The mode by precedence: template kwargs, ``thinking``, ``reasoning``, ``reasoning_effort``,
    ``enable_thinking``, the server's default kwargs, the family's default. Contradictions and wishes that
    the family was not trained for become warnings."""
    kwargs = request.chat_template_kwargs or {}
    found = _from_kwargs(kwargs, "chat_template_kwargs")
    if request.thinking is not None:
        found += _from_thinking(request.thinking)
    reasoning = request.reasoning
    if reasoning is not None:
        if reasoning.enabled is not None:
            found.append(("reasoning.enabled", _switch(reasoning.enabled, "reasoning.enabled")))
        if reasoning.effort is not None:
            found.append(("reasoning.effort", _effort(reasoning.effort, "reasoning.effort")))
    if request.reasoning_effort is not None:
        found.append(("reasoning_effort", _effort(request.reasoning_effort, "reasoning_effort")))
    if request.enable_thinking is not None:
        found.append(("enable_thinking", _switch(request.enable_thinking, "enable_thinking")))

    warnings = [
        f"{name} asks for thinking {mode}, which {found[0][0]} = {found[0][1]} overrides"
        for name, mode in found[1:]
        if mode != found[0][1]
    ]
    defaults = _from_kwargs(default_kwargs, "default_chat_template_kwargs")
    mode = next((mode for _, mode in (*found, *defaults)), _DEFAULTS.get(family or "", "adaptive"))
    if family == "m2" and mode == "adaptive":
        mode = "enabled"
    merged = {**default_kwargs, **kwargs}
    for name in ("thinking_mode", "enable_thinking", "thinking", "thinking_budget"):
        merged.pop(name, None)
    if family is not None:
        merged["thinking_mode"] = mode
    elif found or defaults:
        merged["enable_thinking"] = mode != "disabled"
    return ThinkingChoice(mode, merged, warnings, _budget(request, kwargs))


def _budget(request: ChatRequest | TokenizeRequest, kwargs: dict[str, Any]) -> int | None:
    """The smallest of the budgets that the request gives; below 1 is an error."""
    found: dict[str, Any] = {"chat_template_kwargs.thinking_budget": kwargs.get("thinking_budget")}
    if isinstance(request.thinking, Thinking):
        found["thinking.budget_tokens"] = request.thinking.budget_tokens
    if request.reasoning is not None:
        found["reasoning.max_tokens"] = request.reasoning.max_tokens
    if isinstance(request, ChatRequest):
        found["thinking_token_budget"] = request.thinking_token_budget
    given = {path: value for path, value in found.items() if value is not None}
    for path, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise invalid(path, f"must be at least 1, got {clip(value)}")
    limit = request.max_completion_tokens or request.max_tokens if isinstance(request, ChatRequest) else None
    for path, value in given.items():
        if limit is not None and value >= limit:
            raise invalid(path, f"must be less than the {limit} tokens of the answer, got {clip(value)}")
    return min(given.values(), default=None)
