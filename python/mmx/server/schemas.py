"""The requests clients send, as typed structures.

null equals absent for every optional field. What a field means and which values it may have is checked
by its user (``sampling``, ``prompts``, ``thinking``); here stand names and types.
"""

from __future__ import annotations

from typing import Any

import msgspec


class StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class Part(msgspec.Struct, frozen=True):
    """One element of a content list; only ``text`` parts have a meaning for text models."""

    type: str
    text: str | None = None


class FunctionCall(msgspec.Struct, frozen=True):
    """``arguments`` is the JSON text of an object, or the object itself."""

    name: str
    arguments: str | dict[str, Any] | None = None


class ToolCall(msgspec.Struct, frozen=True):
    function: FunctionCall
    id: str | None = None
    type: str | None = None
    index: int | None = None


class Message(msgspec.Struct, frozen=True):
    role: str
    content: str | list[Part | str] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    reasoning_details: list[dict[str, Any]] | None = None
    prefix: bool | None = None
    refusal: str | None = None
    annotations: list[Any] | None = None
    audio: dict[str, Any] | None = None
    function_call: dict[str, Any] | None = None
    current_date: str | None = None
    current_location: str | None = None


class Function(msgspec.Struct, frozen=True):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


NO_FUNCTION = Function(name="")


class Tool(msgspec.Struct, frozen=True):
    """``function`` is required, but of another ``type`` than function none is expected."""

    type: str
    function: Function = NO_FUNCTION


class Thinking(msgspec.Struct, frozen=True):
    type: str | None = None
    budget_tokens: int | None = None
    effort: str | None = None


class ReasoningOptions(msgspec.Struct, frozen=True):
    effort: str | float | None = None
    enabled: bool | None = None
    summary: str | None = None
    max_tokens: int | None = None


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """Fields of everything that generates in OpenAI's form."""

    model: str | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    cache_salt: str | None = None
    request_id: str | None = None
    timeout: float | None = None
    priority: float | None = None
    # Accepted for their senders' sake: nothing in one server depends on them.
    user: str | None = None
    safety_identifier: str | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None


class Generate(Sampling, frozen=True, kw_only=True):
    """Fields that chat and plain completions share."""

    stream_options: StreamOptions | None = None
    stream_interval: int | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    n: int | None = None
    best_of: int | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    logit_bias: dict[str, float] | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    truncate_prompt_tokens: int | None = None
    truncation_side: str | None = None
    extra_key: str | None = None
    rid: str | None = None
    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    regex: str | None = None
    ebnf: str | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    prompt_logprobs: int | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    use_beam_search: bool | None = None
    # Accepted like those of ``Sampling``.
    store: bool | None = None
    session_id: str | None = None
    conversation_params: dict[str, Any] | None = None


class ChatRequest(Generate, frozen=True, kw_only=True):
    messages: list[Message]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[Tool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | float | None = None
    reasoning: ReasoningOptions | None = None
    thinking: Thinking | bool | None = None
    thinking_token_budget: int | None = None
    enable_thinking: bool | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    include_reasoning: bool | None = None
    reasoning_split: bool | None = None
    separate_reasoning: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    documents: list[dict[str, Any]] | None = None
    prompt_token_ids: list[int] | None = None
    input_ids: list[int] | None = None
    return_prompt_text: bool | None = None
    modalities: list[str] | None = None
    verbosity: str | None = None


class CompletionRequest(Generate, frozen=True, kw_only=True):
    prompt: str | list[Any]
    logprobs: int | None = None
    echo: bool | None = None
    add_special_tokens: bool | None = None


class TokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Either ``prompt`` or ``messages``."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    tools: list[Tool] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    thinking: Thinking | bool | None = None
    reasoning: ReasoningOptions | None = None
    reasoning_effort: str | float | None = None
    enable_thinking: bool | None = None


class DetokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    model: str | None = None
    tokens: list[int]


# Documented fields whose feature is not part of this server, with the reason a client is told.
NOT_BUILT = "this server does not offer it"
REFUSED: dict[str, str] = {
    "stream_reasoning": NOT_BUILT,
    "mm_processor_kwargs": "the model reads text only",
    "media_io_kwargs": "the model reads text only",
    "kv_transfer_params": NOT_BUILT,
    "disaggregated_params": NOT_BUILT,
    "return_token_times": NOT_BUILT,
}
REFUSED_IN_CHAT: dict[str, str] = {
    **REFUSED,
    "echo": "chat answers do not repeat the prompt",
    "functions": "use tools",
    "function_call": "use tool_choice",
    "prediction": NOT_BUILT,
    "audio": "the model reads and writes text only",
    "web_search_options": NOT_BUILT,
    "add_special_tokens": "the chat template writes all special tokens",
}
REFUSED_IN_COMPLETIONS: dict[str, str] = {
    **REFUSED,
    "suffix": "the model was not trained to fill in the middle",
}
# Refusing the value that means "off" would break clients that spell out their defaults.
HARMLESS: dict[str, tuple[Any, ...]] = {
    "stream_reasoning": (True,),
    "echo": (False,),
    "add_special_tokens": (False,),
    "return_token_times": (False,),
    "suffix": ("",),
    "mm_processor_kwargs": ({},),
    "mcp_servers": ([],),
    "context_management": (
        {"edits": []},
        {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    ),
}
