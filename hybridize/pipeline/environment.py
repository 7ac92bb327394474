"""What a run ran on: versions, device, threads, command line."""

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

PACKAGES = ("hybridize", "torch", "transformers", "safetensors", "numpy")


def describe_environment(seed: int, device: torch.device) -> dict[str, Any]:
    """Return what `environment.json` of a run folder holds."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "versions": versions,
        "device": str(device),
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "command": ["hybridize", *sys.argv[1:]],
        "seed": seed,
    }
