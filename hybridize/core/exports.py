"""What fits where: the classes of other projects that hold a student exactly, and their limits.

A student fits a class if the class computes the same function with the student's numbers. What does
not fit is refused with the reason and with the nearest layout, mixer or format that would: most
ways to be nearly right are silent (a norm over the wrong width, a head width that is ignored).
`hybridize.exports` writes; this file decides, from config.json alone and without torch.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from hybridize.core.apriel_h1 import is_apriel_h1, translate
from hybridize.core.gguf import ARCHITECTURES, HYBRID, INTERLEAVED
from hybridize.core.padding import plan_heads
from hybridize.core.shape import ModelShape

Config = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Target:
    """A layout on disk that other programs read."""

    format: str
    """Name of the format, as `--format` takes it."""
    class_name: str
    """The class or architecture its config names."""
    teachers: tuple[str, ...]
    """Families of teachers it can hold; empty is every family."""
    mixers: tuple[str, ...]
    """Mixers of its layers beside attention; empty is attention only."""
    engines: Mapping[str, str]
    """Engine that reads it -> versions it needs and its own limits."""
    ropes: tuple[str, ...] = ("default", "linear", "llama3", "yarn")
    """Kinds of rotary positions."""
    mlp_bias: bool = False
    """Whether its MLP has a place for biases."""


TARGETS = {
    "teacher": Target(
        format="stock",
        class_name="the teacher's own",
        teachers=(),
        mixers=(),
        engines={
            "transformers": "any that has the family",
            "vllm": "head width is free",
            "llama.cpp": "by --format gguf",
        },
        ropes=(),
    ),
    "granite": Target(
        format="stock",
        class_name="GraniteMoeHybridForCausalLM",
        teachers=("llama", "mistral", "qwen2", "granite"),
        mixers=("mamba2",),
        engines={
            "transformers": ">= 5.23.0 (before, one norm over all groups: wrong, without an "
            "error); at least one attention layer",
            "vllm": ">= 0.32; head width = hidden size / heads (zero heads are added where that "
            "is exact); conv_width up to 4; on CPU no prefix caching",
            "sglang": "as vllm, read from its source",
            "llama.cpp": "by --format gguf",
        },
    ),
    "qwen3_5": Target(
        format="stock",
        class_name="Qwen3_5ForCausalLM",
        teachers=("qwen3",),
        mixers=("gated_delta",),
        engines={
            "transformers": ">= 5.5; at least one attention layer",
            "vllm": ">= 0.32; on CPU bfloat16 only, and head widths of whole 32",
            "llama.cpp": "by its own converter, with --no-mtp",
        },
    ),
    "granite_swa": Target(
        format="stock",
        class_name="GraniteSWAForCausalLM",
        teachers=("llama", "mistral", "qwen2", "granite"),
        mixers=("sliding",),
        mlp_bias=True,
        engines={
            "transformers": ">= 5.23",
            "vllm": ">= 0.32",
            "llama.cpp": "has granite-swa, by its own converter; not run here",
        },
    ),
    "hybridize": Target(
        format="hybridize",
        class_name="HybridForCausalLM",
        teachers=(),
        mixers=("every mixer",),
        engines={
            "transformers": "after `import hybridize`",
            "vllm": "with this package installed beside it (its plugin)",
        },
        ropes=(),
    ),
    "gguf": Target(
        format="gguf",
        class_name="granitehybrid, or the teacher's architecture",
        teachers=("llama", "mistral", "qwen2", "granite"),
        mixers=("mamba2",),
        mlp_bias=True,
        engines={
            "llama.cpp": "head width is free; mamba2 narrower than twice the hidden size gets zero "
            "heads, since released builds want that width; at least one attention layer; "
            "unconverted models of qwen3 too"
        },
    ),
    "gguf-unpadded": Target(
        format="gguf-unpadded",
        class_name="granitehybrid, or the teacher's architecture",
        teachers=("llama", "mistral", "qwen2", "granite"),
        mixers=("mamba2",),
        mlp_bias=True,
        engines={"llama.cpp": "a build without the check of the inner width (docs/llama-cpp.md)"},
    ),
    "apriel-h1": Target(
        format="apriel-h1",
        class_name="AprielThinkerSSMHybridForCausalLM",
        teachers=("llama", "mistral"),
        mixers=("mamba1", "identity"),
        engines={"transformers": "with the published code, or after `import hybridize`"},
        ropes=(),
    ),
}
"""Name -> a layout on disk; `hybridize ls exports` prints them."""
_STOCK = {"mamba2": "granite", "gated_delta": "qwen3_5", "sliding": "granite_swa"}
"""The one converted mixer of a student -> its target."""
_CONVERTED = tuple(TARGETS[name] for name in _STOCK.values())


@dataclass(frozen=True, kw_only=True)
class Student:
    """What a config.json says of a model, as far as the checks ask."""

    shape: ModelShape
    teacher: Config
    mixers: tuple[str, ...]
    options: Mapping[str, Config]

    @property
    def converted(self) -> tuple[str, ...]:
        """Kinds of mixers beside attention, in alphabetic order."""
        return tuple(sorted(set(self.mixers) - {"attention"}))

    @property
    def rope(self) -> dict[str, Any]:
        """The rotary positions in one mapping, with `rope_type` and `rope_theta`."""
        return read_rope(self.teacher)


def read_student(config: Config, name: str = "config.json") -> Student:
    """Read the config.json of a teacher, of a student, or of a published Apriel-H1.

    Raises:
        ModelError: the family is not known, or a key is missing.
    """
    shape = ModelShape.from_config(config, name=name)
    teacher = config.get("teacher") or config
    if is_apriel_h1(config):
        teacher = translate(config, None, name).teacher
    return Student(
        shape=shape, teacher=teacher, mixers=shape.layout().mixers, options=shape.mixer_options
    )


def read_rope(teacher: Config) -> dict[str, Any]:
    """Return the rotary positions of a config in the spelling of either age of transformers."""
    rope = dict(teacher.get("rope_scaling") or {}) | dict(teacher.get("rope_parameters") or {})
    rope.setdefault("rope_theta", teacher.get("rope_theta") or 10_000.0)
    rope["rope_type"] = rope.get("rope_type") or rope.pop("type", None) or "default"
    return rope


def find_target(config: Config, format: str = "stock") -> str | None:
    """Return the name in TARGETS that a model would be written as; None where none has its mixers.

    That its other parts fit is for `check_fit` to say.
    """
    if format != "stock":
        return next((name for name, t in TARGETS.items() if t.format == format), None)
    converted = read_student(config).converted
    if not converted:
        return "teacher"
    return _STOCK.get(converted[0]) if len(converted) == 1 else None


def best_format(config: Config) -> str:
    """Return "stock" where a class of another project holds the model, else "hybridize"."""
    return "hybridize" if check_fit(config, "stock") else "stock"


def check_fit(config: Config, format: str) -> list[str]:
    """List why a model does not fit a format, each reason with what would; empty where it fits.

    Args:
        config: values of config.json, of a teacher, a student or a published Apriel-H1.
        format: of one of TARGETS; one that is not there has reasons of its own.

    Raises:
        ModelError: the config is of no known family.
    """
    student = read_student(config)
    name = find_target(config, format)
    if name is None:
        return [_tell_mixers(student)] if format == "stock" else []
    target = TARGETS[name]
    if name in ("teacher", "hybridize", "apriel-h1"):
        # The published layout can refuse weights only, and its writer does.
        return []
    if target.format.startswith("gguf"):
        return _check_gguf(student, target)
    reasons = _check_teacher(student, target)
    if "attention" not in student.mixers and name != "granite_swa":
        reasons.append(_tell_no_attention(target.class_name))
    return reasons + [reason for check in _CHECKS.get(name, ()) for reason in check(student)]


def _check_gguf(student: Student, target: Target) -> list[str]:
    """Check a model for llama.cpp: a hybrid of one architecture, or a family's own."""
    if not set(student.converted) <= set(target.mixers):
        near = "convert to mamba2, or use" if student.shape.family in target.teachers else "use"
        return [
            f"its layers are {_list(student.converted)}, and {HYBRID} of llama.cpp has "
            f"{_list(target.mixers)} beside attention: {near} --format hybridize"
        ]
    architecture = HYBRID if student.converted else ARCHITECTURES.get(student.shape.family)
    teachers = target.teachers if student.converted else tuple(ARCHITECTURES)
    name = architecture or "llama.cpp"
    reasons = _check_teacher(student, replace(target, class_name=name, teachers=teachers))
    kind = student.rope["rope_type"]
    takes_factors = architecture is None or architecture in INTERLEAVED
    if kind != "default" and kind in target.ropes and not takes_factors:
        reasons.append(
            f"its rotary positions are {kind}, and {name} of llama.cpp takes no frequencies: use "
            "--format stock"
        )
    if "attention" not in student.mixers:
        reasons.append(_tell_no_attention("llama.cpp"))
    return reasons


def _tell_no_attention(reader: str) -> str:
    return (
        f"no layer is attention, and the cache of {reader} needs one: keep one attention layer, or "
        "use --format hybridize"
    )


def _list(names: Iterable[str]) -> str:
    return ", ".join(names)


def _tell_near(student: Student) -> str:
    """Name the mixer with which students of this family fit a class, before another format."""
    near = next((t.mixers[0] for t in _CONVERTED if student.shape.family in t.teachers), None)
    return f"convert to {near}, or use" if near else "use"


def _tell_mixers(student: Student) -> str:
    kinds = _list(student.converted)
    if len(student.converted) > 1:
        return (
            f"its layers are {kinds}, and no class of transformers has them together: "
            f"{_tell_near(student)} --format hybridize"
        )
    instead = _tell_near(student)
    return (
        f"no class of transformers has layers of {kinds} beside this attention: {instead} "
        "--format hybridize"
    )


def _check_teacher(student: Student, target: Target) -> list[str]:
    """Check what the layers keep of the teacher: family, windows, biases, norms, positions."""
    shape, reasons = student.shape, []
    if shape.family not in target.teachers:
        own = _tell_near(student) + " --format hybridize" if student.converted else None
        reasons.append(
            f"its teacher is of the family {shape.family}, and {target.class_name} holds "
            f"{_list(target.teachers)}: {own or 'use --format stock'}"
        )
    kept = [layer for layer in shape.window_layers if student.mixers[layer] == "attention"]
    slides = int(student.options.get("sliding", {}).get("window", 128))
    if (
        shape.window is not None
        and kept
        and ("sliding" not in target.mixers or shape.window != slides)
    ):
        other = f"slides over {slides}" if "sliding" in target.mixers else "sees all"
        reasons.append(
            f"the attention of layer {kept[0]} slides over {shape.window} tokens, and that of "
            f"{target.class_name} {other}: convert those layers, or use --format hybridize"
        )
    if shape.mlp_bias and not target.mlp_bias:
        reasons.append(
            f"its MLP has biases, and {target.class_name} has none: use --format hybridize"
        )
    if student.teacher.get("hidden_act", "silu") not in ("silu", "swish"):
        reasons.append(
            f"its activation is {student.teacher['hidden_act']}, and {target.class_name} has one "
            "for MLP and mixer, which is silu here: use --format hybridize"
        )
    return reasons + _check_rope(student, target)


def _check_rope(student: Student, target: Target) -> list[str]:
    kind = student.rope["rope_type"]
    if kind in target.ropes and float(student.rope.get("partial_rotary_factor", 1.0)) == 1.0:
        return []
    told = kind if kind not in target.ropes else "on part of a head"
    return [
        f"its rotary positions are {told}, and only {_list(target.ropes)} on whole heads were "
        f"found exact in {target.class_name}: use --format hybridize"
    ]


def _check_mamba2(student: Student) -> list[str]:
    """Check the options of mamba2; its form is that of the class."""
    options, reasons = student.options.get("mamba2", {}), []
    width = int(options.get("conv_width", 4))
    if not 2 <= width <= 4:
        reasons.append(
            f"its mamba2 has conv_width {width}, and kernels of serving engines have 2 to 4: "
            "convert with conv_width 4, or use --format hybridize"
        )
    return reasons


def _check_widths(student: Student) -> list[str]:
    """Check that heads fill the hidden size, or do with zero heads beside them."""
    shape = student.shape
    if plan_heads(shape) is not None:
        return []
    gguf = "--format gguf, where the width of a head is free, or "
    return [
        f"its {shape.num_heads} heads of {shape.head_dim} are {shape.query_size} wide, not the "
        f"hidden size {shape.hidden_size}, and no number of zero heads beside them makes it so; "
        "vLLM would take hidden size / heads for the width of a head and answer wrongly: use "
        f"{gguf if 'mamba2' in student.mixers else ''}--format hybridize"
    ]


def _check_gated_delta(student: Student) -> list[str]:
    if student.options.get("gated_delta", {}).get("conv_bias", False):
        return [
            "its gated_delta has conv_bias, and the convolution of Qwen3_5ForCausalLM has none: "
            "convert with conv_bias: false, or use --format hybridize"
        ]
    return []


def _check_sliding(student: Student) -> list[str]:
    sinks = int(student.options.get("sliding", {}).get("sinks", 4))
    if not sinks:
        return []
    return [
        f"its sliding windows keep {sinks} first tokens in sight, and those of "
        "GraniteSWAForCausalLM none: convert with sinks: 0, or use --format hybridize"
    ]


_CHECKS = {
    "granite": (_check_mamba2, _check_widths),
    "granite_swa": (_check_sliding, _check_widths),
    "qwen3_5": (_check_gated_delta,),
}
"""Name in TARGETS -> checks of what the layers that are converted, or kept, have of their own."""


def list_rows() -> list[tuple[str, ...]]:
    """List the table of what fits where: header, then a row for each target."""
    rows: list[tuple[str, ...]] = [
        ("format", "class", "teachers", "layers beside attention", "rotary positions")
    ]
    for target in TARGETS.values():
        rows.append(
            (
                target.format,
                target.class_name,
                ", ".join(target.teachers) or "all",
                ", ".join(target.mixers) or "none",
                ", ".join(target.ropes) or "all",
            )
        )
    return rows


def list_limits() -> list[tuple[str, ...]]:
    """List which engine reads what, with its limits: header, then a row for each."""
    rows: list[tuple[str, ...]] = [("class", "read by", "with")]
    for target in TARGETS.values():
        rows += [(target.class_name, engine, limit) for engine, limit in target.engines.items()]
    return rows
