"""The sections on what suites found beside the scores: long context, agreement, layers."""

from hybridize.report import rows_suites
from hybridize.report.blocks import Block, Caution, Figure, Folded, Missing, Paragraph
from hybridize.report.figures import agreement, heat
from hybridize.report.run_data import RunData


def long_context(run: RunData) -> tuple[Block, ...]:
    """Show facts found by length and depth."""
    table = rows_suites.recall_table(run)
    if table is None:
        return (
            Missing(
                "Retrieval from long prompts has not been measured (evaluate.suite: [..., recall], "
                "or hybridize eval --suite recall --out RUN/eval/recall)."
            ),
        )
    return (Figure("recall", rows_suites.RECALL_WORDS, table, heat.heat_map),)


def beside_the_teacher(run: RunData) -> tuple[Block, ...]:
    """Show agreement on held-out text, and the distance of hidden states layer by layer."""
    blocks: list[Block] = []
    by_position = rows_suites.agreement_table(run)
    if by_position is None:
        blocks.append(
            Missing(
                "Agreement on held-out text has not been measured (evaluate.suite: "
                "[..., agreement], or hybridize eval --suite agreement --out RUN/eval/agreement)."
            )
        )
    else:
        words = rows_suites.AGREEMENT_WORDS
        blocks.append(Figure("agreement", words, by_position, agreement.agreement_curves))
    by_entropy = rows_suites.entropy_table(run)
    if by_entropy is not None:
        words = rows_suites.ENTROPY_WORDS
        blocks.append(Figure("agreement-entropy", words, by_entropy, agreement.entropy_curves))
    return (*blocks, *_layers(run))


def _layers(run: RunData) -> list[Block]:
    """Show the distance of hidden states, and what the diagnosis says of each layer."""
    errors = rows_suites.errors_table(run)
    diagnosis = rows_suites.diagnosis_table(run)
    if errors is None and diagnosis is None:
        return [
            Missing(
                "Layers have not been diagnosed (evaluate.diagnose: true, or hybridize diagnose "
                "--out RUN/eval/diagnosis)."
            )
        ]
    blocks: list[Block] = []
    if errors is not None:
        blocks.append(Figure("layer-errors", rows_suites.ERROR_WORDS, errors, heat.error_map))
    blocks += [Caution(text) for text in rows_suites.findings(run)]
    if diagnosis is not None:
        blocks += [Paragraph(rows_suites.DIAGNOSIS_WORDS), Folded(diagnosis)]
    return blocks
