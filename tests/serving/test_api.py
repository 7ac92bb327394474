"""The API over HTTP: what is answered, what is refused, and with which words."""

import http.client
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest
import torch

from hybridize.engines import Client, Sampling
from hybridize.engines.http import Refused

PROMPT = "<bos> <user> recall : ant = bag ; bed = bee ; ? bed <assistant> <think>"
FIELDS = {"return_token_ids": True}


@pytest.fixture(scope="module")
def client(start) -> Client:
    return start()


def post(client: Client, path: str, body: bytes | dict, headers: dict | None = None):
    """Send a body as it is; return status and answer."""
    parts = urlsplit(client.url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection.request("POST", path, text, headers or {})
    answer = connection.getresponse()
    value = json.loads(answer.read())
    connection.close()
    return answer.status, value


def with_ids(client: Client) -> Client:
    return Client(client.url, fields=FIELDS, timeout=30)


def test_a_text_and_its_token_ids_are_continued_alike(client, folder):
    from hybridize.models import load_tokenizer

    ids = load_tokenizer(folder).encode(PROMPT)
    asked = Sampling(max_tokens=20)
    by_text, by_ids = (with_ids(client).complete(prompt, asked) for prompt in (PROMPT, ids))
    assert by_text.text == by_ids.text
    assert by_text.token_ids == by_ids.token_ids
    assert by_text.prompt_tokens == len(ids)
    assert by_text.completion_tokens == len(by_text.token_ids) <= 20


def test_a_stream_is_the_whole_answer_in_pieces(client):
    asked = Sampling(max_tokens=20, logprobs=2)
    whole = with_ids(client).complete(PROMPT, asked)
    pieces = list(with_ids(client).stream(PROMPT, asked))
    assert "".join(piece.text for piece in pieces) == whole.text
    assert tuple(token for piece in pieces for token in piece.token_ids) == whole.token_ids
    assert tuple(value for piece in pieces for value in piece.logprobs) == whole.logprobs
    assert pieces[-1].completion_tokens == whole.completion_tokens
    assert len(pieces) > 10


def test_several_prompts_are_answered_in_their_order(client):
    body = {"prompt": [[1, 5], [1, 6, 7]], "max_tokens": 5, "temperature": 0}
    _, both = post(client, "/v1/completions", body | FIELDS)
    alone = [
        post(client, "/v1/completions", body | FIELDS | {"prompt": prompt})[1]["choices"][0]
        for prompt in body["prompt"]
    ]
    assert [choice["token_ids"] for choice in both["choices"]] == [
        choice["token_ids"] for choice in alone
    ]
    assert both["usage"]["prompt_tokens"] == 5


def test_a_conversation_is_written_out_by_the_template(client):
    question = [{"role": "user", "content": "recall : ant = bag ; ? ant"}]
    by_chat = client.chat(question, Sampling(max_tokens=12))
    text = "<bos> <user> recall : ant = bag ; ? ant <assistant> <think>"
    assert by_chat.text == client.complete(text, Sampling(max_tokens=12)).text
    pieces = list(client.stream_chat(question, Sampling(max_tokens=12)))
    assert "".join(piece.text for piece in pieces) == by_chat.text


def test_an_answer_ends_before_a_stop_text(client):
    free = client.complete(PROMPT, Sampling(max_tokens=20)).text
    words = free.split()
    stop = " ".join(words[4:6])
    expected = free[: free.index(stop)]
    found = client.complete(PROMPT, Sampling(max_tokens=20, stop=("nowhere", stop)))
    assert (found.text, found.finish_reason) == (expected, "stop")
    streamed = client.stream(PROMPT, Sampling(max_tokens=20, stop=(stop,)))
    assert "".join(piece.text for piece in streamed) == expected


def test_chat_reports_likely_tokens(client):
    question = [{"role": "user", "content": "sort : b a ?"}]
    found = client.chat(question, Sampling(max_tokens=3, logprobs=2))
    assert len(found.logprobs) == len(found.top_logprobs) == 3
    assert all(len(top) == 2 for top in found.top_logprobs)
    assert max(found.top_logprobs[0].values()) == pytest.approx(found.logprobs[0])


def test_an_echo_has_the_logprobs_of_the_prompt(client, folder):
    from hybridize.models import load_model

    ids = [1, *range(10, 90)]
    body = {"prompt": [ids, ids[:3]], "max_tokens": 2, "temperature": 0, "logprobs": 2}
    _, plain = post(client, "/v1/completions", body | FIELDS)
    _, echoed = post(client, "/v1/completions", body | FIELDS | {"echo": True})
    network = load_model(folder).eval()
    for one, other, prompt in zip(plain["choices"], echoed["choices"], body["prompt"], strict=True):
        assert other["token_ids"] == one["token_ids"]
        assert other["text"].endswith(one["text"]) and len(other["text"]) > len(one["text"])
        told, tops = (other["logprobs"][key] for key in ("token_logprobs", "top_logprobs"))
        assert told[-2:] == one["logprobs"]["token_logprobs"]
        assert (told[0], tops[0], len(told)) == (None, None, len(prompt) + 2)
        with torch.no_grad():
            logs = network(torch.tensor([prompt])).logits[0].log_softmax(-1)
        expected = [logs[place, token].item() for place, token in enumerate(prompt[1:])]
        assert told[1:-2] == pytest.approx(expected, abs=1e-5)
        best = [max(top.values()) for top in tops[1:-2]]
        assert best == pytest.approx(logs[:-1].max(-1).values.tolist(), abs=1e-5)
    assert echoed["usage"] == plain["usage"]


def test_an_echo_may_be_all_that_is_asked(client):
    body = {"prompt": PROMPT, "max_tokens": 0, "echo": True, "logprobs": 1}
    choice = post(client, "/v1/completions", body)[1]["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == (PROMPT, "length")
    assert len(choice["logprobs"]["tokens"]) == len(PROMPT.split())
    text = post(client, "/v1/completions", body | {"logprobs": None})[1]["choices"][0]
    assert (text["text"], text["logprobs"]) == (PROMPT, None)


def test_seeds_repeat_draws(client):
    asked = Sampling(max_tokens=15, temperature=1.5, seed=3)
    assert client.complete(PROMPT, asked).text == client.complete(PROMPT, asked).text


def test_what_is_served_is_told(client):
    assert client.list_models() == ["mixed"]
    model = client.get("/v1/models")["data"][0]
    assert model["layout"] == "AMmGW"
    assert model["max_model_len"] == 256
    assert client.get("/health") == {"status": "ok"}
    counters = client.read_metrics()
    assert counters["hybridize_answers_total"] >= 1
    assert counters["hybridize_memory_bytes"] > 0


REFUSED = {
    "no JSON": (b"{", 400, "not JSON"),
    "no text": (b"\xff\xfe", 400, "not JSON"),
    "deep": (b"[" * 100_000, 400, "not JSON"),
    "a list": (b"[]", 400, "not a JSON object"),
    "nothing": ({}, 400, "prompt is missing"),
    "no prompt": ({"prompt": []}, 400, "prompt is missing"),
    "an empty text": ({"prompt": ""}, 400, "no tokens"),
    "half a character": (b'{"prompt": "\\ud800"}', 400, "half of a character"),
    "a wrong token": ({"prompt": [1, 999]}, 400, "999 is not a token"),
    "a true token": ({"prompt": [True]}, 400, "neither a text"),
    "a mixture": ({"prompt": [1, "a"]}, 400, "neither a text"),
    "too long": ({"prompt": [1] * 256}, 400, "the prompt has 256 tokens"),
    "no room": ({"prompt": [1] * 250, "max_tokens": 10}, 400, "room for 6"),
    "no tokens": ({"prompt": "a", "max_tokens": 0}, 400, "max_tokens is 0"),
    "an echo in pieces": ({"prompt": "a", "echo": True, "stream": True}, 400, "echo is for"),
    "a broken number": ({"prompt": "a", "max_tokens": 1.5}, 400, "max_tokens is 1.5"),
    "a text for a number": ({"prompt": "a", "temperature": "hot"}, 400, "temperature is 'hot'"),
    "not a number": (b'{"prompt": "a", "temperature": NaN}', 400, "temperature is nan"),
    "too hot": ({"prompt": "a", "temperature": 3}, 400, "temperature is 3"),
    "no share": ({"prompt": "a", "top_p": 0}, 400, "top_p is 0"),
    "a wrong stop": ({"prompt": "a", "stop": [1]}, 400, "stop is neither"),
    "a wrong flag": ({"prompt": "a", "stream": "yes"}, 400, "stream is 'yes'"),
    "two answers": ({"prompt": "a", "n": 2}, 400, "n is not supported"),
    "another model": ({"prompt": "a", "model": "gpt"}, 404, "'gpt' is not served"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_request_is_refused_in_one_sentence(client, name):
    body, status, words = REFUSED[name]
    found, value = post(client, "/v1/completions", body)
    assert found == status
    assert words in value["error"]["message"]
    assert "\n" not in value["error"]["message"]


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        (None, "messages is missing"),
        ([1], "not an object"),
        ([{"role": "user"}], "content of a message"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "not text"),
    ],
)
def test_wrong_messages_are_refused(client, messages, words):
    status, value = post(client, "/v1/chat/completions", {"messages": messages})
    assert status == 400
    assert words in value["error"]["message"]


def test_what_is_not_there_is_refused(client):
    assert post(client, "/v1/embeddings", {})[0] == 404
    with pytest.raises(Refused, match="404"):
        client.get("/nothing")


def test_a_body_too_large_is_refused_unread(client):
    headers = {"Content-Length": str(2**40)}
    status, value = post(client, "/v1/completions", b"", headers)
    assert status == 413
    assert "may have" in value["error"]["message"]


def test_a_wrong_length_is_refused(client):
    assert post(client, "/v1/completions", b"", {"Content-Length": "-1"})[0] == 411


def test_a_key_is_asked_for(start, monkeypatch):
    monkeypatch.setenv("HYBRIDIZE_API_KEY", "secret")
    client = start()
    with pytest.raises(Refused, match="401"):
        client.list_models()
    assert client.get("/health") == {"status": "ok"}
    assert Client(client.url, api_key="secret").list_models() == ["mixed"]


def test_an_answer_nobody_reads_is_given_up(client):
    stream = client.stream(PROMPT, Sampling(max_tokens=200, ignore_end=True))
    next(stream)
    stream.close()
    parts = urlsplit(client.url)
    body = json.dumps({"prompt": "a", "max_tokens": 200, "ignore_eos": True}).encode()
    with socket.create_connection((parts.hostname, parts.port)) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
        )
    deadline = time.monotonic() + 30
    while client.read_metrics()["hybridize_answering"] and time.monotonic() < deadline:
        time.sleep(0.05)
    counters = client.read_metrics()
    assert counters["hybridize_answering"] == counters["hybridize_waiting"] == 0


def test_answers_under_load_are_those_alone(client):
    prompts = [[1, *range(10, 10 + length)] for length in (1, 30, 7, 90, 3, 55, 12, 2) * 3]
    asked = Sampling(max_tokens=12, logprobs=1)
    alone = [with_ids(client).complete(prompt, asked) for prompt in prompts[:8]] * 3
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda prompt: with_ids(client).complete(prompt, asked), prompts))
    for one, other in zip(alone, together, strict=True):
        assert one.token_ids == other.token_ids
        assert one.logprobs == other.logprobs
