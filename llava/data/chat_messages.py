"""Messages in transformers' form to a prompt in which what people write is text, whatever it looks like.

A special token that a message writes is marked: a mark behind its first character, unknown to tokenizers. So it is no
token in the rendered prompt, may that be encoded at once or go through a program's hands first; the processor takes the
marks out when it encodes. Training and chat keep such text apart in the same way, see llava/data/conversation.py.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from llava.constants import SYSTEM_MESSAGE
from llava.data.placeholders import PLACEHOLDERS
from llava.errors import DataError

MARK = "\U000f0001"  # of a private use area; a mark that is written itself is marked, too
# place_in_front in Jinja: what a turn shows in front is joined, and stands apart from the text behind it; what is shown
# between its texts stands there bare. What an assistant writes, with the token that ends it, is its generation, of
# which programs that train ask by return_assistant_tokens_mask.
_CONTENT = (
    "{%- if message['content'] is string -%}{{ message['content'] }}{%- else -%}"
    "{%- set place = namespace(in_front=true) -%}{%- for part in message['content'] -%}"
    "{%- if part['type'] in ['image', 'video'] -%}{{ '<' + part['type'] + '>' }}{%- if place.in_front -%}"
    "{{ ' ' if loop.nextitem is defined and loop.nextitem['type'] in ['image', 'video'] else '\n' }}{%- endif -%}"
    "{%- elif part['type'] == 'text' -%}{%- set place.in_front = false -%}{{ part['text'] }}"
    "{%- else -%}{{ raise_exception('only text, images and videos can be shown, not ' + part['type']) }}"
    "{%- endif -%}{%- endfor -%}{%- endif -%}{{ '<|im_end|>' }}"
)
CHAT_TEMPLATE = (
    "{%- if messages[0]['role'] != 'system' -%}"
    "{{ '<|im_start|>system\n" + SYSTEM_MESSAGE + "<|im_end|>\n' }}{%- endif -%}"
    "{%- for message in messages -%}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{%- if message['role'] == 'assistant' -%}{%- generation -%}" + _CONTENT + "{%- endgeneration -%}"
    "{%- else -%}" + _CONTENT + "{%- endif -%}{{ '\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)
_MARKED = re.compile(f"{MARK}(.?)", re.DOTALL)


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The tokens that text never becomes, the longest first."""
    tokens = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return sorted(tokens, key=len, reverse=True)


def is_message(given: Any) -> bool:
    """Whether it is a message in transformers' form."""
    return isinstance(given, Mapping)


def checked_messages(conversation: Any) -> Sequence[Mapping]:
    """A conversation's messages. Raises DataError for what is none, and for parts that the model does not read."""
    messages = getattr(conversation, "messages", conversation)
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise DataError(f"a conversation must be a list of messages, found {_short(messages)}")
    for number, message in enumerate(messages, start=1):
        if not is_message(message) or not isinstance(message.get("role"), str):
            raise DataError(f"message {number} must have a role and content, found {_short(message)}")
        content = message.get("content")
        if content is None or isinstance(content, str):
            continue
        if not isinstance(content, Sequence):
            raise DataError(f"message {number}: content must be a text or a list of parts, found {_short(content)}")
        for part in content:
            _check_part(part, number)
    return messages


def _check_part(part: Any, number: int) -> None:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if not isinstance(kind, str):
        raise DataError(f"message {number}: a part must have a type, found {_short(part)}")
    if kind not in ("text", "image", "image_url", "video"):
        raise DataError(f"message {number}: only text, images and videos can be shown, not {kind}")
    if kind == "text" and not isinstance(part.get("text"), str):
        raise DataError(f"message {number}: a part of type text must have a text, found {_short(part)}")


def marked(messages: Sequence[Mapping], tokens: Sequence[str], images_apart: bool) -> list[dict]:
    """The messages with all `tokens` marked that their texts and roles hold.

    In a conversation that is all text `<image>` may mean an image that is given apart from it: there, and where
    images_apart says that it can, the placeholders are left as they are.
    """
    shown = any(
        isinstance(part, Mapping) and part.get("type") != "text" for message in messages for part in _parts(message)
    )
    kept = () if shown or not images_apart else tuple(PLACEHOLDERS.values())
    of_text = _pattern([token for token in tokens if token not in kept])
    everywhere = _pattern(tokens)
    result = []
    for message in messages:
        message = dict(message) | {"role": _mark(message["role"], everywhere)}
        if isinstance(message.get("content"), str):
            message["content"] = _mark(message["content"], of_text)
        elif message.get("content") is not None:
            parts = [dict(part) for part in message["content"]]
            message["content"] = [
                part | {"text": _mark(part["text"], everywhere)} if part["type"] == "text" else part for part in parts
            ]
        result.append(message)
    return result


def unmarked(text: str) -> str:
    """The text with the marks taken out again."""
    return _MARKED.sub(r"\1", text)


def unmarked_places(text: str) -> list[int]:
    """Where in the text each character of unmarked(text) stands."""
    marks = {match.start() for match in _MARKED.finditer(text)}
    return [place for place in range(len(text)) if place not in marks]


def _parts(message: Mapping) -> Sequence:
    content = message.get("content")
    return content if content is not None and not isinstance(content, str) else ()


def _pattern(tokens: Sequence[str]) -> re.Pattern:
    return re.compile("|".join(map(re.escape, [MARK, *tokens])))


def _mark(text: str, pattern: re.Pattern) -> str:
    def mark(match: re.Match) -> str:
        token = match.group()
        return MARK * 2 if token == MARK else token[0] + MARK + token[1:]

    return pattern.sub(mark, text)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:100] + "..."
