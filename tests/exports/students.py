"""Students to export: one for each thing that a class of transformers has its own way with."""

import torch

from hybridize.core.layout import Layout
from hybridize.models.model import Model
from hybridize.surgery.apply import convert
from tests.tiny import as_student, tiny_teacher

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 128,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}
RANDOM = {"init": "random"}
FITTING = {
    "llama": {},
    "llama-tied": {"tie_word_embeddings": True},
    "llama-biased": {"attention_bias": True},
    "llama-llama3": {"rope_parameters": LLAMA3},
    "llama-yarn": {"rope_parameters": YARN},
    "llama-linear": {"rope_parameters": LINEAR},
    "llama-expand-2": {"options": {"expand": 2}},
    "llama-options": {"options": {"expand": 2, "state_size": 16, "conv_width": 3}, **RANDOM},
    "llama-one-converted": {"layout": "AAMA"},
    "llama-one-kept": {"layout": "MMMA"},
    "mistral": {"family": "mistral"},
    "mistral-zero-heads": {"family": "mistral", "head_dim": 4},
    "mistral-zero-heads-expand-2": {
        **{"family": "mistral", "width": 40, "heads": 8, "head_dim": 4, "options": {"expand": 2}}
    },
    "mistral-zero-groups": {"family": "mistral", "width": 36, "heads": 4, "head_dim": 4},
    "qwen2": {"family": "qwen2"},
    "qwen2-zero-heads": {"family": "qwen2", "width": 48, "head_dim": 8},
    "granite": {"family": "granite"},
    "qwen3": {"family": "qwen3", "layout": "AGAG"},
    "qwen3-tied": {"family": "qwen3", "layout": "GGGA", "tie_word_embeddings": True},
    "qwen3-expand-2": {"family": "qwen3", "layout": "AGAG", "options": {"expand": 2}},
    "qwen3-wide-heads": {"family": "qwen3", "layout": "AGAG", "head_dim": 16},
    "qwen3-biased": {"family": "qwen3", "layout": "AGAG", "attention_bias": True},
    "qwen3-conv-3": {"family": "qwen3", "layout": "AGAG", "options": {"conv_width": 3}},
    "qwen3-yarn": {"family": "qwen3", "layout": "AGAG", "rope_parameters": YARN},
    "sliding": {"layout": "AWAW", "options": {"sinks": 0, "window": 7}},
    "sliding-everywhere": {"layout": "WWWW", "options": {"sinks": 0}, "mlp_bias": True},
    "sliding-yarn": {
        **{"layout": "AWWA", "options": {"sinks": 0, "window": 16}, "rope_parameters": YARN}
    },
    "sliding-like-the-teacher": {
        **{"family": "mistral", "layout": "AWAW", "options": {"sinks": 0, "window": 9}},
        "sliding_window": 9,
    },
    "sliding-zero-heads": {
        **{"family": "qwen2", "width": 48, "head_dim": 8, "layout": "AWAW"},
        "options": {"sinks": 0, "window": 20},
    },
    "sliding-granite": {
        **{"family": "granite", "layout": "AWAW", "options": {"sinks": 0, "window": 20}}
    },
    "llama-unconverted": {"layout": "AAAA"},
    "phi3-unconverted": {"family": "phi3", "layout": "AAAA"},
    "smollm3-unconverted": {"family": "smollm3", "layout": "AAAA"},
}
"""Name -> arguments of `make_student`."""


def make_student(
    family: str = "llama",
    *,
    layout: str = "AMAM",
    options: dict | None = None,
    init: str = "from_attention",
    **changes: object,
) -> Model:
    """Convert a tiny teacher, and move every weight, so that none is neutral by its start."""
    network = convert(
        as_student(tiny_teacher(family, **changes)),
        Layout.parse(layout),
        options=options or {},
        init=init,
    )
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return Model("h2", network.eval(), None)
