"""Turn a pretrained transformer into a hybrid of attention and SSM layers by staged distillation.

    import hybridize as hz

    run = hz.run("tiny", until="plan")                 # the recipe `tiny`, up to its plan
    teacher = hz.load_teacher("shipped")               # or verb by verb, see hybridize.api

Public names are imported on first use, so that `import hybridize` costs nothing. Transformers'
AutoModelForCausalLM then loads students and published Apriel-H1 checkpoints.
"""

from importlib import import_module
from typing import Any

from hybridize.core.auto_names import announce

__version__ = "0.1.0"

_NAMES = {
    "AlignedMixers": "hybridize.surgery.aligned",
    "HybridizeError": "hybridize.core.errors",
    "Importance": "hybridize.core.importance",
    "Interrupted": "hybridize.core.errors",
    "Layout": "hybridize.core.layout",
    "LeaveOneOut": "hybridize.core.sections",
    "MachineError": "hybridize.core.errors",
    "ModelError": "hybridize.core.errors",
    "ModelShape": "hybridize.core.shape",
    "Plan": "hybridize.core.plan",
    "Recipe": "hybridize.core.recipe",
    "RecipeError": "hybridize.core.errors",
    "ReplaceOne": "hybridize.core.sections",
    "RunError": "hybridize.core.errors",
    "align": "hybridize.pipeline.align",
    "bench": "hybridize.api",
    "convert": "hybridize.api",
    "convert_folder": "hybridize.stages.convert",
    "diagnose": "hybridize.stages.diagnose",
    "distill": "hybridize.api",
    "evaluate": "hybridize.api",
    "export": "hybridize.api",
    "load_model": "hybridize.api",
    "load_recipe": "hybridize.core.recipe",
    "load_teacher": "hybridize.api",
    "load_text": "hybridize.api",
    "make_plan": "hybridize.core.plan",
    "make_tasks": "hybridize.api",
    "measure_importance": "hybridize.api",
    "merge": "hybridize.api",
    "open_run": "hybridize.api",
    "quantize": "hybridize.pipeline.quantize",
    "read_layout": "hybridize.stages.convert",
    "run": "hybridize.api",
    "sft": "hybridize.api",
    "show_steps": "hybridize.api",
}


announce()


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'hybridize' has no attribute {name!r}")
    return getattr(import_module(_NAMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_NAMES])
