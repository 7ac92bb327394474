"""Ask a served endpoint (OpenAI's API) the same problems as a model in this process."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from hybridize.engines.answers import Completion
from hybridize.engines.client import Client
from hybridize.engines.client import Sampling as Draw
from hybridize.engines.http import Refused
from hybridize.evaluation.answers import Answer, Progress, Question, judge
from hybridize.evaluation.sampling import Sampling

FIELDS = {"return_token_ids": True, "skip_special_tokens": False, "cache_prompt": False}
"""Fields beside OpenAI's own: token ids and special tokens come back where a server knows these."""


class Told(NamedTuple):
    """What a server tells of given tokens."""

    logs: tuple[float, ...]
    """Log-probability of each, in nats."""
    likeliest: bool
    """Whether each is the likeliest at its place."""


class Endpoint:
    """A model behind a URL, asked with the token ids of its tokenizer.

    Args:
        url: of the server, without /v1.
        tokenizer: that of the served model: prompts go out as token ids, so that no server changes
            them, and answers are decoded here where their ids come back.
        model: name of the model there; None asks the server for its first.
        name: what tables call it.
        api_key: where the server wants one.
        timeout: seconds without a byte after which a request has failed.
    """

    layout = ""

    def __init__(
        self,
        url: str,
        tokenizer: Any,
        *,
        model: str | None = None,
        name: str | None = None,
        api_key: str | None = None,
        timeout: float = 600,
    ) -> None:
        """Ask the server which model it serves, unless told.

        Raises:
            MachineError: nothing answers.
        """
        self._connect = partial(Client, url, api_key=api_key, timeout=timeout)
        self._client = self._connect(model=model, fields=FIELDS)
        self._url, self.tokenizer = url, tokenizer
        self._tells_likelihood = True
        self.name = name or self._client.model

    def answer(
        self,
        questions: Sequence[Question],
        sampling: Sampling,
        batch: int,
        progress: Progress | None = None,
    ) -> list[Answer]:
        """Ask up to `batch` at a time; see `hybridize.evaluation.subjects.Subject`.

        Raises:
            Refused: the server refuses a request.
            MachineError: nothing answers, or an answer breaks off.
        """
        self._settle(questions[0])
        likelihoods: list[float | None] = [None] * len(questions)
        samples = range(sampling.samples)
        asked = [(place, sample) for place in range(len(questions)) for sample in samples]
        answers: list[Answer] = []
        with ThreadPoolExecutor(max_workers=batch) as pool:
            if self._tells_likelihood:
                likelihoods = list(pool.map(self._likelihood, questions))
            calls = [
                pool.submit(self._answer, questions[place], sampling, sample)
                for place, sample in asked
            ]
            for (place, _), call in zip(asked, calls, strict=True):
                answers.append(replace(call.result(), log_likelihood=likelihoods[place]))
                if progress and (len(answers) % batch == 0 or len(answers) == len(asked)):
                    progress(len(answers), len(asked))
        return answers

    def machine(self) -> dict[str, Any]:
        """Return the server's address and the name of the model there."""
        return {
            "endpoint": self._url,
            "served_model": self._client.model,
            "tells_log_likelihood": self._tells_likelihood,
        }

    def complete(self, prompt: Sequence[int], draw: Draw) -> Completion:
        """Return the continuation of token ids; raises like `answer`."""
        return self._client.complete(prompt, draw)

    def score(self, prompt: Sequence[int], completion: Sequence[int]) -> Told | None:
        """Return how likely each token of a completion is, or None if not told.

        The server is asked to echo the prompt with its logprobs, as vLLM and our own do.
        """
        client = self._connect(model=self._client.model, fields={**FIELDS, "echo": True})
        try:
            found = client.complete([*prompt, *completion], Draw(max_tokens=1, logprobs=1))
        except Refused:
            return None
        asked = slice(len(prompt), len(prompt) + len(completion))
        if len(found.logprobs) < asked.stop:
            return None
        logs, tops = found.logprobs[asked], found.top_logprobs[asked]
        likeliest = len(tops) == len(logs) and all(
            log >= max(top.values(), default=0.0) for log, top in zip(logs, tops, strict=True)
        )
        return Told(logs, likeliest)

    def _settle(self, question: Question) -> None:
        """Find out which fields the server takes, and whether it tells likelihoods."""
        try:
            self.complete(self._encode(question.problem.prompt_text), Draw(max_tokens=1))
        except Refused as refused:
            if refused.status not in (400, 422):
                raise
            self._client = self._connect(model=self._client.model)
        self._tells_likelihood = self._likelihood(question) is not None

    def _likelihood(self, question: Question) -> float | None:
        problem = question.problem
        prompt, completion = map(self._encode, (problem.prompt_text, problem.completion_text))
        told = self.score(prompt, completion)
        return None if told is None else sum(told.logs) / len(told.logs)

    def _answer(self, question: Question, sampling: Sampling, sample: int) -> Answer:
        prompt = self._encode(question.problem.prompt_text)
        draw = Draw(
            max_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=sampling.seed_of(question.problem.prompt, sample) % 2**31,
        )
        found = self.complete(prompt, draw)
        text = found.text
        if found.token_ids:
            text = self.tokenizer.decode(list(found.token_ids))
        counted = found.completion_tokens or len(found.token_ids) or len(self._encode(text))
        return judge(
            question,
            text,
            num_tokens=counted,
            prompt_tokens=len(prompt),
            log_likelihood=None,
            sample=sample,
        )

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text).input_ids
        return ids
