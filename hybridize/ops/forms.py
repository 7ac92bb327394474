"""Which form of an operator runs: the fastest that can, the preferred one, or the one asked for.

Each operator's folder keeps a literal dictionary FORMS, name -> Form, the fastest first. All forms
of an operator take the same arguments and mean the same; `reference` is the definition.

- An argument `form="chunked"` is obeyed, or refused with the reason why it cannot run.
- Otherwise what `prefer` was told is obeyed, by operators that have such a form.
- Otherwise the first form runs that is meant for the device, has no obstacle and is worth it for
  so few tokens. If a faster one was in the way of an obstacle, that is logged once.
"""

import importlib
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

LOG = logging.getLogger("hybridize.ops")
_preferred: dict[str, str] = {}
"""Operator, or "" for all of them, -> name of a form."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """One way to compute an operator."""

    place: str
    """The function, as module:name; imported when it is first used."""
    devices: tuple[str, ...] = ("cpu", "gpu", "other")
    """Kinds of device for which `auto` considers it, as `get_kind` names them."""
    obstacle: str | None = None
    """A function, as module:name, of a torch.device: why the form cannot run there, or None."""
    speedup: float | None = None
    """How many times faster than the form after it, at lengths worth caring about; None if that
    was not measured."""
    short: int = 0
    """Up to this many tokens `auto` takes a slower form, which is quicker to begin."""

    def load(self) -> Callable[..., Any]:
        """Import and return the function."""
        return _import(self.place)

    def find_obstacle(self, device: torch.device) -> str | None:
        """Say in half a sentence why the form cannot run on this device, or return None."""
        return None if self.obstacle is None else _import(self.obstacle)(device)


def prefer(text: str | None) -> None:
    """Prefer forms in the whole process, wherever a call says `form="auto"`.

    Args:
        text: one form for every operator that has it ("chunked"), or one per operator
            ("ssd=chunked,causal_conv=reference"); None prefers nothing.

    Raises:
        ValueError: the text names an operator or a form that does not exist, or one twice.
    """
    wanted: dict[str, str] = {}
    operators = list_operators()
    for part in text.split(",") if text else []:
        operator, _, form = (word.strip() for word in part.rpartition("="))
        if operator in wanted or ("=" in part and operator not in operators):
            raise ValueError(
                f"{part.strip()!r} names no operator, or one twice (operators: "
                f"{', '.join(operators)}); write chunked, or ssd=chunked,causal_conv=reference"
            )
        known = operators[operator] if operator else [n for f in operators.values() for n in f]
        if form not in known:
            raise ValueError(f"{form!r} is no form; {operator or 'operators'} have {_join(known)}")
        wanted[operator] = form
    _preferred.clear()
    _preferred.update(wanted)


def list_operators() -> dict[str, Mapping[str, Form]]:
    """Return the forms of every operator, by its name."""
    folders = sorted(path.parent for path in Path(__file__).parent.glob("*/reference.py"))
    return {
        folder.name: importlib.import_module(f"hybridize.ops.{folder.name}").FORMS
        for folder in folders
    }


def choose(
    operator: str,
    forms: Mapping[str, Form],
    form: str,
    *,
    device: torch.device,
    num_tokens: int,
) -> Callable[..., Any]:
    """Return the function that is to run.

    Raises:
        ValueError: the operator has no form of this name.
        RuntimeError: the form that was asked for cannot run on this device.
    """
    return forms[name_choice(operator, forms, form, device=device, num_tokens=num_tokens)].load()


def name_choice(
    operator: str,
    forms: Mapping[str, Form],
    form: str = "auto",
    *,
    device: torch.device,
    num_tokens: int = 1024,
) -> str:
    """Return the name of the form that is to run; see `choose`."""
    if form == "auto":
        form = _preferred.get(operator) or _preferred.get("", "auto")
        if form not in forms and operator not in _preferred:
            form = "auto"
    if form == "auto":
        return _choose_fastest(operator, forms, device, num_tokens)
    if form not in forms:
        raise ValueError(f"{operator} has no form {form!r}; use auto, {_join(forms)}")
    obstacle = forms[form].find_obstacle(device)
    if obstacle is not None:
        raise RuntimeError(f"{operator}: form {form} cannot run here: {obstacle}")
    return form


def explain(operator: str, forms: Mapping[str, Form], device: torch.device) -> str:
    """Say in one line which form `auto` takes for a long row, and what stands against the others.

    Raises:
        ValueError, RuntimeError: the preferred form does not exist or cannot run.
    """
    chosen = name_choice(operator, forms, device=device)
    preferred = operator in _preferred or _preferred.get("") == chosen
    reasons = [f"{chosen} is preferred by setting" if preferred else ""]
    for name, form in forms.items():
        if name == chosen:
            break
        if get_kind(device) not in form.devices:
            reasons.append(f"{name} is for {' and '.join(form.devices)}")
            continue
        obstacle = form.find_obstacle(device)
        if obstacle is not None:
            reasons.append(f"{name} cannot run: {obstacle}")
    why = "; ".join(reason for reason in reasons if reason)
    return f"{chosen} on {device.type}, of {_join(forms)}" + (f" ({why})" if why else "")


def get_kind(device: torch.device) -> str:
    """Return cpu, gpu for the accelerator of this machine, or other (such as meta)."""
    if device.type == "cpu":
        return "cpu"
    accelerator = torch.accelerator.current_accelerator()
    return "gpu" if accelerator is not None and device.type == accelerator.type else "other"


def _choose_fastest(
    operator: str, forms: Mapping[str, Form], device: torch.device, num_tokens: int
) -> str:
    kind = get_kind(device)
    blocked: tuple[str, str] | None = None
    slower: float | None = 1.0
    for name, form in forms.items():
        if kind not in form.devices or num_tokens <= form.short:
            continue
        obstacle = form.find_obstacle(device)
        if obstacle is None:
            if blocked is not None:
                _say_once(operator, *blocked, name, slower)
            return name
        blocked = blocked or (name, obstacle)
        slower = slower * form.speedup if slower and form.speedup else None
    return list(forms)[-1]


def _join(names: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(names))


@cache
def _say_once(operator: str, missed: str, obstacle: str, form: str, slower: float | None) -> None:
    LOG.warning(
        "%s runs in form %s, %s slower than form %s, which cannot run here: %s",
        *(operator, form, f"about {slower:.2g} times" if slower else "by an unmeasured factor"),
        *(missed, obstacle),
    )


@cache
def _import(place: str) -> Callable[..., Any]:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)
