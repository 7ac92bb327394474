"""Ask models the problems of the shipped tasks in this process and in engines, and compare.

    python benchmarks/served_accuracy.py shipped out/h7 --engines llama.cpp,vllm --out served

Every engine is started and stopped; prompts go over HTTP as token ids, greedily, so many at a time.
Each model's answers there are compared with its answers here, problem by problem. Result files go
to `--out`; one that is there already is read, so that engines can be asked in several calls.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from hybridize.cli.options import name_model
from hybridize.cli.serve import find_model
from hybridize.core.artifacts import read_json
from hybridize.engines import ServeSettings, find_engine, serving
from hybridize.engines.choose import choose_engine
from hybridize.evaluation.endpoint import Endpoint
from hybridize.exports.ready import make_ready
from hybridize.models.loading import load_tokenizer
from hybridize.stages import evaluate
from hybridize.tasks.words import EOS

HERE = "here"
KINDS = ("recall", "add", "chain", "sort", "edit")


def ask(model: str, engine: str, settings: evaluate.EvaluateSettings, given: argparse.Namespace):
    """Evaluate one model in one engine; write its result and answers."""
    folder, name = find_model(model), name_model(model)
    out = given.out / f"{name}-{engine}"
    if out.with_name(f"{out.name}.json").exists():
        return
    if engine == HERE:
        subject = evaluate.load_subject(folder, name=name)
        evaluate.run(subject, settings, out, name=out.name)
        return
    other = HERE, evaluate.read_answers(given.out / f"{name}-{HERE}") or ()
    with tempfile.TemporaryDirectory() as temporary:
        format = choose_engine(folder, engine).format
        ready = folder
        if format is not None:
            ready = make_ready(folder, Path(temporary) / format, format=format, dtype="float32")
        asked = ServeSettings(
            model=ready,
            name="model",
            max_sequences=given.at_once,
            context_tokens=2048,
            dtype="float32",
            threads=given.threads,
        )
        with serving(find_engine(engine), asked) as server:
            subject = Endpoint(server.url, load_tokenizer(folder), name=out.name)
            evaluate.run(subject, settings, out, name=out.name, other=other)


def read_texts(folder: Path) -> list[str]:
    """Return the answers in a folder, without the mark of the end, which some servers leave out."""
    found = evaluate.read_answers(folder) or ()
    return [one.generated.replace(EOS, "").strip() for one in found]


def table(names: Sequence[str], engines: Sequence[str], out: Path) -> None:
    """Print a row a model and engine, with how many answers are those given here."""
    print("| model | in | " + " | ".join(KINDS) + " | overall | answers as here |")
    print("|---" * (len(KINDS) + 4) + "|")
    for name in names:
        here = read_texts(out / f"{name}-{HERE}")
        for engine in (HERE, *engines):
            folder = out / f"{name}-{engine}"
            if not folder.exists():
                continue
            found = read_json(folder.with_name(f"{folder.name}.json"))
            same = sum(one == two for one, two in zip(here, read_texts(folder), strict=True))
            kinds = (f"{found['kinds'][kind]['accuracy']:.2f}" for kind in KINDS)
            whole = found["overall"]
            overall = f"{whole['accuracy']:.3f} ± {whole['standard_error']:.3f}"
            cells = (name, engine, *kinds, overall, f"{same} of {len(here)}")
            print(f"| {' | '.join(cells)} |")


def main() -> None:
    """Ask what is not yet asked, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--engines", default="hybridize,llama.cpp,vllm")
    parser.add_argument("--problems", type=int, default=100, help="of each kind")
    parser.add_argument("--at-once", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    engines = given.engines.split(",")
    settings = evaluate.EvaluateSettings(problems=given.problems, batch=given.at_once)
    for model in given.models:
        for engine in (HERE, *engines):
            ask(model, engine, settings, given)
    table([name_model(model) for model in given.models], engines, given.out)


if __name__ == "__main__":
    main()
