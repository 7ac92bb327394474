"""A model of any shape with random weights, for measurements of speed and memory."""

import torch

from hybridize.core.layout import Layout
from hybridize.core.shapes import RandomShape
from hybridize.models.families import find_family
from hybridize.models.hybrid import HybridConfig, HybridForCausalLM
from hybridize.models.mixers import Mixer
from hybridize.models.model import Model


def make_random(
    shape: RandomShape, layout: Layout, *, name: str, dtype: str = "float32", seed: int = 0
) -> Model:
    """Return a model without a tokenizer, whose weights keep activations of ordinary size.

    Args:
        shape: of the teacher.
        layout: which mixer sits in which layer.
        name: of the model.
        dtype: of the weights; small decay parameters stay float32.
        seed: of the weights; the caller's random numbers are left as they were.
    """
    values = shape.make_config()
    family = find_family(values["model_type"])
    config = HybridConfig(teacher=family.config(**values), mixers=list(layout.mixers))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = HybridForCausalLM(config)
    goal = getattr(torch, dtype)
    small = {
        f"{prefix}.{parameter}"
        for prefix, part in network.named_modules()
        if isinstance(part, Mixer)
        for parameter in part.FLOAT32
    }
    for path, parameter in network.named_parameters():
        if path not in small:
            parameter.data = parameter.data.to(goal)
    network.config.dtype = goal
    return Model(name, network.eval(), None)
