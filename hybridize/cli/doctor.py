"""The command doctor: versions, devices, and which form each operator will run, and why."""

import os
from typing import Any

import typer

from hybridize import __version__
from hybridize.cli.options import JsonOption, show, show_json

PACKAGES = ("torch", "transformers", "safetensors", "tokenizers", "pydantic", "PyYAML", "typer")


def add_to(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command(epilog="Example: hybridize doctor --json")(doctor)


def doctor(as_json: JsonOption = False) -> None:
    """Say what this machine has, which form each operator will run, and how far it is off."""
    from hybridize.cli.watch import prepare_machine

    prepare_machine()
    facts = examine()
    if as_json:
        show_json(facts)
        return
    for section, entries in facts.items():
        show(section)
        for name, text in entries.items():
            show(f"  {name:<18}{text}")


def examine() -> dict[str, dict[str, str]]:
    """Collect versions, devices, operator forms and serving engines."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import torch

    versions = {"python": platform.python_version(), "hybridize": __version__}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = f"not installed; pip install {package}"
    accelerator = (
        torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    )
    machine = {
        "system": f"{platform.system()} {platform.machine()}",
        "device": str(accelerator or "cpu (no accelerator is present)"),
        "threads": f"{torch.get_num_threads()} for torch, of {os.cpu_count()} processors",
    }
    from hybridize.ops.forms import list_operators

    operators = {
        name: _describe(name, accelerator or torch.device("cpu")) for name in list_operators()
    }
    return {
        "versions": versions,
        "machine": machine,
        "operators": operators,
        "engines": describe_engines(),
    }


def describe_engines() -> dict[str, str]:
    """Say which serving engines are here, in which version, or how they would be."""
    from hybridize.core.shape import SHIPPED_TEACHER
    from hybridize.engines import ENGINES, find_engine

    found = {name: find_engine(name) for name in ENGINES}
    return {
        name: engine.version() or engine.why_not(SHIPPED_TEACHER) or "not installed"
        for name, engine in found.items()
    }


def _describe(operator: str, device: Any) -> str:
    """Say which form of an operator runs, why, and how far it is from the reference."""
    from hybridize.ops import forms
    from hybridize.ops.self_check import ALLOWED, measure_error

    try:
        why = forms.explain(operator, forms.list_operators()[operator], device)
        error = measure_error(operator, device)
    except RuntimeError as reason:
        return f"does not run: {reason}"
    verdict = "passes" if error <= ALLOWED else "FAILS"
    return f"{why}; self-check {verdict}: off by {error:.0e}"
