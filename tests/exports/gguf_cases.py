"""Models that fit GGUF: one for each thing that llama.cpp has its own way with."""

import torch

from hybridize.models.model import Model
from hybridize.surgery import convert
from tests.exports.students import LLAMA3, YARN
from tests.tiny import as_student, tiny_teacher

CASES = {
    "llama": {},
    "llama-tied-biased": {"tie_word_embeddings": True, "attention_bias": True},
    "llama-llama3": {"rope_parameters": LLAMA3},
    "llama-yarn": {"rope_parameters": YARN},
    "mistral": {"family": "mistral", "head_dim": 16},
    "qwen2": {"family": "qwen2"},
    "granite": {"family": "granite"},
    "qwen3-teacher": {"family": "qwen3", "converted": ()},
    "qwen2-teacher": {"family": "qwen2", "converted": ()},
    "granite-teacher": {"family": "granite", "converted": ()},
    "llama-teacher": {"converted": (), "rope_parameters": LLAMA3},
    "expand-2": {"options": {"expand": 2}},
    "conv-width-3": {"options": {"conv_width": 3}},
}
"""Name -> arguments of `make_model`."""


def make_model(family="llama", converted=(0, 2), options=None, **changes) -> Model:
    """Build a student whose mixers do something in every part, or an all-attention model."""
    student = as_student(tiny_teacher(family, **changes))
    if converted:
        layout = student.layout.convert(converted, to="mamba2")
        student = convert(student, layout, options=options or {}, seed=3)
        generator = torch.Generator().manual_seed(4)
        with torch.no_grad():
            for name, parameter in student.named_parameters():
                if ".mixer." in name:
                    noise = torch.randn(parameter.shape, generator=generator)
                    parameter.add_(0.3 * noise / max(1, parameter[0].numel()) ** 0.5)
    return Model(name="tiny", network=student.eval(), tokenizer=None)
