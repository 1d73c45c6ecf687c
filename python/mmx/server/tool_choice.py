"""Which calls an answer may or must hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from mmx.grammar import MAX_CALLS, Calls, CallTool
from mmx.grammar.build import Family
from mmx.server.errors import ApiError, clip, invalid
from mmx.server.schemas import ChatRequest, Tool

Mode = Literal["none", "auto", "required"]


class ToolChoice(NamedTuple):
    """``tools``: positions of the callable ones; ``most`` calls in one answer."""

    mode: Mode
    tools: list[int]
    most: int


def choose_tools(chat: ChatRequest) -> ToolChoice:
    """``tool_choice`` and ``parallel_tool_calls`` of a request; 400 names what is wrong."""
    tools, choice = chat.tools or [], chat.tool_choice
    most = 1 if chat.parallel_tool_calls is False else MAX_CALLS
    everything = list(range(len(tools)))
    if choice is None or choice in ("auto", "none"):
        mode: Mode = "none" if choice == "none" else "auto"
        return ToolChoice(mode, everything, most)
    if not isinstance(choice, dict) and choice != "required":
        raise invalid("tool_choice", "must be auto, none, required or a function")
    if not tools:
        raise ApiError("missing_required_parameter", "tool_choice needs tools", "tools")
    if choice == "required":
        return ToolChoice("required", everything, most)
    assert isinstance(choice, dict)
    if choice.get("type") == "allowed_tools":
        return _allowed(choice.get("allowed_tools", choice), tools, most)
    name = _name_of(choice)
    position = _position(name, tools)
    return ToolChoice("required", [position], most if chat.parallel_tool_calls else 1)


def _allowed(given: Any, tools: list[Tool], most: int) -> ToolChoice:
    listed = given.get("tools") if isinstance(given, dict) else None
    mode = given.get("mode", "auto") if isinstance(given, dict) else None
    if mode not in ("auto", "required") or not isinstance(listed, list) or not listed:
        text = "tool_choice.allowed_tools must have a mode, auto or required, and a list of tools"
        raise ApiError("invalid_value", text, "tool_choice")
    positions = sorted({_position(_name_of(item), tools) for item in listed})
    return ToolChoice(mode, positions, most)


def _name_of(choice: Any) -> str:
    function = choice.get("function", choice) if isinstance(choice, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or choice.get("type", "function") != "function":
        raise invalid("tool_choice", "must name a function")
    return name


def _position(name: str, tools: list[Tool]) -> int:
    for i, tool in enumerate(tools):
        if tool.function.name == name:
            return i
    raise invalid("tool_choice", f"names {clip(name)!r}, which is not in tools", "unknown_tool")


def enforced_calls(
    chat: ChatRequest, choice: ToolChoice, family: Family, marker_ids: Mapping[str, int]
) -> Calls | None:
    """The calls that a grammar has to rule; None where the model is free. A tool is held to its schema if
    it is strict, or if a call is required."""
    tools = chat.tools or []
    subset = len(choice.tools) < len(tools)
    strict = any(tools[i].function.strict for i in choice.tools)
    if not choice.tools or choice.mode == "none":
        return None
    if choice.mode == "auto" and not strict and not subset and choice.most > 1:
        return None
    described = [
        CallTool(
            tools[i].function.name,
            tools[i].function.parameters,
            choice.mode == "required" or bool(tools[i].function.strict),
            f"tools[{i}].function.parameters",
        )
        for i in choice.tools
    ]
    return Calls(family, described, choice.most, marker_ids)
