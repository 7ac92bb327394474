"""Runs `hybridize` by ranks of which one lacks something: `-m tests.pipeline.ranks WHAT ...`."""

import atexit
import os
import resource
import sys
from functools import partial

import torch
from torch._dynamo.testing import CompileCounterWithBackend

from hybridize.cli import main
from hybridize.core.errors import ModelError, RunError
from hybridize.pipeline import training
from hybridize.pipeline.actions import Actions

RANK = int(os.environ["RANK"])


def fill_disk():
    """Let no file of the first grow beyond a size: a disk with room for records, not tensors."""
    if RANK == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, resource.RLIM_INFINITY))


def hide_data():
    """Let the second not find the data, as on a node that lacks a folder."""

    def fail(_actions, _node):
        raise RunError("data text.jsonl is not there.")

    if RANK == 1:
        Actions.source = fail


def hide_teacher():
    """Let the second not find the teacher."""

    def fail(_actions):
        raise ModelError("teacher is not there.")

    training.outline_teacher = fail


def trace_only():
    """Compile as `torch.compile` does, up to the code that takes long; tell how many graphs."""
    counter = CompileCounterWithBackend("aot_eager")
    torch.compile = partial(torch.compile, backend=counter)
    atexit.register(lambda: sys.stderr.write(f"rank {RANK}: {counter.frame_count} graphs\n"))


if __name__ == "__main__":
    changes = {
        "disk": fill_disk,
        "data": hide_data,
        "teacher": hide_teacher,
        "trace": trace_only,
    }
    changes[sys.argv.pop(1)]()
    main()
