"""Answers are those of the model alone, whoever else is answered."""

import pytest
import torch

from hybridize.models import HybridForCausalLM
from hybridize.serving.counters import Counters
from hybridize.serving.jobs import Ended, Job, Read
from hybridize.serving.loop import Loop
from hybridize.serving.memory import find_num_slots
from hybridize.serving.sampling import Drawing, Drawn, draw
from hybridize.serving.stepping import Stepper
from tests.serving.conftest import make_model
from tests.tiny import tokens

GREEDY = Drawing(temperature=0, logprobs=3)
LAYOUTS = ["AAAA", "MmGM", "AMmGW", "WWAW"]
LENGTHS = (1, 5, 24, 3, 17, 60, 2, 9)


@pytest.fixture(scope="module", params=LAYOUTS)
def model(request: pytest.FixtureRequest) -> HybridForCausalLM:
    return make_model(request.param)


def ask(length: int, *, seed: int = 1, max_tokens: int = 12, **changes) -> Job:
    prompt = tuple(tokens(1, length, seed=seed).tolist()[0])
    values = {"prompt": prompt, "max_tokens": max_tokens, "drawing": GREEDY, "ends": frozenset()}
    return Job(**(values | changes))


def answer(model: HybridForCausalLM, jobs: list[Job], max_sequences: int = 3) -> list[list[Drawn]]:
    loop = Loop(Stepper(model, max_sequences), Counters(), on_failure=lambda: None)
    for job in jobs:
        assert loop.submit(job)
    loop.start()
    events = [list(job.read(30)) for job in jobs]
    loop.stop(30)
    assert loop.failure is None
    assert loop.stepper.memory.apart == {}
    assert all(isinstance(found[-1], Ended) for found in events)
    return [[event for event in found if isinstance(event, Drawn)] for found in events]


def test_answers_are_those_of_generate(model):
    jobs = [ask(length, seed=length) for length in LENGTHS]
    for job, drawn in zip(jobs, answer(model, jobs), strict=True):
        ids = torch.tensor([job.prompt])
        expected = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert [one.token for one in drawn] == expected[0, len(job.prompt) :].tolist()


def test_an_answer_is_the_same_to_the_last_bit_whoever_else_is_answered(model):
    together = answer(model, [ask(length, seed=length) for length in LENGTHS], 4)
    alone = [answer(model, [ask(length, seed=length)], 4)[0] for length in LENGTHS]
    assert together == alone


def test_the_prompt_is_told_to_the_last_bit_whoever_else_is_answered(model, monkeypatch):
    monkeypatch.setattr("hybridize.serving.stepping.PROMPT_CHUNK", 16)
    monkeypatch.setattr("hybridize.serving.stepping.LOGITS_AT_ONCE", 5)

    def read(jobs: list[Job]) -> list[tuple[Drawn, ...]]:
        loop = Loop(Stepper(model, 4), Counters(), on_failure=lambda: None)
        loop.start()
        assert all(map(loop.submit, jobs))
        found = [event for job in jobs for event in job.read(30) if isinstance(event, Read)]
        loop.stop(30)
        return [event.tokens for event in found]

    def jobs() -> list[Job]:
        return [ask(length, seed=length, tells_prompt=True, max_tokens=3) for length in LENGTHS]

    together = read(jobs())
    assert together == [told for job in jobs() for told in read([job])]
    for job, told in zip(jobs(), together, strict=True):
        assert tuple(one.token for one in told) == job.prompt
        with torch.no_grad():
            logs_TV = model(torch.tensor([job.prompt])).logits[0].log_softmax(-1)
        expected = [float(logs_TV[place, token]) for place, token in enumerate(job.prompt[1:])]
        assert [one.logprob for one in told[1:]] == pytest.approx(expected, abs=2e-5)


def test_drawn_answers_depend_on_their_seed_alone():
    model = make_model("AM")
    how = Drawing(temperature=1.5, top_p=0.9, top_k=40, seed=7)
    drawn = answer(model, [ask(4, drawing=how) for _ in range(3)])
    assert drawn[0] == drawn[1] == drawn[2]
    other = answer(model, [ask(4, drawing=Drawing(temperature=1.5, seed=8))])
    assert other[0] != drawn[0]


def test_windows_of_the_teacher_are_kept():
    model = make_model("AMA", sliding_window=6)
    jobs = [ask(length, seed=length) for length in (20, 3, 7)]
    for job, drawn in zip(jobs, answer(model, jobs), strict=True):
        expected = model.generate(
            torch.tensor([job.prompt]), max_new_tokens=12, do_sample=False, eos_token_id=None
        )
        assert [one.token for one in drawn] == expected[0, len(job.prompt) :].tolist()


def test_positions_that_switch_are_filled_afresh():
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    rope = {"rope_type": "longrope", "rope_theta": 10_000.0, **factors}
    changes = {"rope_parameters": rope, "original_max_position_embeddings": 16}
    model = make_model("AMA", family="phi3", **changes)
    assert model.model.rope_switch == 16
    jobs = [ask(length, seed=length) for length in (10, 3, 20)]
    for job, drawn in zip(jobs, answer(model, jobs), strict=True):
        expected = model.generate(
            torch.tensor([job.prompt]), max_new_tokens=12, do_sample=False, eos_token_id=None
        )
        assert [one.token for one in drawn] == expected[0, len(job.prompt) :].tolist()


def test_an_answer_ends_at_a_token_that_ends_the_text():
    model = make_model("AM")
    free = [one.token for one in answer(model, [ask(6)])[0]]
    ended = answer(model, [ask(6, ends=frozenset({free[3]}))])[0]
    assert [one.token for one in ended] == free[: free.index(free[3]) + 1]


def test_a_cancelled_job_frees_its_place():
    model = make_model("AM")
    loop = Loop(Stepper(model, 1), Counters(), on_failure=lambda: None)
    endless, short = ask(3, max_tokens=100_000), ask(4)
    loop.start()
    loop.submit(endless)
    assert isinstance(endless.events.get(timeout=30), Drawn)
    loop.submit(short)
    endless.is_cancelled = True
    assert len(list(short.read(30))) == 13
    loop.stop(5)
    assert list(endless.read(1))[-1] == Ended(reason="cancelled")


def test_a_failed_computation_ends_its_jobs_and_no_others(monkeypatch):
    model = make_model("AM")
    loop = Loop(Stepper(model, 2), Counters(), on_failure=lambda: None)
    fill = loop.stepper.fill

    def fail_once(job):
        monkeypatch.setattr(loop.stepper, "fill", fill)
        raise RuntimeError("no memory")

    monkeypatch.setattr(loop.stepper, "fill", fail_once)
    bad, good = ask(3), ask(4)
    loop.submit(bad)
    loop.submit(good)
    loop.start()
    assert list(bad.read(30))[-1].reason == "error"
    assert len(list(good.read(30))) == 13
    loop.stop(5)
    assert loop.failure is None


def test_rows_that_round_by_place_are_found():
    assert find_num_slots([torch.randn(8, 16)], 1) == 1
    found = find_num_slots([torch.randn(8, 16), torch.randn(48, 16)], 3)
    assert found is None or found >= 3


def test_logprobs_are_those_of_the_logits():
    logits = torch.tensor([1.0, 3.0, 2.0, -1.0])
    drawn = draw(logits, Drawing(temperature=0, logprobs=2), None)
    expected = logits.log_softmax(0)
    assert drawn.token == 1
    assert drawn.logprob == pytest.approx(float(expected[1]))
    assert [token for token, _ in drawn.likely] == [1, 2]


@pytest.mark.parametrize("how", [Drawing(top_p=0.5, seed=0), Drawing(top_k=1, seed=0)])
def test_cuts_leave_the_likeliest(how):
    logits = torch.tensor([1.0, 5.0, 2.0])
    generator = how.make_generator()
    assert {draw(logits, how, generator).token for _ in range(20)} == {1}
