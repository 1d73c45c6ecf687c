"""Every row of the error table that this server can produce: status, code, param and a tame text."""

from __future__ import annotations

from typing import Any

from server.helpers import ScriptedEngine, check_error, serving

USER = [{"role": "user", "content": "hi"}]
ARGUMENTS = "messages[1].tool_calls[0].function.arguments"
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
NOTHING: dict[str, Any] = {}


def strict(parameters: dict[str, Any]) -> dict[str, Any]:
    """A strict tool."""
    return {"type": "function", "function": {"name": "f", "strict": True, "parameters": parameters}}


def asked(arguments: str) -> dict[str, Any]:
    """A turn of the assistant that calls a function."""
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


CHAT_ERRORS: list[tuple[dict[str, Any], tuple[int, str, str | None]]] = [
    ({"messages": None}, (400, "invalid_type", "messages")),
    ({"messages": []}, (400, "empty_array", "messages")),
    ({"messages": [{"content": "x"}]}, (400, "missing_required_parameter", "messages[0].role")),
    ({"messages": [{"role": "user", "content": 5}]}, (400, "invalid_type", "messages[0].content")),
    ({"messages": [{"role": "king", "content": "x"}]}, (400, "invalid_value", "messages[0].role")),
    (
        {"messages": [{"role": "user", "content": [{"type": "smell"}]}]},
        (400, "invalid_value", "messages[0].content[0].type"),
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        (400, "media_not_supported", "messages[0].content[0]"),
    ),
    ({"messages": [*USER, {"role": "tool", "content": "x"}]}, (400, "tool_call_mismatch", "messages[1]")),
    (
        {"messages": [*USER, asked("{}"), {"role": "tool", "content": "x", "tool_call_id": "c2"}]},
        (400, "tool_call_mismatch", "messages[2]"),
    ),
    ({"model": "nobody"}, (404, "model_not_found", "model")),
    ({"model": 3}, (400, "invalid_type", "model")),
    ({"max_tokens": 0}, (400, "invalid_value", "max_tokens")),
    ({"max_tokens": "5"}, (400, "invalid_type", "max_tokens")),
    ({"max_tokens": 1.5}, (400, "invalid_type", "max_tokens")),
    ({"max_completion_tokens": 0}, (400, "invalid_value", "max_completion_tokens")),
    ({"max_tokens": 4096}, (400, "context_length_exceeded", "max_tokens")),
    ({"max_completion_tokens": 10**30}, (400, "context_length_exceeded", "max_completion_tokens")),
    (
        {"messages": [{"role": "user", "content": "word " * 9000}]},
        (400, "context_length_exceeded", "messages"),
    ),
    ({"min_tokens": -1}, (400, "invalid_value", "min_tokens")),
    ({"min_tokens": 9, "max_tokens": 3}, (400, "invalid_value", "min_tokens")),
    ({"temperature": 2.5}, (400, "invalid_value", "temperature")),
    ({"temperature": "hot"}, (400, "invalid_type", "temperature")),
    ({"top_p": 0}, (400, "invalid_value", "top_p")),
    ({"top_k": -2}, (400, "invalid_value", "top_k")),
    ({"repetition_penalty": 1e-320}, (400, "invalid_value", "repetition_penalty")),
    ({"top_k": 2**31}, (400, "invalid_value", "top_k")),
    ({"top_k": 10**30}, (400, "invalid_value", "top_k")),
    ({"min_p": 1.1}, (400, "invalid_value", "min_p")),
    ({"frequency_penalty": 3}, (400, "invalid_value", "frequency_penalty")),
    ({"presence_penalty": -3}, (400, "invalid_value", "presence_penalty")),
    ({"repetition_penalty": 0}, (400, "invalid_value", "repetition_penalty")),
    ({"seed": 2**63}, (400, "invalid_value", "seed")),
    ({"n": 0}, (400, "invalid_value", "n")),
    ({"n": 129}, (400, "invalid_value", "n")),
    ({"n": 2, "temperature": 0}, (400, "unsupported_combination", "n")),
    ({"stop": ""}, (400, "invalid_value", "stop")),
    ({"stop": ["x"] * 17}, (400, "invalid_value", "stop")),
    ({"stop": [3]}, (400, "invalid_type", "stop[0]")),
    ({"stop_token_ids": [10**9]}, (400, "invalid_value", "stop_token_ids")),
    ({"top_logprobs": 2}, (400, "invalid_value", "top_logprobs")),
    ({"logprobs": True, "top_logprobs": 21}, (400, "invalid_value", "top_logprobs")),
    ({"logit_bias": {"x": 1}}, (400, "invalid_value", "logit_bias")),
    ({"logit_bias": {"999999": 1}}, (400, "invalid_value", "logit_bias")),
    ({"logit_bias": {"1": 101}}, (400, "invalid_value", "logit_bias")),
    ({"logit_bias": {"1" * 5000: 1}}, (400, "invalid_value", "logit_bias")),
    ({"stream_options": {"include_usage": True}}, (400, "invalid_value", "stream_options")),
    ({"stream": True, "stream_interval": 0}, (400, "invalid_value", "stream_interval")),
    ({"prompt_logprobs": 21}, (400, "invalid_value", "prompt_logprobs")),
    ({"prompt_logprobs": 1, "stream": True}, (400, "unsupported_combination", "prompt_logprobs")),
    ({"response_format": {"type": "structural_tag"}}, (400, "unsupported_parameter", "response_format")),
    (
        {"response_format": {"type": "json_schema"}},
        (400, "missing_required_parameter", "response_format.json_schema"),
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"not": {}}}}},
        (400, "unsupported_schema", "response_format.json_schema.schema.not"),
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "text"}}}},
        (400, "invalid_schema", "response_format.json_schema.schema.type"),
    ),
    ({"response_format": {"type": "poem"}}, (400, "invalid_value", "response_format.type")),
    ({"response_format": {"type": {}}}, (400, "invalid_type", "response_format.type")),
    ({"structured_outputs": {"regex": "(?=a)b"}}, (400, "unsupported_schema", "structured_outputs.regex")),
    ({"structured_outputs": {"regex": "[a"}}, (400, "invalid_grammar", "structured_outputs.regex")),
    ({"guided_regex": "a(b"}, (400, "invalid_grammar", "guided_regex")),
    ({"guided_grammar": "start: /(/"}, (400, "invalid_grammar", "guided_grammar")),
    ({"structured_outputs": {"tree": "a"}}, (400, "unsupported_parameter", "structured_outputs.tree")),
    ({"structured_outputs": {"choice": []}}, (400, "invalid_type", "structured_outputs.choice")),
    ({"guided_json": "{"}, (400, "invalid_schema", "guided_json")),
    ({"guided_json": "[" * 100_000}, (400, "invalid_schema", "guided_json")),
    ({"guided_json": "[" * 101 + "]" * 101}, (400, "invalid_schema", "guided_json")),
    ({"guided_json": '{"const": "\\ud800"}'}, (400, "invalid_schema", "guided_json")),
    ({"guided_grammar": "start: ("}, (400, "invalid_grammar", "guided_grammar")),
    ({"guided_regex": "a", "guided_choice": ["b"]}, (400, "unsupported_combination", "guided_choice")),
    ({"guided_regex": "a", "ignore_eos": True}, (400, "unsupported_combination", "ignore_eos")),
    ({"guided_regex": "a", "min_tokens": 3}, (400, "unsupported_combination", "min_tokens")),
    ({"allowed_token_ids": []}, (400, "invalid_value", "allowed_token_ids")),
    ({"allowed_token_ids": [10**9]}, (400, "invalid_value", "allowed_token_ids")),
    ({"bad_words": [""]}, (400, "invalid_value", "bad_words")),
    ({"bad_words": ["x" * 1001]}, (400, "invalid_value", "bad_words")),
    ({"messages": [*USER, asked('{"a":' + "[" * 500 + "]" * 500 + "}")]}, (400, "invalid_value", ARGUMENTS)),
    ({"messages": [*USER, asked('{"a": "\\ud800"}')]}, (400, "invalid_value", ARGUMENTS)),
    ({"messages": [*USER, asked('{"a": 1e400}')]}, (400, "invalid_value", ARGUMENTS)),
    ({"tools": [{"type": "web_search"}]}, (400, "unsupported_tool_type", "tools[0].type")),
    ({"tools": [{"type": "function"}]}, (400, "missing_required_parameter", "tools[0].function")),
    ({"tools": [TOOL, TOOL]}, (400, "invalid_value", "tools[1].function.name")),
    (
        {"tools": [{"type": "function", "function": {"name": "a b"}}]},
        (400, "invalid_value", "tools[0].function.name"),
    ),
    (
        {"tools": [{"type": "web", "function": {"name": "a"}}]},
        (400, "unsupported_tool_type", "tools[0].type"),
    ),
    (
        {"tools": [TOOL], "tool_choice": "required", "response_format": {"type": "json_object"}},
        (400, "unsupported_combination", "response_format"),
    ),
    (
        {"tools": [strict({"type": "object", "properties": {"a": {"not": {}}}})]},
        (400, "unsupported_schema", "tools[0].function.parameters.properties.a.not"),
    ),
    ({"tools": [strict({"type": "array"})]}, (400, "invalid_schema", "tools[0].function.parameters")),
    ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools"}}, (400, "invalid_value", "tool_choice")),
    ({"tool_choice": "required"}, (400, "missing_required_parameter", "tools")),
    ({"tool_choice": "sometimes"}, (400, "invalid_value", "tool_choice")),
    (
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}},
        (400, "unknown_tool", "tool_choice"),
    ),
    (
        {"add_generation_prompt": True, "continue_final_message": True},
        (400, "unsupported_combination", "continue_final_message"),
    ),
    ({"continue_final_message": True}, (400, "invalid_value", "continue_final_message")),
    ({"chat_template": "{{ x }}"}, (400, "chat_template_not_allowed", "chat_template")),
    ({"thinking": {"type": "deep"}}, (400, "invalid_value", "thinking.type")),
    ({"thinking": {"budget_tokens": 0}}, (400, "invalid_value", "thinking.budget_tokens")),
    ({"thinking": {"budget_tokens": 5}, "max_tokens": 5}, (400, "invalid_value", "thinking.budget_tokens")),
    ({"reasoning_effort": "heroic"}, (400, "invalid_value", "reasoning_effort")),
    ({"thinking_token_budget": -1}, (400, "invalid_value", "thinking_token_budget")),
    ({"cache_salt": ""}, (400, "invalid_value", "cache_salt")),
    ({"cache_salt": "x" * 129}, (400, "invalid_value", "cache_salt")),
    ({"request_id": "a\nb"}, (400, "invalid_value", "request_id")),
    ({"priority": 1}, (400, "unsupported_parameter", "priority")),
    ({"use_beam_search": True}, (400, "unsupported_parameter", "use_beam_search")),
    ({"best_of": 3}, (400, "unsupported_parameter", "best_of")),
    ({"modalities": ["audio"]}, (400, "unsupported_parameter", "modalities")),
    ({"echo": True}, (400, "unsupported_parameter", "echo")),
    ({"functions": [NOTHING]}, (400, "unsupported_parameter", "functions")),
    ({"timeout": -1}, (400, "invalid_value", "timeout")),
    ({"prompt_token_ids": []}, (400, "empty_array", "prompt_token_ids")),
    ({"input_ids": [-1]}, (400, "invalid_value", "input_ids")),
    ({"truncate_prompt_tokens": 0}, (400, "invalid_value", "truncate_prompt_tokens")),
]

COMPLETION_ERRORS: list[tuple[dict[str, Any], tuple[int, str, str | None]]] = [
    ({}, (400, "missing_required_parameter", "prompt")),
    ({"prompt": ""}, (400, "invalid_value", "prompt")),
    ({"prompt": []}, (400, "empty_array", "prompt")),
    ({"prompt": [1, "x"]}, (400, "invalid_type", "prompt[0]")),
    ({"prompt": [[1], [1.5]]}, (400, "invalid_type", "prompt[1]")),
    ({"prompt": ["a", ""]}, (400, "invalid_value", "prompt[1]")),
    ({"prompt": ["x"] * 1025}, (400, "invalid_value", "prompt")),
    ({"prompt": [10**7]}, (400, "invalid_value", "prompt")),
    ({"prompt": [1] * 4096}, (400, "context_length_exceeded", "prompt")),
    ({"prompt": "x", "suffix": "y"}, (400, "unsupported_parameter", "suffix")),
    ({"prompt": "x", "logprobs": 21}, (400, "invalid_value", "logprobs")),
    ({"prompt": "x", "logprobs": True}, (400, "invalid_type", "logprobs")),
    ({"prompt": "x", "logprobs": 1, "echo": True, "stream": True}, (400, "unsupported_combination", "echo")),
]


async def test_chat_table() -> None:
    async with serving() as server:
        for fields, expected in CHAT_ERRORS:
            body = {"messages": USER, **fields}
            check_error(*await server.post(CHAT, body), expected)
            if "stream_options" not in fields:
                check_error(*await server.post(CHAT, {**body, "stream": True}), expected)
        assert (await server.chat())[0] == 200
        assert len(server.engine.submitted) == 1


async def test_completions_table() -> None:
    async with serving() as server:
        for body, expected in COMPLETION_ERRORS:
            check_error(*await server.post(COMPLETIONS, body), expected)
        assert (await server.post(COMPLETIONS, {"prompt": "x"}))[0] == 200


async def test_text_endpoints_table() -> None:
    async with serving() as server:
        for path, body, expected in (
            ("/tokenize", {}, (400, "missing_required_parameter", "prompt")),
            ("/tokenize", {"prompt": 3}, (400, "invalid_type", "prompt")),
            ("/tokenize", {"messages": []}, (400, "empty_array", "messages")),
            ("/detokenize", {}, (400, "missing_required_parameter", "tokens")),
            ("/detokenize", {"tokens": [10**7]}, (400, "invalid_value", "tokens")),
            ("/abort_request", {}, (400, "missing_required_parameter", "request_id")),
            ("/abort_request", {"rid": 5}, (400, "missing_required_parameter", "request_id")),
            ("/v1/embeddings", {}, (404, "not_supported_by_model", None)),
        ):
            check_error(*await server.post(path, body), expected)
        assert await server.post("/abort_request", {"request_id": None, "rid": "x"}) == (200, {"aborted": []})
        check_error(*await server.get("/v1/models/nobody"), (404, "model_not_found", "model"))
        check_error(*await server.get("/nowhere"), (404, "not_found", None))


async def test_prompt_larger_than_the_page_pool() -> None:
    async with serving(ScriptedEngine(num_blocks=2)) as server:
        check_error(
            *await server.post(COMPLETIONS, {"prompt": [1] * 200}),
            (400, "prompt_exceeds_kv_capacity", "prompt"),
        )


async def test_context_error_keeps_the_words_clients_look_for() -> None:
    async with serving() as server:
        _, body = await server.post(COMPLETIONS, {"prompt": [1] * 5000})
        assert "maximum context length is 4096 tokens" in body["error"]["message"]
        _, body = await server.post(COMPLETIONS, {"prompt": [1], "max_tokens": 10**300})
        assert "maximum context length is 4096 tokens" in body["error"]["message"]
        assert len(body["error"]["message"]) < 200


async def test_hopelessly_long_text_is_refused_before_it_is_tokenised() -> None:
    async with serving() as server:
        text = "x" * (4096 * server.state.front.longest_token + 1)
        for path, body, param in (
            (COMPLETIONS, {"prompt": text}, "prompt"),
            (CHAT, {"messages": [{"role": "user", "content": text}]}, "messages"),
        ):
            status, answer = await server.post(path, body)
            check_error(status, answer, (400, "context_length_exceeded", param))
            assert "characters" in answer["error"]["message"]
