"""The table of what a stage trains and what it leaves frozen, part of the model by part."""

from torch import nn

from hybridize.core.quantities import short_count
from hybridize.models.hybrid import HybridForCausalLM
from hybridize.training.optim import choose_parameters


def list_parts(network: HybridForCausalLM, train: tuple[str, ...]) -> str:
    """Print the parameters of each part that `train` chooses, and those it leaves frozen."""
    chosen = choose_parameters(network, train)
    counts: dict[str, list[int]] = {}
    for name, parameter in network.named_parameters():
        counts.setdefault(_part(network, name), [0, 0])[name not in chosen] += parameter.numel()
    counts["all"] = [sum(column) for column in zip(*counts.values(), strict=True)]
    lines = [f"{'part':<14}{'trained':>9}{'frozen':>9}"]
    for part, numbers in counts.items():
        cells = (short_count(number) if number else "-" for number in numbers)
        lines.append(f"{part:<14}" + "".join(f"{cell:>9}" for cell in cells))
    return "\n".join(lines)


def _part(network: HybridForCausalLM, name: str) -> str:
    """Name the part a parameter belongs to."""
    words = name.split(".")
    if "mixer" in words:
        return str(network.layout.mixers[int(words[words.index("layers") + 1])])
    if "self_attn" in words:
        return "attention"
    if "mlp" in words:
        return "mlp"
    module = network.get_submodule(".".join(words[:-1]))
    if isinstance(module, nn.Embedding):
        return "embedding" if network.lm_head.weight is not module.weight else "embedding, head"
    return "head" if words[0] == "lm_head" else "norms"
