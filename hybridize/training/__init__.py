"""The one training loop, its data and its losses; it trains any module that has `hidden`.

Example:
    source = TaskRows(tokenizer, sequence_length=1024, seed=17)
    objective = Distillation(teacher, {"reverse_kl": 1.0})
    result = fit(student, objective, source, FitSettings(tokens=2_000_000), out=folder)

Read in this order: `loop` (fit), `settings`, `objectives` (the loss of a batch), `data` and
`jsonl` (rows as a function of their index), `optim`, `checkpoint`, `metrics`, `device`.
"""

from hybridize.training.data import Batch, Row, TaskRows, TokenSource, batch
from hybridize.training.jsonl import JsonlRows
from hybridize.training.loop import fit
from hybridize.training.metrics import ConsoleLine, StepRecord
from hybridize.training.objectives import Distillation, LossSum, NextToken, measure
from hybridize.training.optim import OptimizerSettings, ScheduleSettings
from hybridize.training.settings import FitResult, FitSettings, Heldout

__all__ = [
    "Batch",
    "ConsoleLine",
    "Distillation",
    "FitResult",
    "FitSettings",
    "Heldout",
    "JsonlRows",
    "LossSum",
    "NextToken",
    "OptimizerSettings",
    "Row",
    "ScheduleSettings",
    "StepRecord",
    "TaskRows",
    "TokenSource",
    "batch",
    "fit",
    "measure",
]
