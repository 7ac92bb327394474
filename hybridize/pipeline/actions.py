"""How each node of the street is done: load its inputs, call its stage, write its folder."""

from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hybridize.core.artifacts import (
    RunFolder,
    hash_file,
    hash_json,
    plain,
    read_json,
    read_result,
    write_json,
    write_text,
)
from hybridize.core.importance import Importance
from hybridize.core.plan import Plan, make_plan
from hybridize.core.recipe import Recipe
from hybridize.core.sections import Stage
from hybridize.core.shape import ModelShape
from hybridize.core.sources import Source
from hybridize.models.model import Model, load
from hybridize.pipeline.align import align_node
from hybridize.pipeline.evaluate import evaluate_node, tokens_of
from hybridize.pipeline.export import export_model
from hybridize.pipeline.measurements import measure_node
from hybridize.pipeline.observer import Observer
from hybridize.pipeline.outlook import Outlook
from hybridize.pipeline.quantize import quantize_node
from hybridize.pipeline.street import Node
from hybridize.pipeline.sweep import sweep_node
from hybridize.pipeline.training import Job, train, train_together
from hybridize.pipeline.translate import make_calibration, make_fresh_settings, make_source
from hybridize.stages import bench, convert, merge
from hybridize.surgery.fresh import FreshSettings
from hybridize.training.blend import warn_of_overlap
from hybridize.training.data import TaskRows, TokenSource
from hybridize.training.device import choose_device
from hybridize.training.distributed import Calls
from hybridize.training.loop import FitResult

Values = dict[str, Any]
CHECKED = "a node stands for what a checked recipe asks for"


class Actions:
    """Runs nodes one by one; models are loaded from the run folder when a node needs them."""

    def __init__(
        self,
        recipe: Recipe,
        run: RunFolder,
        device: str | None,
        observer: Observer,
        stop: Callable[[], bool],
        calls: Calls | None = None,
    ) -> None:
        """Choose what is run and where.

        Args:
            calls: how to reach the processes that train with this one; None if none do.
        """
        self.recipe, self.folder, self.observer, self.stop = recipe, run, observer, stop
        self.device, self.calls = choose_device(device), calls

    def run(self, node: Node) -> Values:
        """Do what a node stands for; return the values of its `result.json`."""
        kind, _, rest = node.name.partition("/")
        if kind == "importance":
            method, _, stage = rest.partition("-")
            return measure_node(self, node, method, stage or None)
        if kind == "eval":
            return evaluate_node(self, node)
        if node.name == "merge/sweep":
            return sweep_node(self, node)
        if kind == "quantize":
            return quantize_node(self, node)
        if kind == "export":
            return export_model(self.recipe, self.model(node.needs[0]), node, self.folder)
        if kind in self._once:
            return self._once[kind](node)
        return self._stage(node, self.recipe.stage(kind))

    @property
    def _once(self) -> dict[str, Callable[[Node], Values]]:
        return {
            "teacher": self._describe,
            "align": partial(align_node, self),
            "sft": self._sft,
            "merge": self._merge,
            "bench": self._bench,
        }

    @cached_property
    def teacher(self) -> Model:
        """The teacher, loaded once."""
        section = self.recipe.teacher
        model = load(section.model, dtype=section.dtype, revision=section.revision)
        _move(model, self.device).requires_grad_(False)
        return model

    @cached_property
    def data(self) -> TokenSource:
        """The training rows."""
        return self._rows(self.recipe.data.train)

    @cached_property
    def heldout(self) -> TokenSource | None:
        """The held-out rows; None where the recipe names none."""
        source = self.recipe.data.heldout
        if source is None:
            return None
        rows = self._rows(source, heldout=True)
        warn_of_overlap(self.data, rows)
        return rows

    @cached_property
    def fresh(self) -> FreshSettings:
        """How fresh mixers start."""
        return make_fresh_settings(self.recipe, self.folder.align)

    @cached_property
    def calibration(self) -> tuple[Tensor, Tensor] | None:
        """What fresh mixers are fitted on, if the recipe asks for it."""
        rows = make_calibration(self.data, self.recipe.mixer.calibrate)
        return rows and (rows[0].to(self.device), rows[1].to(self.device))

    def source(self, node: str) -> TokenSource:
        """Return the rows a stage, or `sft`, is trained on."""
        section = self.recipe.sft
        if node != "sft":
            return self.data
        assert section is not None and section.data is not None, CHECKED
        return self._rows(section.data)

    def _rows(self, source: Source, *, heldout: bool = False) -> TokenSource:
        """Open a source, with its tokens kept in the run folder; say what stored text holds."""
        rows = make_source(
            source,
            self.recipe,
            self.teacher.need_tokenizer(),
            heldout=heldout,
            cache=self.folder.tokens,
        )
        if not isinstance(rows, TaskRows):
            self.observer.node_said("data", f"data  {rows.summary}")
        return rows

    def model(self, name: str) -> Model:
        """Load a model of this run by name: `teacher`, a stage, `sft` or `merge`."""
        if name == "teacher":
            return self.teacher
        model = load(self.home(name) / "model", name=name, dtype=self.recipe.teacher.dtype)
        _move(model, self.device)
        return model

    def home(self, name: str) -> Path:
        """Return the folder of a stage, of `sft` or of `merge`."""
        if name in ("sft", "merge"):
            return self.folder.path / name
        names = [stage.name for stage in self.recipe.stages]
        return self.folder.stage(names.index(name), name)

    def _describe(self, node: Node) -> Values:
        shape = ModelShape.from_config(self.teacher.network.config.to_dict())
        values = {
            **plain(shape),
            "name": self.teacher.name,
            "path": self.recipe.teacher.model,
            "parameters": self.teacher.num_parameters,
            "fingerprint": node.settings["teacher"]["fingerprint"],
        }
        write_json(self.folder.teacher, values)
        self._save_plan(make_plan(self.recipe, shape))
        return values

    def _plan(self) -> Plan:
        """Make the plan of the recipe as it is now, with the layers of the stages that are done."""
        plan = make_plan(self.recipe, ModelShape.from_json(read_json(self.folder.teacher)))
        for stage in self.recipe.stages:
            result = read_result(self.home(stage.name))
            if result is not None and plan.layout_of(str(stage.start_from)) is not None:
                plan = plan.with_layers(stage.name, result.values["new_layers"])
        return plan

    def _save_plan(self, plan: Plan) -> None:
        write_json(self.folder.plan, plan.to_json())
        outlook = Outlook.make(self.recipe, plan, self.teacher.network)
        write_text(self.folder.plan.with_suffix(".txt"), outlook.text() + "\n")

    def start(self, node: str, out: Path | None = None) -> Model:
        """Return the student of a planned stage, or of `sft`, as it is before it is trained.

        Args:
            out: folder for the weight map of a conversion.
        """
        if node == "sft":
            assert self.recipe.sft is not None, CHECKED
            before = self.model(str(self.recipe.sft.start_from))
            return Model("sft", before.network, before.tokenizer)
        layout = Plan.from_json(read_json(self.folder.plan)).layout_of(node)
        assert layout is not None, "a stage is planned before it begins"
        return convert.run(
            self.model(str(self.recipe.stage(node).start_from)),
            layout,
            self.fresh,
            out,
            source=self.teacher,
            name=node,
            calibration=self.calibration,
        )

    def _stage(self, node: Node, stage: Stage) -> Values:
        new_layers = self._choose(stage)
        return {**self._train(node, str(stage.start_from)), "new_layers": new_layers}

    def _sft(self, node: Node) -> Values:
        assert self.recipe.sft is not None, CHECKED
        return self._train(node, str(self.recipe.sft.start_from))

    def _train(self, node: Node, start: str) -> Values:
        student = self.start(node.name, node.folder)
        job = Job(node.name, tokens_of(self, start) // self.recipe.data.sequence_length)
        if self.calls is None:
            fitted = train(self, job, student, self.teacher)
        else:
            student, fitted = train_together(self, job, student)
        return self._keep(node, student, fitted, start)

    def _choose(self, stage: Stage) -> tuple[int, ...]:
        """Decide the layers of a stage from its ranking, and note them in the plan."""
        plan = self._plan()
        before = plan.layout_of(str(stage.start_from))
        assert before is not None, "stages run in order"
        name = "leave_one_out" if stage.rank_by == "leave_one_out" else f"replace_one-{stage.name}"
        ranking = Importance.load(self.folder.importance(name))
        free = [entry.layer for entry in ranking.ranked() if entry.layer not in before.converted]
        layers = tuple(sorted(free[: stage.converted - len(before.converted)]))
        plan = plan.with_layers(stage.name, layers)
        self._save_plan(plan)
        layout = plan.layout_of(stage.name)
        self.observer.node_said(
            stage.name, f"{stage.start_from:<8}{before}\n{stage.name:<8}{layout}"
        )
        return layers

    def _keep(self, node: Node, model: Model, fitted: FitResult, start: str) -> Values:
        model.network.config.last_training_window = self.recipe.data.sequence_length
        model.save(node.folder / "model")
        return {
            "name": model.name,
            "layout": str(model.layout),
            "converted": model.layout.converted,
            "tokens": fitted.tokens,
            "cumulative_tokens": tokens_of(self, start) + fitted.tokens,
            "seconds": fitted.seconds,
            "loss": fitted.loss,
            "heldout_before": fitted.heldout_before,
            "heldout": fitted.heldout,
            "parameters": model.num_parameters,
            "trainable": fitted.trainable,
            "weights_sha256": _hash_weights(node.folder / "model"),
        }

    def _merge(self, node: Node) -> Values:
        section = self.recipe.merge
        assert section is not None and section.weights is not None, CHECKED
        settings = merge.MergeSettings(method=section.method, weights=section.weights)
        merged = merge.run([self.model(name) for name in section.models], settings)
        merged.save(node.folder / "model")
        return {
            "name": merged.name,
            "layout": str(merged.layout),
            "models": section.models,
            "weights": section.weights,
            "cumulative_tokens": max(tokens_of(self, name) for name in section.models),
            "weights_sha256": _hash_weights(node.folder / "model"),
        }

    def _bench(self, node: Node) -> Values:
        section = self.recipe.bench
        assert section is not None, CHECKED
        names = ["teacher", *(stage.name for stage in self.recipe.stages)]
        settings = bench.BenchSettings(
            context_tokens=section.context_tokens,
            output_tokens=section.output_tokens,
            batch=section.batch,
            repeats=section.repeats,
        )
        measured = bench.run(
            [self.model(name) for name in names],
            settings,
            node.folder,
            progress=lambda done, total: self.observer.node_progressed(node.name, done, total),
        )
        self.observer.node_said(node.name, str(measured))
        return {"models": names}


def _hash_weights(folder: Path) -> str:
    """Hash the weights of a model folder: the one file, or the hashes of its shards."""
    hashes = {path.name: hash_file(path) for path in sorted(folder.glob("*.safetensors"))}
    return hashes.get("model.safetensors") or hash_json(hashes)


def _move(model: Model, device: torch.device) -> torch.nn.Module:
    network: torch.nn.Module = model.network
    return network.to(device)
