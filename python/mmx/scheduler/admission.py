"""Which requests are refused on arrival, and with which sentence."""

from __future__ import annotations

from dataclasses import dataclass

from mmx.protocol import Failed, Submit


@dataclass(frozen=True, slots=True)
class Limits:
    """What one engine can hold: context of the model, page pool and vocabulary."""

    max_model_len: int
    pool_tokens: int
    vocab_size: int

    @property
    def max_total_tokens(self) -> int:
        """The longest prompt plus output."""
        return min(self.max_model_len, self.pool_tokens)


def refusal(message: Submit, limits: Limits) -> Failed | None:
    """Why this request can never run here, or None."""

    def bad(text: str, code: str, param: str) -> Failed:
        return Failed(message.request_id, text, code, 400, param)

    prompt, params, vocab = message.prompt_token_ids, message.params, limits.vocab_size
    if not prompt:
        return bad("prompt must hold at least one token", "invalid_value", "prompt")
    if min(prompt) < 0 or max(prompt) >= vocab:
        wrong = min(prompt) if min(prompt) < 0 else max(prompt)
        return bad(f"prompt token ids must be in 0..{vocab - 1}, got {wrong}", "invalid_value", "prompt")
    for field, ids in (("stop_token_ids", params.stop_token_ids), ("logit_bias", params.logit_bias)):
        for token_id in ids:
            if not 0 <= token_id < vocab:
                text = f"{field} ids must be in 0..{vocab - 1}, got {token_id}"
                return bad(text, "invalid_value", field)
    context = f"maximum context length is {limits.max_model_len} tokens"
    if len(prompt) >= limits.max_model_len:
        text = f"the {context}, but the prompt has {len(prompt)} tokens and needs room for one more"
        return bad(text, "context_length_exceeded", "prompt")
    if params.max_tokens is not None and len(prompt) + params.max_tokens > limits.max_model_len:
        text = f"the {context}, but prompt ({len(prompt)}) and max_tokens ({params.max_tokens}) need more"
        return bad(text, "context_length_exceeded", "max_tokens")
    if len(prompt) >= limits.pool_tokens:
        text = f"the prompt has {len(prompt)} tokens, but the KV cache holds {limits.pool_tokens} tokens"
        return bad(text, "prompt_exceeds_kv_capacity", "prompt")
    return None
