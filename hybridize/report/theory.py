"""What counting alone predicts of speed and memory: FLOPs and bytes of a layout."""

from collections.abc import Mapping
from typing import Any

from hybridize.core.shape import ModelShape
from hybridize.report.models import ModelFacts
from hybridize.report.run_data import RunData
from hybridize.report.tables import Cell

BYTES_PER_VALUE = {"float32": 4, "bfloat16": 2, "float16": 2}


class Theory:
    """Predictions for the models of one run; speeds scale with the teacher's shortest context."""

    def __init__(self, run: RunData, teacher: ModelFacts) -> None:
        plan, bench = run.plan or {}, run.bench or {}
        self._shape = _read_shape(run.teacher)
        self._options: dict[str, Any] = {str(plan.get("mixer")): plan.get("mixer_options") or {}}
        self._bytes_per_value = BYTES_PER_VALUE.get(str(bench.get("dtype")))
        self._batch = bench.get("batch")
        self._teacher = teacher
        self._anchor = min(teacher.speed, default=None)

    def predict(self, model: ModelFacts, context_tokens: int) -> dict[str, Cell]:
        """Return cache bytes, exact, and speeds in proportion to FLOPs a token; {} if unknown."""
        teacher, anchor = self._teacher.layout, self._anchor
        if self._shape is None or model.layout is None or teacher is None or anchor is None:
            return {}
        found: dict[str, Cell] = {}
        if self._bytes_per_value and self._batch:
            one = self._shape.cache_bytes(
                model.layout,
                context_tokens,
                bytes_per_value=self._bytes_per_value,
                options=self._options,
            )
            found["cache_bytes_by_formula"] = one * int(self._batch)
        # A token of a prompt sees half the prompt on average, a decoded one all of it.
        for part, share in (("prefill", 0.5), ("decode", 1.0)):
            base = self._teacher.speed[anchor].get(f"{part}_tokens_per_second")
            if base:
                flops = [
                    self._shape.flops_per_token(layout, round(share * tokens), self._options)
                    for layout, tokens in ((teacher, anchor), (model.layout, context_tokens))
                ]
                found[f"{part}_tokens_per_second_by_flops"] = base * flops[0] / flops[1]
        return found


def _read_shape(teacher: Mapping[str, Any] | None) -> ModelShape | None:
    """Return the teacher's sizes; None of a run that did not note all of them."""
    try:
        return ModelShape.from_json(teacher or {})
    except TypeError:
        return None
