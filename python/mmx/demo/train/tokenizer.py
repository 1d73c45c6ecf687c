"""The demo's tokenizer: byte-level BPE trained on the generated corpus, with M3's added tokens at the end."""

from __future__ import annotations

import re
from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

# Texts in M3's order; the bool is the "special" flag.
_CODE = (
    "<fim_prefix> <fim_middle> <fim_suffix> <fim_pad> <reponame> <filename> <gh_stars> <issue_start> "
    "<issue_comment> <issue_closed> <jupyter_start> <jupyter_text> <jupyter_code> <jupyter_output> "
    "<empty_output> <commit_before> <commit_msg> <commit_after>"
).split()
_CODE_LATE = (
    "<jupyter_error> <add_file> <delete_file> <rename_file> <edit_file> <commit_message> <empty_source_file> "
    "<repo_struct> <code_context> <file_content> <source_files> <pr_start> <review_comment> <filepath> "
    "<file_sep>"
).split()
_MEDIA = [f"]<]{name}[>[" for name in (
    "speech", "image", "video", "start of speech", "end of speech", "start of image", "end of image",
    "start of video", "end of video", "vision pad",
)]  # fmt: skip
ADDED: list[tuple[str, bool]] = [
    *((text, True) for text in (
        "]!p~[", *_CODE, "]~b]", "[e~[", "]!d~[", "<function_call>", "<code_interpreter>", *_MEDIA, "]~!b[",
        *_CODE_LATE,
    )),
    *((text, False) for text in ("<think>", "</think>", "<tool_call>", "</tool_call>")),
    *((text, True) for text in ("]<]frame[>[", "]<]start of frame[>[", "]<]end of frame[>[")),
    ("<|content_altered_placeholder|>", True),
    *((text, False) for text in ("]<]minimax[>[", "<mm:think>", "</mm:think>")),
]  # fmt: skip
# Newlines and digits stand alone: columns of numbers align and no token crosses a turn's first newline.
SPLIT = r"\n|\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|[^\S\n]+(?!\S)|[^\S\n]"


def train_tokenizer(texts: Iterable[str], vocab: int) -> Tokenizer:
    """Train a BPE of ``vocab`` minus the added tokens (rounded up to 64) and append the added tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab - 64,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    # Why: an added token never reaches the BPE, so its text must not earn merges.
    control = re.compile("|".join(re.escape(text) for text, _ in ADDED))
    tokenizer.train_from_iterator((control.sub("\n", text) for text in texts), trainer)
    if tokenizer.get_vocab_size() != vocab - 64:
        raise ValueError(f"the corpus gives {tokenizer.get_vocab_size()} BPE entries, expected {vocab - 64}")
    tokenizer.add_tokens([AddedToken(text, special=special, normalized=False) for text, special in ADDED])
    return tokenizer
