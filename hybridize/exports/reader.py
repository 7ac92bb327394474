"""A program that loads an exported folder as its readers will, and writes down what it answers.

    python reader.py REQUEST.json OUT

It is run in a process of its own, by its path. Unless the request says otherwise it refuses to
import hybridize, so that what it answers is the work of transformers alone.
"""

import json
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

BARRED = "hybridize"


class _Barrier(MetaPathFinder):
    """Refuses to find this package."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        """Refuse one name and leave the others to the other finders."""
        if fullname.partition(".")[0] == BARRED:
            raise ImportError(f"{BARRED} is not to be imported here")


def main(request_file: str, out: str) -> None:
    """Answer the prompts of a request: OUT.safetensors holds logits, OUT.json the rest."""
    request = json.loads(Path(request_file).read_text(encoding="utf-8"))
    # The folder of this file is on the path of a program, and its modules have common names.
    sys.path[:] = [place for place in sys.path if Path(place) != Path(__file__).parent]
    if request["import_hybridize"]:
        sys.path.insert(0, request["package_parent"])
        __import__(BARRED)
    else:
        sys.meta_path.insert(0, _Barrier())
    import torch
    import transformers
    from safetensors.torch import save_file

    model = transformers.AutoModelForCausalLM.from_pretrained(
        request["folder"], dtype=torch.float32, local_files_only=True, trust_remote_code=False
    ).eval()
    logits = {}
    with torch.no_grad():
        for number, prompt in enumerate(request["prompts"]):
            made = model(torch.tensor([prompt]), logits_to_keep=request["tokens_compared"]).logits
            logits[str(number)] = made[0].float().contiguous()
        continuations = continue_greedily(
            model,
            request["prompts"],
            pad=request["pad"],
            never=request["never"],
            new_tokens=request["new_tokens"],
        )
    save_file(logits, f"{out}.safetensors")
    texts = request["texts"]
    read = transformers.AutoTokenizer.from_pretrained
    tokenizer: Any = read(request["folder"], local_files_only=True) if texts else None
    answer = {
        "class": type(model).__name__,
        "hybridize_imported": any(name.partition(".")[0] == BARRED for name in sys.modules),
        "versions": {"transformers": transformers.__version__, "torch": torch.__version__},
        "continuations": continuations,
        "tokens": [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts],
    }
    Path(f"{out}.json").write_text(json.dumps(answer), encoding="utf-8")


def continue_greedily(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    pad: int,
    never: Sequence[int],
    new_tokens: int,
) -> list[list[int]]:
    """Continue all prompts greedily in one left-padded batch, without the tokens in `never`.

    What a call leaves unsaid, `generate` takes from the model's own settings, so these are
    replaced.
    """
    import torch
    from transformers import GenerationConfig

    longest = max(map(len, prompts))
    ids = [[pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    model.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=new_tokens,
        pad_token_id=pad,
        suppress_tokens=list(never) or None,
    )
    made = model.generate(
        torch.tensor(ids, device=model.device),
        attention_mask=torch.tensor(mask, device=model.device),
    )
    rows: list[list[int]] = made[:, longest:].tolist()
    return rows


if __name__ == "__main__":
    main(*sys.argv[1:])
