"""Who answers in a chat: a model in this process, or a server."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from hybridize.core.errors import RunError

if TYPE_CHECKING:
    from hybridize.serving.jobs import Job

Messages = list[dict[str, str]]
SECONDS_BETWEEN_LOOKS = 60.0


@dataclass(frozen=True, kw_only=True)
class Said:
    """A piece of an answer."""

    text: str = ""
    thinking: str = ""
    """What a server sorted out as thinking itself."""
    num_tokens: int = 0
    """Tokens of this piece."""
    conversation_tokens: int | None = None
    """At the end: tokens of the whole conversation."""


class Talker(Protocol):
    """Who answers."""

    greeting: str
    """One line that says who it is."""
    last_training_window: int | None
    """Tokens beyond which converted layers were never trained; None where not known."""
    opens_thinking: bool
    """Whether an answer begins with thinking, its mark being in the prompt."""

    def answer(self, messages: Messages, max_tokens: int) -> Iterator[Said]:
        """Yield the answer to a conversation as it comes."""
        ...

    def close(self) -> None:
        """End."""
        ...


class LocalTalker:
    """A model in this process, computed by the loop of `hybridize.serving`."""

    def __init__(self, model: str, device: str | None) -> None:
        from hybridize import api
        from hybridize.serving.counters import Counters
        from hybridize.serving.loop import Loop
        from hybridize.serving.process import find_ends
        from hybridize.serving.stepping import Stepper
        from hybridize.serving.text import SharedTokenizer

        loaded = api.load_model(model, device=device)
        self._tokenizer = SharedTokenizer(loaded.need_tokenizer())
        self._config: Any = loaded.network.config
        self._ends = find_ends(loaded)
        self.greeting = repr(loaded)
        self.last_training_window: int | None = self._config.last_training_window
        self.opens_thinking = self._tokenizer.opens_thinking
        self._loop = Loop(Stepper(loaded.network, 1), Counters(), on_failure=lambda: None)
        self._loop.start()

    def answer(self, messages: Messages, max_tokens: int) -> Iterator[Said]:
        """Yield the answer; without a chat template only the last message is read."""
        from hybridize.serving.jobs import Ended, Job
        from hybridize.serving.sampling import Drawing, Drawn
        from hybridize.serving.text import TextMaker

        prompt = tuple(self._encode(messages))
        room = self._config.max_position_embeddings - len(prompt)
        if room < 1:
            raise RunError(
                f"the conversation has {len(prompt)} tokens, and the model has positions for "
                f"{self._config.max_position_embeddings}. Begin another."
            )
        drawing, limit = Drawing(temperature=0), min(room, max_tokens)
        job = Job(prompt=prompt, max_tokens=limit, drawing=drawing, ends=self._ends)
        maker = TextMaker(self._tokenizer, prompt, (), skip_special=True)
        self._loop.submit(job)
        try:
            for event in job.read(SECONDS_BETWEEN_LOOKS):
                if isinstance(event, Ended):
                    yield self._finish(job, event, maker.finish())
                elif isinstance(event, Drawn):
                    text = "" if event.token in self._ends else maker.add(event.token)
                    yield Said(text=text, num_tokens=1)
        finally:
            job.is_cancelled = True

    def close(self) -> None:
        """End the loop."""
        self._loop.stop(0)

    def _encode(self, messages: Messages) -> list[int]:
        if not self._tokenizer.has_chat_template:
            return self._tokenizer.encode(messages[-1]["content"])
        return self._tokenizer.encode(self._tokenizer.render(messages), add_special=False)

    def _finish(self, job: "Job", event: Any, text: str) -> Said:
        if event.reason == "error":
            raise RunError(event.message)
        return Said(text=text, conversation_tokens=len(job.ids))


class RemoteTalker:
    """A server that speaks OpenAI's API."""

    def __init__(self, url: str, api_key: str | None) -> None:
        from hybridize.engines.client import Client

        self._client: Client = Client(url, api_key=api_key)
        told = self._client.get("/v1/models").get("data") or [{}]
        self.greeting = f"{self._client.model} at {self._client.url}"
        window = told[0].get("last_training_window")
        self.last_training_window = window if isinstance(window, int) else None
        self.opens_thinking = bool(told[0].get("opens_thinking"))

    def answer(self, messages: Messages, max_tokens: int) -> Iterator[Said]:
        """Yield the answer as it comes."""
        from hybridize.engines.client import Sampling

        counted, told, end = 0, None, None
        for piece in self._client.stream_chat(messages, Sampling(max_tokens=max_tokens)):
            has_text = bool(piece.text or piece.thinking)
            counted += has_text
            if piece.completion_tokens is not None:
                told, end = piece.completion_tokens, piece.prompt_tokens
            yield Said(text=piece.text, thinking=piece.thinking, num_tokens=int(has_text))
        total = None if told is None or end is None else told + end
        # Where pieces hold several tokens, or none that shows, the server's own count is right.
        yield Said(num_tokens=0 if told is None else told - counted, conversation_tokens=total)

    def close(self) -> None:
        """Do nothing: every request has its own connection."""
