"""Presets of tasks for lm-evaluation-harness, and where their data comes from."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One benchmark of a paper, and the task that runs it."""

    name: str
    """As the paper calls it."""
    task: str | None
    """Its task in lm-evaluation-harness, or of this package; None where there is none."""
    dataset: str | None = None
    """Of the Hugging Face hub, to be downloaded once."""
    metric: str = ""
    """The number that the paper's is compared with."""
    teacher: float | None = None
    """What the paper reads for its teacher (Apriel-Nemotron-15B-Thinker)."""
    student: float | None = None
    """What the paper reads for H-30-SFT."""
    note: str = ""
    """What else is needed."""

    @property
    def download(self) -> str | None:
        """The command that fetches the data."""
        return None if self.dataset is None else f"hf download {self.dataset} --repo-type dataset"


APRIEL_H1 = (
    Benchmark(
        name="MATH500",
        task="minerva_math500",
        dataset="HuggingFaceH4/MATH-500",
        metric="math_verify",
        teacher=0.90,
        student=0.92,
        note="pip install 'lm-eval[math]'",
    ),
    Benchmark(
        name="GSM8K",
        task="gsm8k",
        dataset="openai/gsm8k",
        metric="exact_match",
        teacher=0.97,
        student=0.95,
    ),
    Benchmark(
        name="IFEval",
        task="leaderboard_ifeval",
        dataset="wis-k/instruction-following-eval",
        metric="prompt_level_strict_acc",
        teacher=0.82,
        student=0.80,
        note="pip install 'lm-eval[ifeval]'",
    ),
    Benchmark(
        name="MBPP",
        task="mbpp",
        dataset="google-research-datasets/mbpp",
        metric="pass_at_1",
        teacher=0.86,
        student=0.85,
        note="runs the code that the model writes: only in a sandbox, with HF_ALLOW_CODE_EVAL=1",
    ),
    Benchmark(
        name="GPQA-Diamond",
        task="gpqa_diamond_cot_zeroshot",
        dataset="Idavidrein/gpqa",
        metric="exact_match",
        teacher=0.59,
        student=0.55,
        note="its terms are accepted on its page first, then `hf auth login`",
    ),
    Benchmark(
        name="AIME24",
        task="aime24",
        dataset="Maxwell-Jia/AIME_2024",
        metric="exact_match",
        teacher=0.70,
        student=0.65,
    ),
    Benchmark(
        name="AIME25",
        task="aime25",
        dataset="math-ai/aime25",
        metric="exact_match",
        teacher=0.54,
        student=0.49,
    ),
    Benchmark(
        name="AMC23",
        task="hybridize_amc23",
        dataset="math-ai/amc23",
        metric="exact_match",
        teacher=0.94,
        student=0.94,
    ),
    Benchmark(
        name="MT-Bench",
        task=None,
        metric="mean of a judge, 1 to 10",
        teacher=8.30,
        student=8.58,
        note="a judge model scores it, which the harness does not have: evalchemy's task MTBench, "
        "through the endpoint of `hybridize serve`",
    ),
)
"""The nine benchmarks of Apriel-H1 (arXiv 2511.02651, figure 3), read from the figure. The paper
runs them with lm-evaluation-harness and evalchemy through a server, and does not say how many
tokens an answer may have, nor how answers are drawn; here these are the settings of the tasks."""

PRESETS = {"apriel-h1": APRIEL_H1}
"""Name in `--suite lm-eval:NAME` -> its benchmarks."""


def expand(names: tuple[str, ...]) -> tuple[str, ...]:
    """Replace each preset by its tasks; benchmarks without one are left out."""
    tasks: list[str] = []
    for name in names:
        for entry in PRESETS.get(name, ()):
            if entry.task is not None:
                tasks.append(entry.task)
        if name not in PRESETS:
            tasks.append(name)
    return tuple(dict.fromkeys(tasks))


def find_benchmark(task: str) -> Benchmark | None:
    """Return what is known of a task; None where no preset names it."""
    known = [entry for entries in PRESETS.values() for entry in entries]
    return next((entry for entry in known if entry.task == task), None)


def describe_missing(names: tuple[str, ...]) -> list[str]:
    """Say of each benchmark of the presets in `names` that has no task, what runs it."""
    return [
        f"{entry.name} has no task in the harness: {entry.note}."
        for name in names
        for entry in PRESETS.get(name, ())
        if entry.task is None
    ]
