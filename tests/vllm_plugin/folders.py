"""Small random students, in folders, with heads of a width that vLLM's attention has on a CPU."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hybridize.models.families import find_family
from hybridize.models.folders import save_model
from hybridize.models.hybrid import HybridConfig, HybridForCausalLM
from tests.tiny import tiny_teacher

VOCAB = 96
HEAD_DIM = 32


def make_student(
    folder: Path,
    family: str,
    mixers: str,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    **changes: Any,
) -> Path:
    """Write a student whose layers are `mixers`, with weights large enough to matter."""
    kinds = mixers.split()
    changes = {"width": 64, "head_dim": HEAD_DIM, "vocab": VOCAB} | changes
    teacher = tiny_teacher(family, layers=len(kinds), **changes)
    values = teacher.config.to_dict() | {"architectures": [type(teacher).__name__]}
    config = HybridConfig(
        teacher=find_family(family).config(**values),
        mixers=kinds,
        mixer_options=options or {},
    )
    torch.manual_seed(3)
    student = HybridForCausalLM(config)
    student.load_state_dict(teacher.state_dict(), strict=False)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if ".mixer." in name and parameter.ndim > 1 and "A_log" not in name:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
    student.tie_weights()
    return save_model(student, None, folder)
