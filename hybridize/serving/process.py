"""What the server's process puts together: the model, its loop, and what answers requests."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hybridize.core.errors import MachineError, ModelError
from hybridize.core.settings import read_settings
from hybridize.models.model import Model, load
from hybridize.ops import forms
from hybridize.serving.asked import Served
from hybridize.serving.counters import Counters
from hybridize.serving.handler import App
from hybridize.serving.loop import Loop
from hybridize.serving.stepping import Stepper
from hybridize.serving.text import SharedTokenizer
from hybridize.training.device import choose_device


def make_app(asked: argparse.Namespace, on_failure: Callable[[], None]) -> App:
    """Load a model and put everything together that answers requests to it; nothing is started."""
    settings = read_settings()
    threads = asked.threads or settings.threads
    if threads is not None:
        torch.set_num_threads(threads)
    if settings.forms is not None:
        _prefer_forms(settings.forms)
    model = load(asked.model, name=asked.name or Path(asked.model).name, dtype=asked.dtype)
    network: Any = model.network
    network.to(choose_device(settings.device))
    config = network.config
    context_tokens = asked.context_tokens or config.max_position_embeddings
    if context_tokens > config.max_position_embeddings:
        raise ModelError(
            f"model {asked.model} has positions for {config.max_position_embeddings} tokens, not "
            f"for {context_tokens}. Ask for a shorter context."
        )
    stepper = Stepper(network, asked.max_sequences)
    if stepper.is_alone:
        print("one request at a time: products round by place here", flush=True)  # noqa: T201
    counters = Counters()
    tokenizer = None if model.tokenizer is None else SharedTokenizer(model.tokenizer)
    return App(
        served=Served(
            name=model.name,
            tokenizer=tokenizer,
            vocab_size=config.vocab_size,
            context_tokens=context_tokens,
        ),
        loop=Loop(stepper, counters, on_failure),
        counters=counters,
        ends=find_ends(model),
        api_key=settings.api_key,
        models={
            "max_model_len": context_tokens,
            "last_training_window": config.last_training_window,
            "layout": str(model.layout),
            "opens_thinking": tokenizer is not None and tokenizer.opens_thinking,
        },
    )


def _prefer_forms(text: str) -> None:
    try:
        forms.prefer(text)
    except ValueError as error:
        raise MachineError(f"environment variable HYBRIDIZE_FORMS: {error}.") from error


def find_ends(model: Model) -> frozenset[int]:
    """Return the tokens that end a text: those of generation_config.json, else the tokenizer's."""
    ends = getattr(model.network.generation_config, "eos_token_id", None)
    if ends is None:
        ends = getattr(model.tokenizer, "eos_token_id", None)
    return frozenset(() if ends is None else ends if isinstance(ends, list) else [ends])
