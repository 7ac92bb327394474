"""Which matrices of a model suffer from 4 bits, and what llama.cpp's own rounding adds to it.

    HYBRIDIZE_LLAMA_SERVER=PATH python benchmarks/quantization.py shipped out/student \
        > benchmarks/tables/quantization.md

For each model three tables: one part of it in 4 bits and the rest whole; everything in 4 bits but
some parts in q8_0; and, where llama.cpp is installed, KL of the file's weights alone beside that of
the engine, over the same greedy answers. KL(unquantised || quantised) in millionths of a nat.
"""

import argparse
import copy
import math
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from machine import find_processor, table

from hybridize import tasks
from hybridize.engines import Client, Sampling, ServeSettings, find_engine, serving
from hybridize.evaluation.rounding import Row, measure_rounding
from hybridize.exports.gguf import FILE, import_gguf
from hybridize.exports.gguf_back import read_back
from hybridize.exports.gguf_tensors import find_mixer_sizes
from hybridize.exports.ready import make_ready
from hybridize.models.hybrid import HybridForCausalLM
from hybridize.models.model import Model, load
from hybridize.training.data import TaskRows

FINE = "Q8_0"
PARTS = {
    "embedding": r"embed_tokens",
    "head": r"lm_head",
    "attention: queries": r"self_attn\.q_proj",
    "attention: keys": r"self_attn\.k_proj",
    "attention: values": r"self_attn\.v_proj",
    "attention: output": r"self_attn\.o_proj",
    "MLP: gate": r"mlp\.gate_proj",
    "MLP: up": r"mlp\.up_proj",
    "MLP: down": r"mlp\.down_proj",
    "mixer: input projection": r"mixer\.in_proj",
    "mixer: output projection": r"mixer\.out_proj",
}
KEEPS = {
    "nothing": r"(?!)",
    "embedding, head": r"embed_tokens|lm_head",
    "mixers": r"mixer",
    "attention": r"self_attn",
    "embedding, head, mixers": r"embed_tokens|lm_head|mixer",
    "embedding, head, attention (what is written)": r"embed_tokens|lm_head|self_attn",
    "all but MLPs": r"embed_tokens|lm_head|self_attn|mixer",
}
Choose = Callable[[str], str | None]


def round_matrices(network: HybridForCausalLM, choose: Choose) -> HybridForCausalLM:
    """Return a copy with each matrix rounded to the type that `choose` names, None for none."""
    gguf, copied = import_gguf(), copy.deepcopy(network)
    with torch.no_grad():
        for name, weight in copied.named_parameters():
            kind = choose(name) if weight.ndim == 2 and name.endswith("weight") else None
            if kind is not None:
                raw = gguf.GGMLQuantizationType[kind]
                blocks = gguf.quants.quantize(weight.float().numpy(), raw)
                weight.copy_(torch.from_numpy(gguf.quants.dequantize(blocks, raw).copy()))
    return copied


def count_share(network: HybridForCausalLM, pattern: str) -> float:
    """Return the share of the parameters in the matrices of a part."""
    sizes = {name: weight.numel() for name, weight in network.named_parameters()}
    part = sum(size for name, size in sizes.items() if re.search(pattern, name))
    return part / sum(sizes.values())


def tell(found: float, error: float | None) -> str:
    """Write a KL in millionths of a nat."""
    return f"{1e6 * found:.1f} ± {1e6 * (error or 0):.1f}"


def list_parts(network: HybridForCausalLM, rows: list[Row], kind: str) -> Iterator[tuple[str, ...]]:
    """Yield one part in few bits, the rest whole."""
    for label, pattern in PARTS.items():
        share = count_share(network, pattern)
        if share:
            rounded = round_matrices(
                network, lambda n, p=pattern: kind if re.search(p, n) else None
            )
            found = measure_rounding(network, rounded, rows)
            yield label, f"{share:.1%}", tell(found.kl, found.kl_error), f"{found.top1:.3%}"


def list_rows(network: HybridForCausalLM, rows: list[Row], kind: str) -> Iterator[tuple[str, ...]]:
    """Yield the input projections of mixers in few bits, some rows at a time."""
    sizes, first = find_mixer_sizes(network), 0
    for label, count in zip(("z", "x", "B", "C", "dt"), sizes.rows if sizes else (), strict=False):
        rounded = copy.deepcopy(network)
        matrices = round_matrices(network, lambda n: kind if "in_proj" in n else None).state_dict()
        with torch.no_grad():
            for name, weight in rounded.named_parameters():
                if "mixer.in_proj" in name:
                    weight[first : first + count] = matrices[name][first : first + count]
        found = measure_rounding(network, rounded, rows)
        yield f"its rows of {label}", "", tell(found.kl, found.kl_error), f"{found.top1:.3%}"
        first += count


def list_keeps(network: HybridForCausalLM, rows: list[Row], kind: str) -> Iterator[tuple[str, ...]]:
    """Yield everything in few bits but some parts."""
    for label, pattern in KEEPS.items():
        if label != "nothing" and not count_share(network, pattern):
            continue
        rounded = round_matrices(network, lambda n, p=pattern: FINE if re.search(p, n) else kind)
        found = measure_rounding(network, rounded, rows)
        yield label, tell(found.kl, found.kl_error), f"{found.top1:.3%}"


def list_served(model: Model, types: list[str], problems: int) -> Iterator[tuple[str, ...]]:
    """Yield the KL of weights alone and of the engine, over the engine's own greedy answers."""
    engine = find_engine("llama.cpp")
    prompts = [
        model.tokenizer(tasks.make(kind, seed=5, index=i, split="heldout").prompt_text).input_ids
        for kind in tasks.KINDS
        for i in range(problems)
    ]
    sampling = Sampling(max_tokens=192, logprobs=model.network.config.vocab_size)
    for name in types:
        with tempfile.TemporaryDirectory() as temporary:
            folder = make_ready(model.name, Path(temporary) / name, format="gguf", dtype=name)
            rounded = read_back(model.network, folder / FILE)
            asked = ServeSettings(model=folder, max_sequences=1, context_tokens=1024, threads=1)
            with serving(engine, asked) as server:
                client = Client(server.url, fields=engine.request_fields)
                answers = [client.complete(prompt, sampling) for prompt in prompts]
        weights, served, same, count = 0.0, 0.0, 0, 0
        for prompt, answer in zip(prompts, answers, strict=True):
            whole_TV, rounded_TV = (
                look(network, prompt, answer.token_ids) for network in (model.network, rounded)
            )
            engine_TV = torch.full_like(whole_TV, -math.inf)
            for place, top in enumerate(answer.top_logprobs):
                engine_TV[place, list(top)] = torch.tensor(list(top.values())).double()
            p_TV, seen_TV = whole_TV.exp(), engine_TV.isfinite()
            weights += float((p_TV * (whole_TV - rounded_TV)).sum())
            served += float((p_TV * (whole_TV - engine_TV))[seen_TV].sum())
            same += int((whole_TV.argmax(-1) == engine_TV.argmax(-1)).sum())
            count += len(answer.token_ids)
        yield (
            name,
            *(f"{1e6 * one / count:.1f}" for one in (weights, served)),
            f"{same / count:.3%}",
        )


@torch.no_grad()
def look(network: HybridForCausalLM, prompt: list[int], answer: tuple[int, ...]) -> torch.Tensor:
    """Return the log-probabilities at each place of an answer, (T, V)."""
    logits_TV = network(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
    return logits_TV.double().log_softmax(-1)


def main() -> None:
    """Print the tables of all models."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--rows", type=int, default=24, help="of 1,024 held-out tokens")
    parser.add_argument("--problems", type=int, default=10, help="of each kind, in llama.cpp")
    parser.add_argument("--type", default="q4_0")
    parser.add_argument("--only", default="parts,keeps,served")
    given = parser.parse_args()
    torch.set_num_threads(1)
    engine, kind = find_engine("llama.cpp").version(), given.type.upper()
    print(f"{find_processor()}; {engine or 'llama.cpp is not installed'}; {given.type}.")
    for path in given.models:
        model = load(path, name=path, dtype="float32")
        source = TaskRows(model.tokenizer, sequence_length=1024, seed=7, split="heldout")
        rows, network = [source.row(i) for i in range(given.rows)], model.network.eval()
        print(f"\n{Path(path).parent.name if '/' in path else path}  {model.layout}")
        if "parts" in given.only:
            head = (
                f"only this in {given.type}",
                "of all weights",
                "KL, 1e-6 nats",
                "same top token",
            )
            lines = [*list_parts(network, rows, kind), *list_rows(network, rows, kind)]
            print("\n" + table(head, lines), flush=True)
        if "keeps" in given.only:
            head = (f"{given.type}, but q8_0", "KL, 1e-6 nats", "same top token")
            print("\n" + table(head, [*list_keeps(network, rows, kind)]), flush=True)
        if "served" in given.only and engine:
            types = ["float32", "q8_0", given.type]
            head = ("file", "KL of its weights", "KL in llama.cpp", "same top token")
            print("\n" + table(head, [*list_served(model, types, given.problems)]), flush=True)


if __name__ == "__main__":
    main()
