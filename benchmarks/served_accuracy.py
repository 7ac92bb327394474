"""Ask a served model the problems of the shipped tasks, and score its answers as `evaluate` does.

    python benchmarks/served_accuracy.py out/h7 --engine vllm --problems 100 --at-once 16

The engine is started and stopped; prompts go over HTTP as token ids, greedily, so many at a time.
"""

import argparse
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hybridize import tasks
from hybridize.engines import Client, ServeSettings, find_engine, serving
from hybridize.engines.client import Sampling
from hybridize.evaluation.answers import Answer, problems, score
from hybridize.models.loading import load_tokenizer

KINDS = ("recall", "add", "chain", "sort", "edit")
MAX_TOKENS = 192


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
    asked = problems(KINDS, num_per_kind=given.problems, seed=2)
    tokenizer = load_tokenizer(given.tokenizer or given.model)
    engine = find_engine(given.engine)
    settings = ServeSettings(
        model=given.model,
        max_sequences=given.at_once,
        context_tokens=512,
        dtype=given.dtype,
        threads=given.threads,
    )

    with serving(engine, settings) as server:
        client = Client(server.url, fields=engine.request_fields)

        def ask(problem: tasks.Problem) -> Answer:
            prompt = tokenizer(problem.prompt_text).input_ids
            made = client.complete(prompt, Sampling(max_tokens=MAX_TOKENS))
            text = tokenizer.decode(made.token_ids) if made.token_ids else made.text
            found = tasks.read_answer(text)
            return Answer(
                kind=problem.kind,
                difficulty=problem.difficulty,
                right=found == problem.answer,
                finished=found is not None,
                num_tokens=len(made.token_ids),
                log_likelihood=0.0,
                prompt=problem.prompt,
                generated=text,
                expected=problem.completion_text,
            )

        started = time.perf_counter()
        with ThreadPoolExecutor(given.at_once) as pool:
            answers = list(pool.map(ask, asked))
        seconds = time.perf_counter() - started
        peak = server.peak_memory()

    kinds, overall = score(answers)
    rows = {name: [one.accuracy, one.standard_error] for name, one in kinds.items()}
    rows["overall"] = [overall.accuracy, overall.standard_error]
    told = {"engine": engine.name, "version": engine.version(), "dtype": given.dtype}
    told |= {"seconds": round(seconds, 1), "peak_memory": peak, "accuracy": rows}
    print(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
