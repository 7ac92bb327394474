"""What sinks are worth: divergence of untrained sliding layers from the teacher, by window.

    OMP_NUM_THREADS=1 python benchmarks/sinks.py > benchmarks/tables/sinks.md

Held-out problems of all kinds, one document each; forward KL in nats a token.
"""

import torch
from torch import Tensor

from hybridize import tasks
from hybridize.models import HybridForCausalLM, load_model, load_tokenizer
from hybridize.surgery import convert

LAYERS = {"every second": range(0, 12, 2), "all": range(12)}
WINDOWS, SINKS, PROBLEMS = (16, 32, 64, 128), (0, 1, 4), 8


@torch.no_grad()
def predict(model: HybridForCausalLM, documents: list[Tensor]) -> Tensor:
    """Return log probabilities after each token of all documents."""
    return torch.cat([model(one[None]).logits[0].log_softmax(-1) for one in documents])


def main() -> None:
    """Print the table."""
    teacher, tokenizer = load_model("shipped"), load_tokenizer("shipped")
    problems = [
        tasks.make(kind, seed=1, index=index, split="heldout")
        for index in range(PROBLEMS)
        for kind in tasks.KINDS
    ]
    texts = [f"{one.prompt_text} {one.completion_text}" for one in problems]
    documents = [torch.tensor(tokenizer(t, add_special_tokens=False).input_ids) for t in texts]
    wanted = predict(teacher, documents)
    print(f"{len(documents)} documents of {len(wanted) / len(documents):.0f} tokens in the mean\n")
    print("| layers | window |" + "".join(f" {n} sinks |" for n in SINKS))
    print("|---|---|" + "---|" * len(SINKS))
    for name, layers in LAYERS.items():
        layout = teacher.layout.convert(layers, to="sliding")
        for window in WINDOWS:
            found = []
            for sinks in SINKS:
                student = convert(teacher, layout, options={"window": window, "sinks": sinks})
                log_ratio = wanted - predict(student, documents)
                found.append((wanted.exp() * log_ratio).sum(-1).mean().item())
            print(f"| {name} | {window} |" + "".join(f" {kl:.3f} |" for kl in found), flush=True)


if __name__ == "__main__":
    main()
