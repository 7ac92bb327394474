"""The model card of an exported folder: what it is, what reads it, and what was verified."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from hybridize.core.exports import TARGETS, read_student
from hybridize.core.padding import plan_heads
from hybridize.exports.verify import Check
from hybridize.models.model import Model

_METADATA = "---\nlibrary_name: transformers\npipeline_tag: text-generation\n---"
_REPLACED = ("How to load", "Recipe")
"""Sections of a run's card that this one says otherwise."""
_LOADING = {
    "stock": """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
```

No remote code is run and no other package is needed. An OpenAI-compatible server:

```
hybridize serve FOLDER
vllm serve FOLDER
```""",
    "hybridize": """```python
import hybridize  # tells transformers of the architecture; no remote code is run
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
```

An OpenAI-compatible server, where hybridize is installed beside the engine:

```
hybridize serve FOLDER
vllm serve FOLDER
```""",
    "gguf": """```
llama-server -m FOLDER/model.gguf
hybridize serve FOLDER
```""",
    "apriel-h1": """```python
import hybridize  # tells transformers of the architecture; no remote code is run
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("FOLDER")
```""",
}


def write_card(
    model: Model,
    *,
    target: str,
    dtype: str,
    checks: Sequence[Check],
    unchecked: Mapping[str, str],
    origin: str | None,
) -> str:
    """Return the README.md of an exported folder.

    Args:
        model: that was written.
        target: name in `hybridize.core.exports.TARGETS`.
        dtype: type of the weights in the files.
        checks: that were passed.
        unchecked: program -> why it was not asked.
        origin: card of the run that made the model, whose scores and metadata are kept.
    """
    found = TARGETS[target]
    metadata, title, kept = _read_card(origin or "")
    parts = [
        metadata or _METADATA,
        title or f"# {model.name}",
        _describe(model, target, dtype),
        "## How to load and serve",
        _LOADING[found.format.partition("-unpadded")[0]],
        "\n".join(f"- {engine}: {limit}" for engine, limit in found.engines.items()),
        "## Verification",
        _tell_checks(checks, unchecked),
        *kept,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _describe(model: Model, target: str, dtype: str) -> str:
    config = model.network.config
    student = read_student(config.to_dict())
    lines = [
        f"Written by hybridize as `{TARGETS[target].class_name}` (format "
        f"{TARGETS[target].format}), weights in {dtype}. Teacher: {student.shape.family}, "
        f"{student.shape.num_layers} layers, of which {len(model.layout.converted)} are converted:",
        "",
        f"```\n{model.layout}\n```",
    ]
    heads = plan_heads(student.shape) if target == "granite" else None
    if heads is not None and heads.added_heads:
        lines += [
            "",
            f"{heads.added_heads} heads of zeros stand beside the {student.shape.num_heads} of "
            "the model, so that heads fill the hidden size; they change no number.",
        ]
    if config.last_training_window:
        lines += ["", f"Last trained on rows of {config.last_training_window} tokens."]
    return "\n".join(lines)


def _tell_checks(checks: Sequence[Check], unchecked: Mapping[str, str]) -> str:
    lines = [f"- {check}." for check in checks]
    lines += [f"- Not checked in {name}: {reason}" for name, reason in unchecked.items()]
    intro = "Against hybridize's own class, in float32, on real prompts of different lengths; the "
    intro += "continuations are greedy, in one batch. Numbers are in `verification.json`."
    return "\n".join([intro, "", *lines]) if checks else "\n".join(lines)


def _read_card(text: str) -> tuple[str, str, list[str]]:
    """Return metadata, title, and the sections worth keeping, of the card of a run."""
    found = re.match(r"---\n.*?\n---\n", text, re.DOTALL)
    metadata = found[0].strip() if found else ""
    body = text[found.end() :] if found else text
    head, *sections = re.split(r"^(?=## )", body, flags=re.MULTILINE)
    title = next((line for line in head.splitlines() if line.startswith("# ")), "")
    replaced = tuple(f"## {name}" for name in _REPLACED)
    kept = [one.strip() for one in sections if not one.startswith(replaced)]
    return metadata, title, kept


def plain_check(check: Check) -> dict[str, Any]:
    """Return a check as it stands in verification.json."""
    return {**vars(check), "passed": check.passed}
