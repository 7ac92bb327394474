"""From a record to the pieces of a document: which text there is, and which of it counts.

A chat goes through the tokenizer's own template. Each turn of the assistant counts, from the end
of its generation prompt to the token that closes the turn; all else does not.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hybridize.core.errors import RunError
from hybridize.training.data import Tokenizer
from hybridize.training.thoughts import MARKS, split_thoughts

Piece = tuple[str, bool]
Message = Mapping[str, Any]
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
_ROLES = {"human": "user", "gpt": "assistant"}
FORMS = (("messages",), ("conversations",), ("prompt", "completion"), ("text",))
_PART_OF = {"conversations": "messages"}


@dataclass(frozen=True)
class Document:
    """The pieces of one document, in order, and what it answers."""

    pieces: tuple[Piece, ...]
    """(text, whether it counts)."""
    group: str
    """Its prompt, or a text as a whole: documents of one group are never held out apart."""
    is_chat: bool = False
    """Whether a template wrote it, with all special tokens that belong there."""


def find_keys(place: str, record: Mapping[str, Any]) -> dict[str, str]:
    """Tell by its keys what form a record has.

    Raises:
        RunError: it has none of the known ones.
    """
    for names in FORMS:
        if all(name in record for name in names):
            return {_PART_OF.get(name, name): name for name in names}
    raise RunError(
        f"{place} has the keys {', '.join(record)}, and none of text, messages, or "
        "prompt with completion. Name the keys in the recipe."
    )


def render(
    place: str, record: Mapping[str, Any], keys: Mapping[str, str], tokenizer: Tokenizer
) -> list[Document]:
    """Return the documents of a record: one, or of some chats one for each answer.

    Raises:
        RunError: a key is missing or holds something else, or no token would count.
    """
    parts = {part: _get(place, record, key) for part, key in keys.items()}
    tools = record.get("tools")
    if "text" in parts:
        text = _text(place, keys["text"], parts["text"])
        return [Document(((text, True),), text)] if text else []
    if "messages" in parts:
        messages = _messages(place, keys["messages"], parts["messages"])
        documents = _chat(place, messages, tokenizer, 0, tools)
    elif isinstance(parts["prompt"], list):
        asked = _messages(place, keys["prompt"], parts["prompt"])
        said = _messages(place, keys["completion"], parts["completion"])
        documents = _chat(place, [*asked, *said], tokenizer, len(asked), tools)
    else:
        prompt = _text(place, keys["prompt"], parts["prompt"])
        completion = _text(place, keys["completion"], parts["completion"])
        pieces = ((prompt, False), (completion, True))
        documents = [Document(pieces, prompt or completion)] if completion else []
    if not documents:
        raise RunError(
            f"{place} has no token to learn. Give it a completion, or a turn of the assistant "
            "after one of the user."
        )
    return documents


def _get(place: str, record: Mapping[str, Any], key: str) -> Any:
    if key not in record:
        raise RunError(
            f"{place} has no '{key}'. Correct the record, or name the keys in the recipe."
        )
    return record[key]


def _text(place: str, key: str, value: Any) -> str:
    if not isinstance(value, str):
        raise RunError(
            f"{place}: '{key}' is {json.dumps(value, default=str)[:40]}, which is not text. "
            "Correct the record, or name another key in the recipe."
        )
    return value


def _messages(place: str, key: str, value: Any) -> list[Message]:
    """Read a list of messages, those with `from` and `value` too."""
    messages: list[Message] = []
    for entry in value if isinstance(value, list) else [value]:
        message = dict(entry) if isinstance(entry, Mapping) else {}
        if "from" in message and "value" in message:
            role = message.pop("from")
            message = {"role": _ROLES.get(role, role), "content": message.pop("value"), **message}
        if "role" not in message or ("content" not in message and "tool_calls" not in message):
            raise RunError(
                f"{place}: '{key}' is no list of messages. Write it like "
                '[{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}].'
            )
        # Parquet gives every message all keys that any has; a call of a tool may have no content.
        given = {name: part for name, part in message.items() if part is not None}
        messages.append({"content": "", **given})
    return messages


def _chat(
    place: str, messages: Sequence[Message], tokenizer: Tokenizer, first: int, tools: Any
) -> list[Document]:
    """Render a chat so that each answer from message `first` on counts in exactly one document.

    One document does where the template renders a turn alike whatever follows. Where it drops the
    thoughts of earlier turns, each turn is learnt in a document that ends with it.
    """

    def write(until: int, ask: bool = False) -> str:
        try:
            return str(
                tokenizer.apply_chat_template(
                    list(messages[:until]),
                    tokenize=False,
                    add_generation_prompt=ask,
                    **({"tools": tools} if tools else {}),
                )
            )
        except Exception as error:
            if not getattr(tokenizer, "chat_template", None):
                raise RunError(
                    f"{place} is a chat, but the teacher's tokenizer has no chat template. "
                    "Use text, or prompt with completion."
                ) from error
            raise RunError(
                f"{place}: the chat template of the tokenizer refuses these messages ({error}). "
                "Correct the record."
            ) from error

    answers = [
        n for n, entry in enumerate(messages) if n >= max(1, first) and entry["role"] == "assistant"
    ]
    turns = {n: _turn(write(n, ask=True), write(n + 1), messages[n], tokenizer) for n in answers}
    asked = messages[: answers[0]] if answers else ()
    group = json.dumps([[entry["role"], entry.get("content")] for entry in asked], default=str)
    documents: list[Document] = []
    while turns:
        last = max(turns)
        prompt, answer = turns[last]
        whole, until = prompt + answer, last + 1
        if not documents and last == answers[-1]:
            rendered = write(len(messages))
            whole = rendered if rendered.startswith(whole) else whole
        counted = [
            n for n, (asks, says) in turns.items() if n < until and whole.startswith(asks + says)
        ]
        pieces = _cut(whole, [turns.pop(n) for n in counted])
        documents.append(Document(tuple(pieces), group, is_chat=True))
    return documents[::-1]


def _cut(whole: str, turns: Sequence[tuple[str, str]]) -> Iterator[Piece]:
    """Cut a rendered chat where its answers begin and end."""
    done = 0
    for prompt, answer in turns:
        yield whole[done : len(prompt)], False
        yield answer, True
        done = len(prompt) + len(answer)
    if done < len(whole):
        yield whole[done:], False


def _turn(prompt: str, said: str, message: Message, tokenizer: Tokenizer) -> tuple[str, str]:
    """Return a generation prompt and the answer to it, with the token that closes the turn."""
    content = message.get("content")
    content = content if isinstance(content, str) else ""
    thoughts, answer = split_thoughts(content)
    thoughts = thoughts or next(
        (str(message[key]).strip() for key in _THOUGHTS if key in message), ""
    )
    opened = next((mark for mark in MARKS if prompt.rstrip().endswith(mark)), None)
    prompts = [prompt]
    if opened and not thoughts:
        # An answer without thoughts does not begin with them, though it was asked for some.
        prompts.append(prompt.rstrip().removesuffix(opened))
    for asked in prompts:
        rest = said[len(asked) :]
        if said.startswith(asked) and thoughts in rest and answer in rest:
            return asked, rest[: _end(rest, answer, tokenizer)]
    return prompt, _by_hand(prompt, opened, thoughts, content) + _closing(tokenizer)


def _end(rest: str, answer: str, tokenizer: Tokenizer) -> int:
    """Find the end of a turn: behind the special token that follows its answer, or its last word.

    What a template writes after that is never generated: a line break, the end of all text.
    """
    special = [token for token in getattr(tokenizer, "all_special_tokens", ()) if token]
    text = rest.rstrip()
    end = len(text)
    while not (answer and text.endswith(answer)):
        token = next((token for token in special if text.endswith(token)), None)
        if token is None:
            break
        end = len(text)
        text = text.removesuffix(token).rstrip()
    return end


def _by_hand(prompt: str, opened: str | None, thoughts: str, content: str) -> str:
    """Write an answer whose thoughts the template would leave out, behind its generation prompt."""
    if not any(mark in content for mark in MARKS.values()) and thoughts:
        opening = opened or "<think>"
        content = f"{opening}\n{thoughts}\n{MARKS[opening]}\n\n{content}"
    if opened and content.lstrip().startswith(opened):
        content = content.lstrip()[len(opened) :]
        return content.lstrip() if prompt[-1:].isspace() else content
    return content


def _closing(tokenizer: Tokenizer) -> str:
    return str(getattr(tokenizer, "eos_token", None) or "")
