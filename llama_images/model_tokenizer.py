"""The tokenizer of the synthetic models: gemma4's form, with made-up words.

A character without a token falls to its bytes (llama.cpp's ``src/llama-vocab.cpp``), so that any prompt
tokenises.
"""

from __future__ import annotations

from dataclasses import dataclass

CHAT_TEMPLATE = """\
{#- OpenAI Chat Completions: messages, add_generation_prompt, enable_thinking. In the style of Gemma 4. -#}
{{- bos_token -}}
{%- set thinking = enable_thinking is defined and enable_thinking -%}
{%- set system = messages[0]['role'] in ['system', 'developer'] -%}
{%- if thinking or system -%}
{{- '<|turn>system\\n' -}}
{%- if thinking -%}{{- '<|think|>\\n' -}}{%- endif -%}
{%- if system -%}{{- messages[0]['content'] | trim -}}{%- endif -%}
{{- '<turn|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{%- if not (system and loop.first) -%}
{{- '<|turn>' -}}
{{- 'model' if message['role'] == 'assistant' else message['role'] -}}{{- '\\n' -}}
{%- if message['tool_calls'] -%}
{%- for call in message['tool_calls'] -%}
{{- '<|tool_call>call:' + call['function']['name'] + '{}<tool_call|>' -}}
{%- endfor -%}
{%- endif -%}
{%- if message['content'] -%}{{- message['content'] | trim -}}{%- endif -%}
{{- '<turn|>\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|turn>model\\n' -}}
{%- if not thinking -%}{{- '<|channel>thought\\n<channel|>' -}}{%- endif -%}
{%- endif -%}
"""
"""``tokenizer.chat_template``. With ``enable_thinking`` the system turn holds ``<|think|>``; without, the
model's turn opens with an empty thought. The CLI recognises the form (``common/chat.cpp``:
``'<|tool_call>call:'``)."""


_CONTROL = (
    "<|turn>", "<turn|>", "<|channel>", "<channel|>", "<|think|>", "<|tool_call>", "<tool_call|>",
    "<|tool_response>", "<tool_response|>", '<|"|>',
)  # fmt: skip
_SYLLABLES = tuple(consonant + vowel for consonant in "bdfghjklmnprstvz" for vowel in "aeiou")
_SPACE = "\u2581"
FIRST_WORD = 5 + len(_CONTROL) + 256 + 4 + 1 + 94
"""Identifier of the first word; words follow in pairs, with a space before them and without."""
_NORMAL, _UNKNOWN, _CONTROL_TYPE, _BYTE = 1, 2, 3, 6  # llama.h: enum llama_token_type


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokenizer:
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...]


def _word(number: int) -> tuple[str, str]:
    """The word of that number (from 1) as (all but its last syllable, last syllable)."""
    rest, last = divmod(number - 1, len(_SYLLABLES))
    return ("".join(_word(rest)) if rest else ""), _SYLLABLES[last]


def tokenizer(vocabulary: int) -> Tokenizer:
    """A gemma4 tokenizer of that many tokens: special ones, every byte, every printable character, then
    words.

    A character without a token falls to its bytes (``src/llama-vocab.cpp``), so that any prompt tokenises.
    """
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *_CONTROL]
    types = [_CONTROL_TYPE] * len(tokens)
    types[3] = _UNKNOWN
    tokens += [f"<0x{byte:02X}>" for byte in range(256)]
    types += [_BYTE] * 256
    tokens += ["\n" * length for length in range(1, 5)]  # a run of newlines is one token or falls to bytes
    tokens += [_SPACE, *(chr(code) for code in range(0x21, 0x7F))]
    assert len(tokens) == FIRST_WORD
    merges: list[str] = []
    number = 0
    while len(tokens) < vocabulary:
        number += 1
        prefix, last = _word(number)
        word = prefix + last
        tokens += [_SPACE + word, word]
        if len(word) <= 4:  # enough for a prompt to meet merged tokens, and quick to load
            merges += [f"{prefix} {last}" if prefix else f"{last[0]} {last[1]}", f"{_SPACE} {word}"]
    tokens = tokens[:vocabulary]
    types += [_NORMAL] * (vocabulary - len(types))
    known = set(tokens)
    kept = [merge for merge in merges if merge.replace(" ", "") in known]
    return Tokenizer(tokens=tuple(tokens), types=tuple(types), merges=tuple(kept))
