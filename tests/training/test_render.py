"""What counts of a record, to the token, through a real tokenizer and templates of many manners."""

import pytest

from hybridize.core.errors import RunError
from hybridize.training.encode import Encoder
from hybridize.training.render import find_keys, render
from hybridize.training.thoughts import (
    find_marks,
    shows_thoughts,
    split_thoughts,
    warn_without_thoughts,
)
from tests.training.chats import CLOSED, FORGETFUL, PLAIN, THOUGHTLESS, byte_tokenizer
from tests.training.tiny import WordTokenizer

THOUGHT = "<think>\n12 + 30 is 42\n</think>\n\n42."


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


CHAT = [user("the cat"), assistant("said hello"), user("12 + 30"), assistant("42.")]
REASONED = [
    user("the cat"),
    assistant("<think>\nsat\n</think>\n\nhello"),
    user("12"),
    assistant(THOUGHT),
]


def encode(record, template=None, keys=None):
    tokenizer = byte_tokenizer(template)
    keys = keys or find_keys("line 1", record)
    documents = render("line 1", record, keys, tokenizer)
    return tokenizer, Encoder(tokenizer).encode(documents)


def spans(tokenizer, encoded):
    """Return the text of each unbroken run of counted tokens."""
    found, run = [], []
    for token, counts in [*zip(encoded.ids, encoded.counted, strict=True), (None, False)]:
        if counts:
            run.append(token)
        elif run:
            found.append(tokenizer.decode(run))
            run = []
    return found


def test_of_a_completion_every_token_counts_and_of_the_prompt_none():
    tokenizer, [encoded] = encode({"prompt": "12 + 30 =", "completion": " 42."})
    assert spans(tokenizer, encoded) == [" 42.<eos>"]
    asked = tokenizer("12 + 30 =")["input_ids"]
    assert encoded.ids[: len(asked)] == asked and not any(encoded.counted[: len(asked)])
    assert encoded.exact


def test_a_token_that_would_straddle_the_prompt_and_the_completion_is_not_made():
    tokenizer, [encoded] = encode({"prompt": "the c", "completion": "at sat"})
    joined = tokenizer("the cat sat")["input_ids"]
    assert encoded.ids[:-1] != joined and not encoded.exact
    assert spans(tokenizer, encoded) == ["at sat<eos>"]
    asked = tokenizer("the c")["input_ids"]
    assert encoded.ids[: len(asked)] == asked


def test_of_a_text_all_counts_between_one_beginning_and_one_end():
    tokenizer, [encoded] = encode({"text": "the cat"})
    assert encoded.ids == [*tokenizer("the cat")["input_ids"], tokenizer.eos_token_id]
    assert encoded.counted == [False] + [True] * (len(encoded.ids) - 1)
    tokenizer, [again] = encode({"text": "<bos>the cat<eos>"})
    assert again.ids == encoded.ids


@pytest.mark.parametrize("template", [PLAIN, CLOSED], ids=["plain", "closed"])
def test_of_a_chat_each_answer_counts_with_the_token_that_closes_it(template):
    close = "<|im_end|>" if template is PLAIN else "<|end|>"
    tokenizer, [encoded] = encode({"messages": CHAT}, template)
    assert spans(tokenizer, encoded) == [f"said hello{close}", f"42.{close}"]
    whole = tokenizer.apply_chat_template(CHAT, tokenize=False)
    assert encoded.ids == tokenizer(whole, add_special_tokens=False)["input_ids"]
    for until in (1, 3):
        asked = tokenizer.apply_chat_template(
            CHAT[:until], add_generation_prompt=True, return_dict=False
        )
        assert encoded.ids[: len(asked)] == asked and encoded.counted[len(asked)]


@pytest.mark.parametrize("separate", [False, True], ids=["in the content", "of their own"])
def test_thoughts_count_and_a_template_that_drops_them_later_gives_a_document_an_answer(separate):
    chat = REASONED
    if separate:
        parts = [split_thoughts(entry["content"]) for entry in chat]
        chat = [
            assistant(answer, reasoning_content=thought) if thought else entry
            for entry, (thought, answer) in zip(chat, parts, strict=True)
        ]
    tokenizer, [first, second] = encode({"messages": chat}, FORGETFUL)
    assert spans(tokenizer, first) == ["<think>\nsat\n</think>\n\nhello<|im_end|>"]
    assert spans(tokenizer, second) == [f"{THOUGHT}<|im_end|>"]
    for encoded, until in ((first, 1), (second, 3)):
        asked = tokenizer.apply_chat_template(
            chat[:until], add_generation_prompt=True, return_dict=False
        )
        assert encoded.ids[: len(asked)] == asked


def test_turns_that_a_forgetful_template_keeps_share_a_document():
    chat = [user("the cat"), assistant("hello"), user("12"), assistant(THOUGHT)]
    tokenizer, [encoded] = encode({"messages": chat}, FORGETFUL)
    assert spans(tokenizer, encoded) == ["hello<|im_end|>", f"{THOUGHT}<|im_end|>"]


def test_thoughts_that_a_template_never_renders_are_laid_behind_its_question():
    tokenizer, documents = encode({"messages": REASONED}, THOUGHTLESS)
    assert [spans(tokenizer, encoded) for encoded in documents] == [
        ["sat\n</think>\n\nhello<eos>"],
        ["12 + 30 is 42\n</think>\n\n42.<eos>"],
    ]
    last = tokenizer.decode(documents[1].ids)
    assert (
        last == f"<bos><|user|>the cat<|assistant|>hello<eos><|user|>12<|assistant|>{THOUGHT}<eos>"
    )


def test_an_answer_without_thoughts_is_not_laid_into_thoughts():
    tokenizer, [encoded] = encode({"messages": CHAT[:2]}, THOUGHTLESS)
    assert tokenizer.decode(encoded.ids) == "<bos><|user|>the cat<|assistant|>said hello<eos>"
    assert spans(tokenizer, encoded) == ["said hello<eos>"]


def test_prompts_of_messages_and_names_of_other_projects_are_read():
    record = {"prompt": CHAT[:3], "completion": CHAT[3:]}
    tokenizer, [encoded] = encode(record, PLAIN)
    assert spans(tokenizer, encoded) == ["42.<|im_end|>"]
    roles = {"user": "human", "assistant": "gpt"}
    shared = [{"from": roles[entry["role"]], "value": entry["content"]} for entry in CHAT]
    tokenizer, [encoded] = encode({"conversations": shared}, PLAIN)
    assert spans(tokenizer, encoded) == ["said hello<|im_end|>", "42.<|im_end|>"]


def test_keys_that_are_null_are_left_out_of_a_message():
    chat = [{**entry, "tool_calls": None} for entry in CHAT]
    tokenizer, [encoded] = encode({"messages": chat}, PLAIN)
    assert len(spans(tokenizer, encoded)) == 2


def test_a_call_of_a_tool_counts_and_its_answer_does_not():
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "cat"}]}
    chat = [user("12 + 30"), call, {"role": "tool", "content": "sat"}, assistant("42.")]
    template = PLAIN.replace("{{ m.content }}", "{{ m.content }}{{ m.tool_calls }}")
    tokenizer, [encoded] = encode({"messages": chat}, template)
    assert spans(tokenizer, encoded) == ["[{'name': 'cat'}]<|im_end|>", "42.<|im_end|>"]


def test_answers_to_one_prompt_are_of_one_group():
    tokenizer = byte_tokenizer(FORGETFUL)
    keys = {"messages": "messages"}
    groups = {
        entry.group
        for said in ("hello", THOUGHT)
        for entry in render("", {"messages": [*REASONED[:3], assistant(said)]}, keys, tokenizer)
    }
    assert len(groups) == 1


@pytest.mark.parametrize(
    ("record", "template", "message"),
    [
        ({"body": "a"}, None, "line 1 has the keys body, and none of text, messages"),
        ({"text": 3}, None, "line 1: 'text' is 3, which is not text. Correct the record"),
        ({"prompt": "a", "completion": ""}, None, "line 1 has no token to learn"),
        ({"messages": [user("a")]}, PLAIN, "line 1 has no token to learn"),
        ({"messages": CHAT}, None, "tokenizer has no chat template. Use text, or prompt"),
        ({"messages": "hello"}, PLAIN, "'messages' is no list of messages. Write it like"),
        ({"messages": [{"role": "user"}]}, PLAIN, "'messages' is no list of messages"),
        ({"messages": CHAT}, "{{ raise_exception('bad') }}", "refuses these messages (bad)"),
    ],
)
def test_a_record_that_cannot_be_learnt_says_why(record, template, message):
    with pytest.raises(RunError) as caught:
        encode(record, template)
    assert message in str(caught.value)


def test_a_key_that_is_missing_is_named():
    with pytest.raises(RunError, match="line 1 has no 'solution'"):
        encode({"question": "a"}, keys={"prompt": "question", "completion": "solution"})


def test_thoughts_are_seen_only_where_there_are_some():
    assert shows_thoughts(THOUGHT) and shows_thoughts("[THINK]a[/THINK]b")
    assert not shows_thoughts("hello") and not shows_thoughts("<think>\n\n</think>\n\nhello")


def test_a_reasoning_teacher_on_plain_text_is_warned_of(caplog):
    class Source:
        has_thoughts = False

    thinker = WordTokenizer()
    assert find_marks(thinker) == "<think>"
    assert find_marks(byte_tokenizer(FORGETFUL)) == "<think>"
    assert find_marks(byte_tokenizer(PLAIN)) is None
    warn_without_thoughts(byte_tokenizer(PLAIN), Source, "x")
    assert not caplog.records
    warn_without_thoughts(thinker, Source, "recipe h12")
    assert "recipe h12: the teacher reasons (its tokenizer knows <think>)" in caplog.text
    caplog.clear()
    Source.has_thoughts = True
    warn_without_thoughts(thinker, Source, "x")
    assert not caplog.records
