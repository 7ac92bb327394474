"""The command doctor: versions, devices, and which form each operator will use, and why."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import typer

from hybridize import __version__
from hybridize.cli.options import JsonOption, show, show_json
from hybridize.core.catalog import PACKAGE

PACKAGES = ("torch", "transformers", "safetensors", "tokenizers", "pydantic", "PyYAML", "typer")
FORMS = ("fused", "chunked", "reference")
"""Forms of an operator, the fastest first."""


def add_to(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command(epilog="Example: hybridize doctor --json")(doctor)


def doctor(as_json: JsonOption = False) -> None:
    """Say what this machine has and which kernels it will use."""
    facts = examine()
    if as_json:
        show_json(facts)
        return
    for section, entries in facts.items():
        show(section)
        for name, text in entries.items():
            show(f"  {name:<16}{text}")


def examine() -> dict[str, dict[str, str]]:
    """Collect versions, devices and operator forms."""
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
    folders = sorted(path.parent for path in (PACKAGE / "ops").glob("*/reference.py"))
    operators = {folder.name: _describe_forms(folder) for folder in folders}
    return {"versions": versions, "machine": machine, "operators": operators}


def _describe_forms(folder: Path) -> str:
    """Name the form an operator will use, from the forms that there are."""
    present = [form for form in FORMS if (folder / f"{form}.py").exists()]
    why = "" if "fused" in present else "; no fused kernel exists for it"
    return f"{present[0]} ({', '.join(present)} exist{why})"
