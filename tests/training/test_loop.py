"""fit(): accumulation, exact resume, interrupts, and stopping at numbers that are none."""

import json
import os
import signal

import pytest
import torch

from hybridize.core.artifacts import read_jsonl
from hybridize.core.errors import Interrupted, RecipeError, RunError
from hybridize.training.data import TaskRows
from hybridize.training.loop import fit
from hybridize.training.metrics import format_record
from hybridize.training.objectives import Distillation, LossSum, NextToken
from hybridize.training.optim import OptimizerSettings, ScheduleSettings
from hybridize.training.settings import FitSettings, Heldout
from tests.training.tiny import RandomRows, TinyModel, WordTokenizer

ROW = 16


def settings(steps=6, **changes):
    values = {
        "tokens": steps * 2 * ROW,
        "tokens_per_step": 2 * ROW,
        "optimizer": OptimizerSettings(lr=1e-2),
        "schedule": ScheduleSettings(name="wsd", warmup=0.3, decay=0.3),
    }
    return FitSettings(**{**values, **changes})


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(one, other):
    assert all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_distillation_lowers_the_heldout_loss(dtype):
    tokenizer, model = WordTokenizer(), TinyModel(2)
    source = TaskRows(tokenizer, sequence_length=128, seed=0)
    heldout = Heldout(
        source=TaskRows(tokenizer, sequence_length=128, seed=0, split="heldout"), tokens=1024
    )
    options = settings(
        tokens=20_000,
        tokens_per_step=512,
        rows_per_microbatch=4,
        dtype=dtype,
        optimizer=OptimizerSettings(name="muon", lr=1e-2),
        evaluate_every=10_000,
    )
    records = []
    result = fit(
        model,
        Distillation(TinyModel(1)),
        source,
        options,
        heldout=heldout,
        progress=records.append,
    )
    assert result.heldout["reverse_kl"] < 0.6 * result.heldout_before["reverse_kl"]
    assert result.tokens == 20_096 and result.steps == 40 and result.rows == 157
    assert [record.step for record in records if record.heldout] == [20, 40]
    assert records[-1].heldout == result.heldout and records[-1].eta_seconds == 0


def test_the_same_step_for_any_split_into_microbatches():
    after = []
    for rows in (1, 2, 4, 8):
        model = TinyModel(1)
        options = settings(
            tokens=3 * 8 * ROW, tokens_per_step=8 * ROW, rows_per_microbatch=rows, grad_clip=None
        )
        result = fit(model, Distillation(TinyModel(2)), RandomRows(), options)
        after.append((result.loss, weights(model)))
    for loss, values in after[1:]:
        assert loss == pytest.approx(after[0][0], rel=1e-6)
        for name, value in values.items():
            if name != "calls":
                torch.testing.assert_close(value, after[0][1][name], rtol=1e-5, atol=1e-6)


def test_a_last_step_may_be_shorter():
    records = []
    options = settings(tokens=5 * ROW - 3)
    result = fit(TinyModel(), NextToken(), RandomRows(), options, progress=records.append)
    assert [record.tokens for record in records] == [2 * ROW, 4 * ROW, 5 * ROW]
    assert result.rows == 5 and result.steps == 3


def test_only_chosen_parameters_change():
    model = TinyModel(1)
    before = weights(model)
    model.lm_head.requires_grad_(False)
    result = fit(model, NextToken(), RandomRows(), settings(train=("mixer",)))
    changed = {name for name, value in model.state_dict().items() if (value != before[name]).any()}
    assert changed - {"calls"} <= {name for name in before if ".mixer." in name}
    assert "layers.0.mixer.in_proj.weight" in changed
    assert result.trainable == sum(v.numel() for n, v in before.items() if ".mixer." in n)
    assert not model.lm_head.weight.requires_grad and model.embed.weight.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


def test_neither_mode_nor_random_numbers_of_the_caller_change():
    model = TinyModel(1, dropout=0.2).eval()
    before = torch.get_rng_state()
    fit(model, NextToken(), RandomRows(), settings())
    assert not model.training and torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("train", ["all", "mixer"])
def test_six_steps_are_three_and_an_interrupt_and_three(tmp_path, optimizer, train):
    options = settings(
        optimizer=OptimizerSettings(name=optimizer, lr=1e-2), train=(train,), evaluate_every=32
    )
    heldout = Heldout(source=RandomRows(seed=9), tokens=64)

    def run(model, out, **extra):
        return fit(
            model, Distillation(TinyModel(5)), RandomRows(), options, out, heldout=heldout, **extra
        )

    whole, broken = TinyModel(1, dropout=0.1), TinyModel(1, dropout=0.1)
    expected = run(whole, tmp_path / "whole")
    asked = iter([False, False, True])
    with pytest.raises(Interrupted, match=r"after step 3 of 6.*Run the same again to continue"):
        run(broken, tmp_path / "broken", stop=lambda: next(asked))
    with (tmp_path / "broken" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "tok')
    fresh = TinyModel(1, dropout=0.1)
    result = run(fresh, tmp_path / "broken")
    assert_same(weights(whole), weights(fresh))
    assert (result.loss, result.heldout, result.heldout_before) == (
        expected.loss,
        expected.heldout,
        expected.heldout_before,
    )
    lines, expected_lines = (
        list(read_jsonl(tmp_path / name / "metrics.jsonl")) for name in ("broken", "whole")
    )
    timing = ("seconds", "tokens_per_second", "peak_gib")
    for line, other in zip(lines, expected_lines, strict=True):
        assert {k: v for k, v in line.items() if k not in timing} == {
            k: v for k, v in other.items() if k not in timing
        }


def test_a_finished_run_is_not_run_again(tmp_path):
    model = TinyModel(1)
    first = fit(model, NextToken(), RandomRows(), settings(), tmp_path)
    again = TinyModel(1)
    seen = []
    second = fit(again, NextToken(), RandomRows(), settings(), tmp_path, progress=seen.append)
    assert second == first and not seen
    assert_same(weights(model), weights(again))


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    fit(TinyModel(1), NextToken(), RandomRows(), settings(), tmp_path)
    with pytest.raises(RunError, match=r"optimizer.lr: 0.01 -> 0.1. Put the old value back"):
        fit(
            TinyModel(1),
            NextToken(),
            RandomRows(),
            settings(optimizer=OptimizerSettings(lr=0.1)),
            tmp_path,
        )
    with pytest.raises(RunError, match=r"data.seed: 0 -> 1"):
        fit(TinyModel(1), NextToken(), RandomRows(seed=1), settings(), tmp_path)
    with pytest.raises(RunError, match=r"of another run. tensors.layers.2"):
        fit(TinyModel(1, layers=3), NextToken(), RandomRows(), settings(), tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_its_step(tmp_path, number):
    def interrupt(record):
        if record.step == 2:
            os.kill(os.getpid(), number)

    handler = signal.getsignal(number)
    model = TinyModel(1)
    with pytest.raises(Interrupted, match="after step 2 of 6, 64 of 192 tokens") as raised:
        fit(model, NextToken(), RandomRows(), settings(), tmp_path, progress=interrupt)
    assert signal.getsignal(number) == handler
    assert raised.value.exit_code == 128 + number
    state = json.loads((tmp_path / "checkpoint/step-00000002/state.json").read_text())
    assert state["step"] == 2


def test_an_interrupt_without_a_folder_says_that_nothing_was_kept():
    with pytest.raises(Interrupted, match="nothing was kept"):
        fit(TinyModel(), NextToken(), RandomRows(), settings(), stop=lambda: True)


class Poisoned(NextToken):
    """Makes the loss of one row, or its gradient alone, not a number."""

    def __init__(self, row, gradient_only=False):
        super().__init__()
        self.row, self.gradient_only = row, gradient_only

    def __call__(self, model, rows):
        loss = super().__call__(model, rows)
        if rows.first_row != self.row:
            return loss
        bad = loss.total * float("nan")
        if self.gradient_only:
            bad = loss.total + (bad - bad.detach()).nan_to_num(0.0) * 0
            bad.register_hook(lambda gradient: gradient * float("nan"))
        return LossSum(bad, loss.count, loss.parts)


@pytest.mark.parametrize("gradient_only", [False, True])
def test_a_number_that_is_none_stops_before_it_does_harm(tmp_path, gradient_only):
    model = TinyModel(1)
    good = TinyModel(1)
    fit(good, NextToken(), RandomRows(), settings(2, schedule=ScheduleSettings()))
    rows = "104 to 105" if gradient_only else "105 to 105"
    what = "the gradient" if gradient_only else "the loss"
    with pytest.raises(RunError, match=f"step 3: {what} is not finite, data rows {rows}"):
        fit(
            model,
            Poisoned(105, gradient_only),
            RandomRows(),
            settings(first_row=100, checkpoint_every=1, schedule=ScheduleSettings()),
            tmp_path,
        )
    state = json.loads((tmp_path / "checkpoint/step-00000002/state.json").read_text())
    assert state["step"] == 2
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert len(list(read_jsonl(tmp_path / "metrics.jsonl"))) == 2


class PoisonedTwice(Poisoned):
    """Rows 105 and 108 are bad: the third step, and the fifth."""

    def __call__(self, model, rows):
        self.row = rows.first_row if rows.first_row in (105, 108) else None
        return super().__call__(model, rows)


@pytest.mark.parametrize("gradient_only", [False, True])
def test_bad_steps_are_left_out_and_logged_and_resume_stays_exact(tmp_path, gradient_only):
    options = settings(first_row=100, skip_bad_batches=2)

    def run(model, out, **extra):
        return fit(model, PoisonedTwice(0, gradient_only), RandomRows(), options, out, **extra)

    whole, broken = TinyModel(1, dropout=0.1), TinyModel(1, dropout=0.1)
    records = []
    expected = run(whole, tmp_path / "whole", progress=records.append)
    asked = iter([False, False, True])
    with pytest.raises(Interrupted):
        run(TinyModel(1, dropout=0.1), tmp_path / "broken", stop=lambda: next(asked))
    result = run(broken, tmp_path / "broken")
    assert_same(weights(whole), weights(broken))
    assert result.loss == expected.loss and expected.steps == 6
    lines = list(read_jsonl(tmp_path / "broken" / "metrics.jsonl"))
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 4, 6]
    because, rows = ("the gradient", [104, 105]) if gradient_only else ("the loss", [105, 105])
    assert lines[2]["left_out"] == {"because": because, "rows": rows}
    assert not {"loss", "parts", "grad_norm"} & lines[2].keys()
    assert format_record("h1", records[2]).endswith(
        f"left out: {because} is not finite, rows {rows[0]} to {rows[1]}"
    )


def test_one_bad_step_too_many_stops_and_may_be_allowed_afterwards(tmp_path):
    def run(most):
        options = settings(first_row=100, checkpoint_every=1, skip_bad_batches=most)
        return fit(TinyModel(1), PoisonedTwice(0), RandomRows(), options, tmp_path)

    with pytest.raises(
        RunError, match=r"step 5: .*rows 108 to 108.*skip_bad_batches, at present 1"
    ):
        run(1)
    assert run(2).steps == 6


class AllBad(NextToken):
    def __call__(self, model, rows):
        loss = super().__call__(model, rows)
        return LossSum(loss.total * float("nan"), loss.count, loss.parts)


def test_a_run_of_bad_steps_alone_stops():
    with pytest.raises(RunError, match="step 6: the loss is not finite"):
        fit(TinyModel(), AllBad(), RandomRows(), settings(skip_bad_batches=99))


def test_a_heldout_loss_that_is_none_stops_too():
    with pytest.raises(RunError, match="held-out loss is not finite"):
        fit(
            TinyModel(),
            NextToken(),
            RandomRows(),
            settings(),
            heldout=Heldout(source=RandomRows(), tokens=64, objective=NaN()),
        )


class NaN(NextToken):
    def __call__(self, model, rows):
        loss = super().__call__(model, rows)
        return LossSum(loss.total, loss.count, {"cross_entropy": loss.total * float("nan")})


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(RecipeError, match="tokens is 0"):
        FitSettings(tokens=0)
    with pytest.raises(RecipeError, match="grad_clip is -1"):
        FitSettings(tokens=1, grad_clip=-1)
