"""The command chat: talk to a model in the terminal, with its speed after each answer."""

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hybridize.cli.options import DeviceOption, ModelArgument, say

if TYPE_CHECKING:
    from hybridize.api import Model as Model

Messages = list[dict[str, str]]


def add_to(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command(epilog='Example: echo "what is 2 4 + 1 8 ?" | hybridize chat shipped')(chat)


def chat(
    model: ModelArgument,
    max_new_tokens: Annotated[
        int, typer.Option(metavar="N", min=1, help="Longest answer, in tokens.")
    ] = 512,
    device: DeviceOption = None,
) -> None:
    """Talk to a model: a question a line, an empty line or the end of input stops."""
    from hybridize import api
    from hybridize.cli.watch import prepare_machine

    prepare_machine()
    loaded = api.load_model(model, device=device)
    loaded.need_tokenizer()
    say(repr(loaded))
    messages: Messages = []
    while question := _ask():
        messages.append({"role": "user", "content": question})
        answer, seconds, num_tokens = _answer(loaded, messages, max_new_tokens)
        messages.append({"role": "assistant", "content": answer})
        say(f"{num_tokens} tokens, {num_tokens / seconds:.1f} tok/s")


def _ask() -> str:
    typer.echo("> ", nl=False, err=True)
    return typer.get_text_stream("stdin").readline().strip()


def _answer(model: "Model", messages: Messages, max_new_tokens: int) -> tuple[str, float, int]:
    """Generate the answer to the last message, written out as it comes."""
    from transformers import TextStreamer

    tokenizer = model.tokenizer
    network: Any = model.network
    if tokenizer.chat_template:
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
    else:
        inputs = tokenizer(messages[-1]["content"], return_tensors="pt")
    inputs = {name: tensor.to(network.device) for name, tensor in inputs.items()}
    inputs.pop("token_type_ids", None)
    started = time.monotonic()
    ids = network.generate(
        **inputs,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        streamer=TextStreamer(tokenizer, skip_prompt=True),
    )
    produced = ids[0, inputs["input_ids"].shape[1] :]
    text = tokenizer.decode(produced, skip_special_tokens=True)
    return text, time.monotonic() - started, len(produced)
