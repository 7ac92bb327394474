"""Run by the Python that has vLLM: load folders one after the other and answer prompts.

    python driver.py WORK.json ANSWERS.json

Each piece of work is a folder, settings of `vllm.LLM`, and rounds of prompts (token ids), of which
those of a round are computed together. An answer has the ids of the continuation, the log
probabilities of the prompt's tokens, and those of all tokens at each place of the continuation.
"""

import gc
import json
import os
import sys
import traceback
from pathlib import Path


def main(work: Path, answers: Path) -> None:
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    made = []
    for piece in json.loads(work.read_text()):
        try:
            llm = LLM(**piece["settings"])
            made.append([answer(llm, prompts, piece["tokens"]) for prompts in piece["rounds"]])
            del llm
        except Exception:
            made.append(traceback.format_exc()[-4000:])
        gc.collect()
        cleanup_dist_env_and_memory()
    answers.write_text(json.dumps(made))


def answer(llm, prompts, num_tokens):
    from vllm import SamplingParams

    sampling = SamplingParams(
        temperature=0,
        max_tokens=num_tokens,
        ignore_eos=True,
        logprobs=-1,
        prompt_logprobs=0,
        detokenize=False,
    )
    given = [{"prompt_token_ids": prompt} for prompt in prompts]
    return [tell(output) for output in llm.generate(given, sampling, use_tqdm=False)]


def tell(output):
    made = output.outputs[0]
    prompt = [
        place[token].logprob
        for token, place in zip(output.prompt_token_ids, output.prompt_logprobs, strict=True)
        if place is not None
    ]
    places = [[place[token].logprob for token in sorted(place)] for place in made.logprobs]
    return {"ids": list(made.token_ids), "prompt": prompt, "places": places}


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
