"""The one training loop, its data and its losses; it trains any module that has `hidden`.

Example:
    source = TaskRows(tokenizer, sequence_length=1024, seed=17)
    objective = Distillation(teacher, {"reverse_kl": 1.0})
    result = fit(student, objective, source, FitSettings(tokens=2_000_000), out=folder)

Read in this order: `loop` (fit), `settings`, `objectives` (the loss of a batch), `data`,
`text_rows` and `blend` (rows as a function of their index), `optim`, `checkpoint`, `metrics`,
`device`. Stored text becomes rows by way of `records`, `render`, `encode` and `store`.
"""

from hybridize.training.blend import BlendRows
from hybridize.training.data import Batch, Row, TaskRows, TokenSource, batch
from hybridize.training.loop import fit
from hybridize.training.metrics import ConsoleLine, StepRecord
from hybridize.training.objectives import Distillation, LossSum, NextToken, measure
from hybridize.training.optim import OptimizerSettings, ScheduleSettings
from hybridize.training.settings import FitResult, FitSettings, Heldout
from hybridize.training.text_rows import TextRows, TextSettings

__all__ = [
    "Batch",
    "BlendRows",
    "ConsoleLine",
    "Distillation",
    "FitResult",
    "FitSettings",
    "Heldout",
    "LossSum",
    "NextToken",
    "OptimizerSettings",
    "Row",
    "ScheduleSettings",
    "StepRecord",
    "TaskRows",
    "TextRows",
    "TextSettings",
    "TokenSource",
    "batch",
    "fit",
    "measure",
]
