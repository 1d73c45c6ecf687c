"""Tokenizer, chat template and incremental detokenizer of a checkpoint; no torch.

Life of a chat request::

    tokenizer = Tokenizer(folder)
    template = ChatTemplate.from_checkpoint(
        folder, markers=tokenizer.control_ids, variables=tokenizer.special_token_texts
    )
    ids = tokenizer.encode_rendered(template.render(messages, tools=tools))
    detokenizer = IncrementalDetokenizer(tokenizer, keep=marker_ids)
    for segment in detokenizer.feed_segments(new_ids): ...

Text of the caller never becomes a control token: see `mmx.tokenizer.user_text`.
"""

from __future__ import annotations

from mmx.tokenizer.chat_template import ChatTemplate, detect_family, reference_template
from mmx.tokenizer.detokenizer import IncrementalDetokenizer, Segment, StopStrings
from mmx.tokenizer.messages import ChatTemplateError, Family
from mmx.tokenizer.tokenizer import Tokenizer
from mmx.tokenizer.user_text import RenderedPrompt

__all__ = [
    "ChatTemplate",
    "ChatTemplateError",
    "Family",
    "IncrementalDetokenizer",
    "RenderedPrompt",
    "Segment",
    "StopStrings",
    "Tokenizer",
    "detect_family",
    "reference_template",
]
