"""Ask a served model the problems of the shipped tasks, and score its answers as `evaluate` does.

    python benchmarks/served_accuracy.py out/h7 --engine vllm --problems 100 --at-once 16

The engine is started and stopped; prompts go over HTTP as token ids, greedily, so many at a time.
"""

import argparse
import json
import math
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean

from hybridize import tasks
from hybridize.engines import Client, ServeSettings, find_engine, serving
from hybridize.engines.client import Sampling
from hybridize.models.loading import load_tokenizer

KINDS = ("recall", "add", "chain", "sort", "edit")
MAX_TOKENS = 192
SEED = 2


def main() -> None:
    """Start the engine, ask, print the scores as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--engine", default="vllm")
    parser.add_argument("--tokenizer", type=Path, help="folder of it; by default that of the model")
    parser.add_argument("--problems", type=int, default=100)
    parser.add_argument("--at-once", type=int, default=16)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()
    asked = [
        tasks.make(kind, seed=SEED, index=index, split="heldout")
        for kind in KINDS
        for index in range(given.problems)
    ]
    tokenizer = load_tokenizer(given.tokenizer or given.model)
    engine = find_engine(given.engine)
    settings = ServeSettings(
        model=given.model,
        max_sequences=given.at_once,
        context_tokens=1024,
        dtype=given.dtype,
        threads=given.threads,
    )

    with serving(engine, settings) as server:
        client = Client(server.url, fields=engine.request_fields)

        def ask(problem: tasks.Problem) -> bool:
            prompt = tokenizer(problem.prompt_text).input_ids
            made = client.complete(prompt, Sampling(max_tokens=MAX_TOKENS))
            text = tokenizer.decode(made.token_ids) if made.token_ids else made.text
            return tasks.read_answer(text) == problem.answer

        started = time.perf_counter()
        with ThreadPoolExecutor(given.at_once) as pool:
            right = list(pool.map(ask, asked))
        seconds = time.perf_counter() - started
        peak = server.peak_memory()

    shares = {
        kind: fmean(one for problem, one in zip(asked, right, strict=True) if problem.kind == kind)
        for kind in KINDS
    }
    errors = [share * (1 - share) / given.problems for share in shares.values()]
    rows = {kind: round(share, 4) for kind, share in shares.items()}
    rows["overall"] = round(fmean(shares.values()), 4)
    rows["standard error"] = round(math.sqrt(sum(errors)) / len(KINDS), 4)
    told = {"engine": engine.name, "version": engine.version(), "dtype": given.dtype}
    told |= {"seconds": round(seconds, 1), "peak_memory": peak, "accuracy": rows}
    print(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
