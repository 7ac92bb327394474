"""Asking vLLM, in its own Python, what a folder answers, and our own model the same."""

import json
import subprocess
import tempfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hybridize.core.settings import make_environment
from hybridize.engines.vllm import find_vllm
from hybridize.models import load_model

DRIVER = Path(__file__).with_name("driver.py")
LENGTHS = (1, 2, 5, 17, 64, 100, 257, 299)
"""Tokens of the prompts: from one to more than two chunks."""
NEW_TOKENS = 64


@cache
def get_python() -> str:
    """Return the Python that has vLLM and this package, or skip the test."""
    found = find_vllm()
    if found.package is None:
        pytest.skip(f"vLLM is not installed for {found.python} (set HYBRIDIZE_VLLM_PYTHON)")
    if not found.has_plugin:
        pytest.skip(f"this package is not installed for {found.python} (pip install --no-deps)")
    return found.python


@dataclass
class Work:
    """A folder and what it is asked."""

    folder: Path
    rounds: list[list[list[int]]]
    settings: dict[str, Any] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        """Return it as the driver reads it."""
        settings = {
            "model": str(self.folder),
            "skip_tokenizer_init": True,
            "dtype": "float32",
            "enforce_eager": True,
            "enable_prefix_caching": False,
            "max_model_len": 384,
            "max_num_seqs": 16,
            "max_num_batched_tokens": 128,
            "max_logprobs": -1,
            "seed": 0,
        }
        return {
            "settings": settings | self.settings,
            "rounds": self.rounds,
            "tokens": NEW_TOKENS,
        }


def ask(work: list[Work]) -> list[Any]:
    """Return, for each piece of work and round, the answer to each prompt; or what went wrong."""
    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder) / "work.json", Path(folder) / "answers.json"
        given.write_text(json.dumps([piece.describe() for piece in work]))
        done = subprocess.run(
            [get_python(), str(DRIVER), str(given), str(made)],
            env=make_environment({"OMP_NUM_THREADS": "1"}),
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return json.loads(made.read_text())


def make_prompts(vocab: int, lengths: tuple[int, ...] = LENGTHS, seed: int = 5) -> list[list[int]]:
    """Draw prompts of these lengths that avoid the special tokens."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, vocab, (n,), generator=generator).tolist() for n in lengths]


@torch.no_grad()
def expect(folder: Path, prompt: list[int], ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return what our model gives the prompt's tokens, and all tokens at each new place.

    The continuation is fed to it in one go, so that its own greedy choices can be told from these.
    """
    model = _load(folder)
    logits_TV = model(torch.tensor([prompt + ids])).logits[0]
    logprobs_TV = logits_TV.double().log_softmax(-1)
    told = logprobs_TV[: len(prompt) - 1].gather(1, torch.tensor(prompt[1:])[:, None])[:, 0]
    return told.numpy(), logprobs_TV[len(prompt) - 1 : -1].numpy()


@cache
def _load(folder: Path) -> Any:
    return load_model(folder, dtype=torch.float32)


def check(folder: Path, prompts: list[list[int]], answers: list[Any], near: float = 1e-3) -> float:
    """Hold answers against our model: same greedy ids, log probabilities within `near`.

    Returns the largest difference of a log probability.
    """
    worst = 0.0
    for prompt, answer in zip(prompts, answers, strict=True):
        told, places = expect(folder, prompt, answer["ids"])
        assert len(answer["ids"]) == NEW_TOKENS
        assert places.argmax(1).tolist() == answer["ids"], f"prompt of {len(prompt)} tokens"
        worst = max(
            worst,
            float(np.abs(places - np.array(answer["places"])).max()),
            float(np.abs(told - np.array(answer["prompt"])).max(initial=0)),
        )
    assert worst <= near, f"log probabilities differ by {worst:.1e}"
    return worst
