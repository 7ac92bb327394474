"""The report of one run: which tables and figures stand where, and the words between them."""

from hybridize.core.importance import Importance
from hybridize.core.layout import explain_letters
from hybridize.report import (
    answers,
    rows,
    rows_cost,
    rows_scores,
    rows_suites,
    rows_training,
    units,
)
from hybridize.report.blocks import (
    Block,
    Caution,
    Figure,
    Folded,
    Missing,
    Pair,
    Paragraph,
    Report,
    Section,
    Verbatim,
)
from hybridize.report.figures import bars, curves, layers, merge, scores
from hybridize.report.models import (
    headline,
    list_models,
    relative_speed,
    stated_context,
    verdict_of,
)
from hybridize.report.quantization import quantization
from hybridize.report.run_data import RunData
from hybridize.report.sections_suites import beside_the_teacher, long_context
from hybridize.report.tables import Table


def run_report(run: RunData) -> Report:
    """Arrange everything a run folder holds; what is missing is said in its place."""
    return Report(
        name=run.name,
        verdict=verdict_of(run),
        first=(*_damaged(run), *_in_short(run), *_pictures(run), rows.models_table(run)),
        sections=(
            Section("importance", "Importance of the layers", _importance(run)),
            Section("stages", "Stages and distillation", _distillation(run)),
            Section("scores", "Scores", _scores(run)),
            Section("context", "Long context", long_context(run)),
            Section("teacher", "Beside the teacher", beside_the_teacher(run)),
            Section("likelihood", "Likelihood beside generated answers", _likelihood(run)),
            Section("speed", "Speed and memory", _speed(run)),
            Section("merge", "Merge", _merge(run)),
            Section("quantize", "Quantization", quantization(run)),
            Section("exports", "Exports", _exports(run)),
            Section("cost", "Cost and reproduction", _cost(run)),
        ),
        extra_tables=(rows.verdict_table(run), rows_training.load_table(run)),
    )


def _damaged(run: RunData) -> list[Block]:
    return [Caution(text) for text in run.damaged]


def _in_short(run: RunData) -> list[Block]:
    """Answer what a reader has a minute for."""
    words, table = answers.pick_words(run), answers.answers_table(run)
    return [*([Paragraph(words)] if words else []), *([table] if table else [])]


def _pictures(run: RunData) -> tuple[Block, ...]:
    """Show layouts and score against speed, side by side where both are there."""
    blocks = (*_strips(run), *_pareto(run))
    match blocks:
        case (Figure() as left, Figure() as right):
            return (Pair(left, right),)
    return blocks


def _strips(run: RunData) -> tuple[Block, ...]:
    table = rows.layouts_table(run)
    if not table.rows:
        return (Missing("No layout is known yet: teacher.json and plan.json are not there."),)
    planned = any(row["state"] != "done" for row in table.rows)
    letters = explain_letters(model.layout for model in list_models(run) if model.layout)
    caption = (
        f"A row per model, a cell per layer, counted from 0: {letters}; "
        "an outline marks the layers converted in that stage."
    )
    if planned:
        caption += " Pale rows are planned and not trained yet."
    return (Figure("layout-strips", caption, table, layers.layout_strips),)


def _pareto(run: RunData) -> tuple[Block, ...]:
    table = rows.pareto_table(run)
    if len(table.rows) < 2:
        return (
            Missing(
                "Score against speed is not there yet: "
                "it needs eval/ (scores, or agreement) and bench/ of the teacher and of a student."
            ),
        )
    caption = (
        "Up is better, right is faster. Each point is a measured model with the tokens it was "
        "trained on; bars are one standard error; the dotted line joins the models that no other "
        f"one beats in both. {_load_words(run, stated_context(run))}"
    )
    return (Figure("pareto", caption, table, scores.pareto),)


def _load_words(run: RunData, context: int | None) -> str:
    bench = run.bench or {}
    words = [] if context is None else [f"context {units.count_text(context)} tokens"]
    if "output_tokens" in bench:
        words.append(f"{units.count_text(bench['output_tokens'])} tokens decoded")
    if "batch" in bench:
        words.append(f"batch {bench['batch']}")
    words += [str(bench[key]) for key in ("dtype", "device") if bench.get(key)]
    if bench.get("threads"):
        words.append(f"{bench['threads']} threads")
    return f"Load: {', '.join(words)}." if words else ""


def _importance(run: RunData) -> tuple[Block, ...]:
    if not run.importance:
        return (Missing("No importance has been measured yet (importance/*.json)."),)
    blocks: list[Block] = []
    for name, measured in run.importance.items():
        if measured.method == "replace_one":
            continue
        table = rows.importance_table(run, name)
        what = rows.importance_title(measured, name)
        caption = (
            f"{what}. A bar per layer, taller = the model needs it more; rose bars are converted "
            "in the end, blue ones stay attention; the three most important are numbered, and one "
            f"far above the others is cut at the line. {_measured_words(measured)}"
        )
        blocks.append(Figure(table.name, caption, table, bars.importance_bars))
    replaced = rows.replacements_table(run)
    if replaced is not None:
        found = [one for one in run.importance.values() if one.method == "replace_one"]
        caption = (
            "Replace one layer by a fresh mixer and train shortly, before each stage. Taller = "
            "less of it could be learned back; rose bars are converted in that stage, blue ones "
            "stay attention. One scale for all panels; a bar far above the others is cut. "
            f"{_measured_words(found[0], 'the student so far')}"
        )
        blocks.append(Figure(replaced.name, caption, replaced, bars.replacement_bars))
    ranks = rows.ranks_table(run)
    if ranks.rows:
        caption = (
            "Layers in the order of their rank, least important at the top, before and after a "
            "short distillation of each replacement. Bold lines cross the cut or jump furthest, "
            "with the number of places gained (+) in brackets; what ends above the cut is cheapest "
            "to convert."
        )
        blocks.append(Figure("replacement-ranks", caption, ranks, layers.rank_bumps))
    return tuple(blocks)


def _measured_words(measured: Importance, model: str | None = None) -> str:
    tokens = max((entry.tokens for entry in measured.scores), default=0)
    words = f"Measured on {units.tokens_text(tokens)} tokens a layer" if tokens else "Measured"
    if measured.method == "replace_one":
        words += f" after {units.count_text(measured.steps)} steps of training each"
    return f"{words}, on {model or measured.model}."


def _distillation(run: RunData) -> tuple[Block, ...]:
    blocks: list[Block] = []
    aligned = rows_training.align_table(run)
    if aligned.rows:
        words = (
            "Before the first stage the mixer of each layer was trained once, on "
            f"{units.tokens_text((run.align or {}).get('tokens', 0))} tokens, against the "
            "attention of its layer. The error is the length of the difference by the length of "
            "the attention's output, mean over held-out tokens: 0 is equal, 1 is as far as silence."
        )
        blocks += [Paragraph(words), aligned]
    stages = rows_training.stages_table(run)
    if stages.rows:
        blocks.append(stages)
    waiting = [m.name for m in list_models(run) if m.state != "done"]
    if waiting:
        blocks.append(Missing(f"Not finished yet: {', '.join(waiting)}."))
    curve = rows_training.distillation_table(run)
    if curve.rows:
        caption = (
            "Reverse KL of the student from the teacher over all tokens trained on since the "
            "teacher, on a log axis: lower is closer. The line is training, rings are held-out "
            "text; a dashed rule is the start of a stage, where its layers are converted: the "
            "number under its name is the spike, the value right after the conversion."
        )
        blocks.append(Figure("distillation", caption, curve, curves.distillation_curves))
    sft = rows_training.sft_table(run)
    if sft.rows:
        caption = (
            "Loss of supervised fine-tuning over tokens since the teacher, on a log axis: lower is "
            "better. It is next-token loss, so it does not compare with the reverse KL above."
        )
        blocks.append(Figure("sft", caption, sft, curves.sft_curve))
    return tuple(blocks) or (Missing("No stage has been trained yet (stages/*)."),)


def _scores(run: RunData) -> tuple[Block, ...]:
    table = rows_scores.scores_table(run)
    if not table.rows:
        return (Missing("No model has been evaluated yet (eval/*.json)."),)
    blocks: list[Block] = []
    bars = rows_scores.score_bars_table(run)
    if bars is None:
        blocks.append(Missing("Teacher and student cannot be compared yet: one is not evaluated."))
    else:
        caption = (
            "Share of problems solved by kind, the largest loss first; whiskers are one standard "
            "error, n is the number of problems. ▼ marks a loss of more than "
            f"{rows_scores.SIGNIFICANT_ERRORS:.0f} standard errors of the difference."
            f"{_speed_words(run)}"
        )
        blocks.append(Figure("score-bars", caption, bars, scores.score_bars))
    by_converted = rows_scores.score_by_converted_table(run)
    if len({row["converted"] for row in by_converted.rows}) > 1:
        caption = (
            "A line per kind over the number of converted layers, teacher at 0. The mean is bold, "
            "with one standard error; the kind that loses most is rose. Where a line bends "
            "down is where to stop converting."
        )
        figure = Figure("score-by-converted", caption, by_converted, scores.score_by_converted)
        blocks.append(figure)
    blocks.append(rows_scores.score_matrix_table(run))
    paired = rows_suites.paired_table(run)
    if paired is not None:
        blocks += [Paragraph(rows_suites.PAIRED_WORDS), Folded(paired)]
    blocks += [*rows_suites.suite_tables(run), Folded(table)]
    folded = [Folded(groups)] if (groups := rows_suites.groups_table(run)) else []
    return (*blocks, *folded)


def _speed_words(run: RunData) -> str:
    """Say beside a loss what it buys; nothing where speed was not measured."""
    student, context = headline(run), stated_context(run)
    if student is None or context is None:
        return ""
    speed = relative_speed(student, list_models(run)[0], context)
    if speed is None:
        return ""
    return (
        f" Beside it, {student.name} decodes at {units.ratio_text(speed)}x the teacher's speed "
        f"at context {units.count_text(context)}."
    )


def _likelihood(run: RunData) -> tuple[Block, ...]:
    table = rows_scores.likelihood_table(run)
    if len(table.rows) < 2:
        return (Missing("Two evaluated models are needed to compare likelihood and accuracy."),)
    blocks: list[Block] = []
    clear = [pair for pair in rows_scores.disagreements(table.rows) if pair[2]]
    within_noise = [pair for pair in rows_scores.disagreements(table.rows) if not pair[2]]
    if clear:
        pairs = "; ".join(f"{first} before {second}" for first, second, _ in clear)
        blocks.append(
            Caution(
                f"Log-likelihood and generated answers rank these models differently: {pairs} by "
                "likelihood, the other way round by accuracy. Trust the generated answers."
            )
        )
    if within_noise:
        pairs = ", ".join(f"{first} and {second}" for first, second, _ in within_noise)
        blocks.append(
            Paragraph(
                f"Likelihood and accuracy order these pairs differently: {pairs}. "
                "Their accuracies differ by less than the standard error of the difference."
            )
        )
    if not clear and not within_noise:
        blocks.append(Paragraph("Both rank the models in the same order."))
    caption = (
        "Right: the reference answer is more likely. Up: the model's own answer is right more "
        "often, with one standard error. Points off the rising diagonal are models that "
        "likelihood alone would misjudge."
    )
    blocks.append(Figure("likelihood", caption, table, scores.likelihood_scatter))
    return tuple(blocks)


def _speed(run: RunData) -> tuple[Block, ...]:
    table = rows_training.speed_table(run)
    if not table.rows:
        return (Missing("Nothing has been timed yet (bench/bench.json)."),)
    caption = (
        "Both axes are logarithmic. Prefill reads the prompt, decode writes one token at a time; "
        "cache and state is what the whole batch keeps in memory. Blue is the teacher, rose the "
        f"model of the verdict, grey the others{_twins(table)}. {_predicted(table)}"
        f"{_load_words(run, None)}"
    )
    figure = Figure("speed", caption, table, curves.speed_and_memory)
    return (figure,)


def _twins(table: Table) -> str:
    """Name the models that are not drawn because another one has their layout."""
    shown = {str(row["model"]): str(row["shown_as"]) for row in table.rows}
    hidden = [f"{model} is as {other}" for model, other in shown.items() if model != other]
    return f"; {', '.join(hidden)}" if hidden else ""


def _predicted(table: Table) -> str:
    if not any(row.get("decode_tokens_per_second_by_flops") for row in table.rows):
        return ""
    return (
        "Dashed: what counting alone predicts, bytes exactly, and speed in proportion to the "
        "FLOPs of a token, starting at the teacher's shortest context. "
    )


def _merge(run: RunData) -> tuple[Block, ...]:
    table = rows_scores.merge_table(run)
    if table is None:
        return (Missing("No models have been merged (merge/result.json)."),)
    scored = [row for row in table.rows if row["score"] is not None]
    if len(scored) < len(table.rows):
        return (table, Missing("Not all of these have been evaluated yet."), *_sweep(run))
    best = max(scored, key=lambda row: float(row["score"] or 0))
    merged = scored[-1]
    words = (
        "The merge scores at least as high as each of its members."
        if best["score"] == merged["score"]
        else f"{best['model']} alone scores higher than the merge."
    )
    return (Paragraph(words), table, *_sweep(run))


def _sweep(run: RunData) -> tuple[Block, ...]:
    table = rows_scores.sweep_table(run)
    if table is None:
        return (Missing("Other weights have not been tried (merge.sweep: [0, 0.25, ...])."),)
    first, second = (run.sweep or {})["models"]
    caption = (
        f"Mean score over the weight of {first}; the rest of the weight is {second}'s, so that "
        f"the left end is {second} alone and the right end {first} alone. Bars are one standard "
        "error; the rose point is the weight of the merge, where it was tried. Grey lines are "
        "kinds of problem."
    )
    return (Figure("merge-sweep", caption, table, merge.merge_sweep),)


def _exports(run: RunData) -> tuple[Block, ...]:
    table = rows_cost.exports_table(run)
    if table is None:
        return (Missing("Nothing has been exported (export/*/verification.json)."),)
    words = (
        "The difference is the largest of any logit (transformers) or log-probability (engines) "
        "on the prompts of the verification; same answers are greedy continuations that agree "
        "token for token."
    )
    return (Paragraph(words), table)


def _cost(run: RunData) -> tuple[Block, ...]:
    tables: list[Table] = [
        table for table in (rows_cost.cost_table(run), rows_cost.nodes_table(run)) if table.rows
    ]
    blocks: list[Block] = [*tables]
    if not tables:
        blocks.append(Missing("Nothing is recorded yet (environment.json, status.json)."))
    if run.recipe is not None:
        blocks.append(Verbatim("The recipe as given", run.recipe))
    if run.resolved_recipe is not None:
        blocks.append(Verbatim("The recipe with all defaults", run.resolved_recipe))
    return tuple(blocks)
