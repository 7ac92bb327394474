"""What a load is, and what is counted of the answers to it."""

import time

import pytest

from hybridize.core.errors import MachineError, RecipeError
from hybridize.engines.answers import Piece, collect, read_piece
from hybridize.engines.load import Load, draw_prompts, parse_load, run_load


class Steady:
    """A client whose answers come a token every so many seconds."""

    url = "steady"

    def __init__(self, seconds: float, *, told: int | None = None) -> None:
        self.seconds, self.told = seconds, told

    def stream(self, prompt, sampling):
        for _ in range(sampling.max_tokens):
            time.sleep(self.seconds)
            yield Piece(seconds=0, text="a")
        yield Piece(
            seconds=0, finish_reason="length", completion_tokens=self.told or sampling.max_tokens
        )


def test_loads_are_read_and_written():
    assert parse_load("1k:8k") == Load(input_tokens=1000, output_tokens=8000)
    assert str(parse_load("1:256")) == "1:256"
    for text in ("5", "a:b", "0:5", "5:0"):
        with pytest.raises(RecipeError):
            parse_load(text)


def test_prompts_differ_and_are_the_same_again():
    load = Load(input_tokens=9, output_tokens=1)
    drawn = draw_prompts(load, 4, vocab_size=50, seed=1)
    assert drawn == draw_prompts(load, 4, vocab_size=50, seed=1)
    assert len({tuple(prompt) for prompt in drawn}) == 4
    assert all(len(prompt) == 9 and max(prompt) < 50 for prompt in drawn)


def test_speed_is_that_of_the_tokens():
    load = Load(input_tokens=2, output_tokens=10)
    found = run_load(Steady(0.02), load, [[1, 2], [3, 4]])
    assert 40 < found.tokens_per_second < 105
    assert 40 < found.decode_tokens_per_second < 110
    assert 0.015 < found.seconds_between_tokens < 0.05
    assert 0.015 < found.seconds_to_first_token < 0.06


def test_an_answer_too_short_is_no_measurement():
    with pytest.raises(MachineError, match="wrote 3 tokens where 5"):
        run_load(Steady(0, told=3), Load(input_tokens=1, output_tokens=5), [[1]])


LLAMA_CPP = {
    "choices": [
        {
            "text": " b",
            "finish_reason": "length",
            "logprobs": {
                "content": [
                    {
                        "id": 17,
                        "token": " b",
                        "logprob": -0.5,
                        "top_logprobs": [{"id": 17, "token": " b", "logprob": -0.5}],
                    }
                ]
            },
        }
    ],
    "usage": {"prompt_tokens": 3, "completion_tokens": 1},
}
VLLM = {
    "choices": [
        {
            "text": " b",
            "finish_reason": "length",
            "token_ids": [17],
            "logprobs": {
                "tokens": ["token_id:17"],
                "token_logprobs": [-0.5],
                "top_logprobs": [{"token_id:17": -0.5}],
            },
        }
    ],
    "usage": {"prompt_tokens": 3, "completion_tokens": 1},
}


@pytest.mark.parametrize("value", [LLAMA_CPP, VLLM])
def test_dialects_of_servers_say_the_same(value):
    found = collect([read_piece(value, 1.5)])
    assert (found.text, found.token_ids, found.logprobs) == (" b", (17,), (-0.5,))
    assert found.top_logprobs == ({17: -0.5},)
    assert (found.prompt_tokens, found.completion_tokens, found.seconds) == (3, 1, (1.5,))


def test_thinking_that_a_server_sorts_out_is_kept_apart():
    value = {"choices": [{"delta": {"reasoning_content": "so", "content": None}}]}
    piece = read_piece(value, 0)
    assert (piece.thinking, piece.text) == ("so", "")
