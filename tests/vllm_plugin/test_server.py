"""A student behind vLLM's OpenAI server, compiled as a user has it: 16 requests at a time."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from hybridize.engines import Client, ServeSettings, find_engine, serving
from hybridize.engines.client import Sampling
from hybridize.models.folders import save_model
from hybridize.models.loading import load_model, load_tokenizer
from tests.vllm_plugin.folders import make_student
from tests.vllm_plugin.serving import LENGTHS, NEW_TOKENS, expect, get_python, make_prompts

VOCAB = 176
SAMPLING = Sampling(max_tokens=NEW_TOKENS, ignore_end=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    get_python()
    root = tmp_path_factory.mktemp("served")
    mixers = "attention mamba1 mamba2 attention gated_delta sliding"
    bare = make_student(root / "bare", "llama", mixers, vocab=VOCAB)
    return save_model(load_model(bare), load_tokenizer("shipped"), root / "student")


@pytest.fixture(scope="module")
def client(folder):
    engine = find_engine("vllm")
    settings = ServeSettings(model=folder, max_sequences=16, context_tokens=384, threads=1)
    with serving(engine, settings) as server:
        yield Client(server.url, fields=engine.request_fields)


def test_answers_do_not_depend_on_what_is_computed_beside_them(folder, client):
    prompts = make_prompts(VOCAB) + make_prompts(VOCAB, LENGTHS[::-1], seed=8)
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda prompt: client.complete(prompt, SAMPLING), prompts))
    for prompt, made in zip(prompts, together, strict=True):
        _, places = expect(folder, prompt, list(made.token_ids))
        assert tuple(places.argmax(1)) == made.token_ids
    for number in (0, 4, 7, 15):
        alone = client.complete(prompts[number], SAMPLING)
        assert alone.token_ids == together[number].token_ids
        assert alone.text == together[number].text


def test_text_and_streams_are_answered(client):
    tokenizer = load_tokenizer("shipped")
    text = tokenizer.decode(make_prompts(VOCAB)[3])
    whole = client.complete(text, SAMPLING)
    pieces = list(client.stream(text, SAMPLING))
    assert tuple(token for piece in pieces for token in piece.token_ids) == whole.token_ids
    assert len(whole.token_ids) == NEW_TOKENS


def test_a_chat_goes_through_the_template(client):
    tokenizer = load_tokenizer("shipped")
    messages = [{"role": "user", "content": tokenizer.decode(make_prompts(VOCAB)[2])}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert client.chat(messages, SAMPLING).token_ids == client.complete(prompt, SAMPLING).token_ids


def test_broken_off_answers_leave_no_trace(client):
    prompt = make_prompts(VOCAB)[5]
    before = client.complete(prompt, SAMPLING)
    for _ in range(8):
        stream = client.stream(prompt, SAMPLING)
        next(stream)
        stream.close()
    assert client.complete(prompt, SAMPLING).token_ids == before.token_ids
