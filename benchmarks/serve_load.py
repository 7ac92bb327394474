"""A thousand requests at once: no crash, no answer that depends on the others, memory that is flat.

    python benchmarks/serve_load.py MODEL --engine hybridize --out benchmarks/tables

Requests are of mixed lengths and kinds: whole and streamed, text and chat. Some are given up in
mid-answer, some are malformed. Every answer is held against that of the same request sent alone
before, at temperature 0. MODEL is what the engine reads: a folder, or a GGUF file for llama.cpp.
"""

import argparse
import json
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlsplit

from hybridize import tasks
from hybridize.engines import Client, Sampling, ServeSettings, find_engine, serving
from hybridize.engines.http import Connection, Refused

MALFORMED = (
    b"{",
    b"[]",
    b'"recall"',
    b"\xff\xfe\x00",
    b'{"prompt": 7}',
    b'{"prompt": "a", "max_tokens": -3}',
    b'{"prompt": "a", "max_tokens": "many"}',
    b'{"prompt": "a", "temperature": "hot"}',
    b'{"prompt": [1, 2, "three"]}',
    b'{"prompt": [99999999]}',
    b'{"messages": "hello"}',
    b'{"messages": [{"role": 1}]}',
)
"""Bodies that no server can answer."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request of the load."""

    prompt: str
    max_tokens: int
    kind: str
    """whole, stream, chat, cancel or malformed."""

    @property
    def key(self) -> tuple[str, int, bool]:
        """What its answer depends on."""
        return self.prompt, self.max_tokens, self.kind == "chat"


@dataclass(kw_only=True)
class Outcome:
    """What came of a load."""

    engine: str
    requests: int
    at_once: int
    seconds: float = 0.0
    answered: int = 0
    tokens: int = 0
    cancelled: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    """Status of malformed requests -> how many."""
    failed: list[str] = field(default_factory=list)
    """Requests that got no proper answer."""
    different: list[dict[str, object]] = field(default_factory=list)
    """Answers that are not those of the same request alone."""
    memory_mib: list[tuple[float, float]] = field(default_factory=list)
    """Seconds since the start, and the memory of the server."""
    is_well: bool = False
    """Whether it answers afterwards as it did before."""

    def grown_mib(self) -> float:
        """Return how far the memory grew over the last three quarters of the load."""
        kept = [value for _, value in self.memory_mib]
        quarter = max(1, len(kept) // 4)
        first, last = kept[quarter : 2 * quarter] or kept, kept[-quarter:]
        return sum(last) / len(last) - sum(first) / len(first)

    def __str__(self) -> str:
        memory = [value for _, value in self.memory_mib] or [0.0]
        return (
            f"{self.engine}: {self.requests} requests, {self.at_once} at once, "
            f"{self.seconds:.0f} s; {self.answered} answered ({self.tokens} tokens, "
            f"{self.tokens / max(self.seconds, 1e-9):.0f} tok/s), {self.cancelled} given up, "
            f"malformed answered with {self.refused}; {len(self.failed)} failed, "
            f"{len(self.different)} answers differ from the same request alone; memory "
            f"{memory[0]:.0f} MiB at first, at most {max(memory):.0f}, grown by "
            f"{self.grown_mib():.1f} over the last three quarters; well afterwards: {self.is_well}"
        )


def draw_requests(num_requests: int, *, seed: int, most_tokens: int = 160) -> list[Request]:
    """Draw a load: of ten requests eight are answered, one is given up and one is malformed.

    A quarter as many prompts as requests, so that each comes several times beside others.
    """
    draws = random.Random(seed)
    prompts = [
        tasks.draw(seed=seed, index=index, split="heldout").prompt
        for index in range(max(1, num_requests // 4))
    ]
    lengths = [draws.choice([1, 4, 16, 48, most_tokens]) for _ in prompts]
    kinds = ["whole", "whole", "stream", "stream", "stream", "chat", "chat", "chat"]
    kinds += ["cancel", "malformed"]
    made: list[Request] = []
    for place in range(num_requests):
        which = draws.randrange(len(prompts))
        made.append(
            Request(
                prompt=prompts[which],
                max_tokens=lengths[which],
                kind=kinds[place % len(kinds)],
            )
        )
    draws.shuffle(made)
    return made


def ask(client: Client, request: Request) -> tuple[str, int]:
    """Send a request; return the text of the answer and its tokens."""
    sampling = Sampling(max_tokens=request.max_tokens)
    if request.kind == "chat":
        messages = [{"role": "user", "content": request.prompt}]
        found = client.chat(messages, sampling)
        return found.thinking + found.text, found.completion_tokens or 0
    text = f"<bos> <user> {request.prompt} <assistant> <think>"
    if request.kind == "whole":
        found = client.complete(text, sampling)
        return found.text, found.completion_tokens or 0
    pieces = list(client.stream(text, sampling))
    return "".join(piece.text for piece in pieces), pieces[-1].completion_tokens or 0


def give_up(client: Client, request: Request, draws: random.Random) -> None:
    """Begin a request and go away: after a few pieces, or before the answer."""
    text = f"<bos> <user> {request.prompt} <assistant> <think>"
    if draws.random() < 0.5:
        stream = client.stream(text, Sampling(max_tokens=400, ignore_end=True))
        for _ in range(draws.randrange(1, 6)):
            next(stream, None)
        stream.close()
        return
    parts = urlsplit(client.url)
    body = json.dumps({"model": client.model, "prompt": text, "max_tokens": 400}).encode()
    with socket.create_connection((parts.hostname, parts.port), timeout=60) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        time.sleep(draws.random() * 0.2)


def send_malformed(client: Client, draws: random.Random) -> int:
    """Send a body that means nothing; return the status of the answer."""
    path = "/v1/chat/completions" if draws.random() < 0.3 else "/v1/completions"
    try:
        with Connection(client.url + path, timeout=60) as connection:
            headers = {"Content-Type": "application/json"}
            return connection.send("POST", draws.choice(MALFORMED), headers).status
    except Refused as refused:
        return refused.status


def run_load(
    client: Client,
    requests: Sequence[Request],
    *,
    at_once: int,
    engine: str,
    read_memory=lambda: 0,
    say=print,
) -> Outcome:
    """Send every request alone, then all of them `at_once` at a time; compare."""
    outcome = Outcome(engine=engine, requests=len(requests), at_once=at_once)
    answered = [one for one in requests if one.kind not in ("cancel", "malformed")]
    alone = {one.key: one for one in answered}
    expected = {key: ask(client, one)[0] for key, one in alone.items()}
    say(f"{len(expected)} different requests sent alone")
    lock, started = threading.Lock(), time.monotonic()
    statuses: Counter[str] = Counter()

    def handle(place: int) -> None:
        request, draws = requests[place], random.Random(place)
        try:
            if request.kind == "cancel":
                give_up(client, request, draws)
                with lock:
                    outcome.cancelled += 1
                return
            if request.kind == "malformed":
                with lock:
                    statuses[str(send_malformed(client, draws))] += 1
                return
            text, num_tokens = ask(client, request)
        except (OSError, HTTPException, Exception) as error:
            with lock:
                outcome.failed.append(f"{request.kind}: {error}")
            return
        with lock:
            outcome.answered += 1
            outcome.tokens += num_tokens
            if text != expected[request.key]:
                outcome.different.append(
                    {**asdict(request), "alone": expected[request.key], "together": text}
                )

    watch = threading.Event()

    def note_memory() -> None:
        while not watch.wait(0.25):
            moment = time.monotonic() - started
            outcome.memory_mib.append((round(moment, 2), read_memory() / 2**20))

    noting = threading.Thread(target=note_memory)
    noting.start()
    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(handle, range(len(requests))))
    outcome.seconds = time.monotonic() - started
    watch.set()
    noting.join()
    outcome.refused = dict(statuses)
    sample = list(alone.items())[:8]
    outcome.is_well = all(ask(client, one)[0] == expected[key] for key, one in sample)
    return outcome


def main() -> None:
    """Start the engine, put it under load, print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--engine", default="hybridize")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--at-once", type=int, default=16)
    parser.add_argument("--max-sequences", type=int, default=16)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    engine = find_engine(asked.engine)
    settings = ServeSettings(
        model=asked.model,
        name="model",
        max_sequences=asked.max_sequences,
        context_tokens=2048,
        dtype=asked.dtype,
        threads=asked.threads,
    )
    fields = {"cache_prompt": False} if asked.engine == "llama.cpp" else {}
    with serving(engine, settings) as server:
        client = Client(server.url, model="model", fields=fields)
        outcome = run_load(
            client,
            draw_requests(asked.requests, seed=asked.seed),
            at_once=asked.at_once,
            engine=f"{engine.name} {engine.version()}",
            read_memory=server.memory,
        )
        server.check()
    print(outcome)
    for one in outcome.different[:5]:
        print(json.dumps(one))
    for line in outcome.failed[:5]:
        print(line)
    if asked.out is not None:
        asked.out.mkdir(parents=True, exist_ok=True)
        values = asdict(outcome) | {"grown_mib": outcome.grown_mib(), "seed": asked.seed}
        path = asked.out / f"serve_load-{engine.name}.json"
        path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
