"""The budget of a run: every row once, in order, and the steps in which something is due."""

from hypothesis import given
from hypothesis import strategies as st

from hybridize.training.settings import Budget, FitSettings

numbers = st.integers(1, 5000)


@given(tokens=numbers, per_step=numbers, row_tokens=st.integers(1, 300), first_row=numbers)
def test_each_row_is_seen_once_in_order(tokens, per_step, row_tokens, first_row):
    settings = FitSettings(tokens=tokens, tokens_per_step=per_step, first_row=first_row)
    budget = Budget.of(settings, row_tokens)
    rows = [row for step in range(budget.num_steps) for row in budget.rows(step)]
    assert rows == list(range(first_row, first_row + budget.total_rows))
    assert tokens <= budget.tokens(budget.num_steps) < tokens + row_tokens
    assert all(len(budget.rows(step)) > 0 for step in range(budget.num_steps))


def test_due_is_the_step_that_passes_a_multiple():
    budget = Budget.of(FitSettings(tokens=1000, tokens_per_step=100), 100)
    assert [step for step in range(1, 11) if budget.is_due(step, 250)] == [3, 5, 8, 10]
    assert [step for step in range(1, 11) if budget.is_due(step, 30)] == list(range(1, 11))
    assert not any(budget.is_due(step, None) for step in range(1, 11))
