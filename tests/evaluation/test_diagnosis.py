"""Faults that were planted in a student are found and named; a sound student has none."""

import pytest
import torch

from hybridize.core.errors import ModelError
from hybridize.evaluation.agreement import COMPLETION, PROMPT, measure_agreement
from hybridize.evaluation.diagnosis import Document, look, measure_contributions
from hybridize.evaluation.findings import find_faults
from hybridize.models.model import Model
from hybridize.surgery.apply import convert
from tests.tiny import as_student, tiny_teacher, tokens
from tests.tiny_tasks import task_student, task_teacher

DOCUMENTS = [Document(row.tolist(), 8) for row in tokens(3, 40, vocab=60, seed=5)]


@pytest.fixture(scope="module")
def teacher():
    return task_teacher(layers=6)


def sound(teacher, strip="AMMMMA"):
    """Return a student whose mixers all add something of the same size."""
    student = task_student(teacher, strip)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in student.layout.converted:
            weight = student.network.model.layers[layer].mixer.out_proj.weight
            weight.copy_(0.2 * torch.randn(weight.shape, generator=generator))
    return student


def test_a_zeroed_output_projection_is_found_and_named(teacher):
    student = sound(teacher)
    assert not [one for one in find_faults(look(student.network, DOCUMENTS)) if "hardly" in one]
    with torch.no_grad():
        student.network.model.layers[3].mixer.out_proj.weight.zero_()
    reports = look(student.network, DOCUMENTS, teacher.network)
    found = find_faults(reports)
    assert found[0] == "layer 3 (mamba2): model.layers.3.mixer.out_proj.weight is all zeros."
    assert found[1].startswith("layer 3 (mamba2): its mixer adds 0 of the size")
    assert any("layer 3" in text and "adds nothing that the model needs" in text for text in found)
    assert not [text for text in found if not text.startswith("layer 3") and "hardly" in text]
    assert reports[3].contribution_nats == 0 and reports[3].output_share == 0
    assert reports[3].own_error == pytest.approx(1), "all that the attention gives is missing"


def test_a_mixer_gone_astray_is_found_by_its_distance_to_the_teacher(teacher):
    student = sound(teacher)
    with torch.no_grad():
        student.network.model.layers[2].mixer.out_proj.weight.mul_(20)
    found = find_faults(look(student.network, DOCUMENTS, teacher.network))
    assert any(text.startswith("layer 2") and "fed the teacher's" in text for text in found)


def test_the_teacher_beside_itself_has_no_distance(teacher):
    reports = look(teacher.network, DOCUMENTS, teacher.network)
    assert all(one.own_error is None and one.contribution_nats is None for one in reports)
    assert [one.error for one in reports] == [0, 0, 0, 0, 0, None]
    assert set(reports[0].error_by_position) == {"16", "64"}
    assert find_faults(reports) == []


def test_looking_leaves_the_model_as_it_was(teacher):
    student = sound(teacher)
    ids = tokens(2, 20, vocab=60)
    before = student.network(ids).logits
    look(student.network, DOCUMENTS, teacher.network)
    assert torch.equal(before, student.network(ids).logits)
    assert "mix" not in vars(student.network.model.layers[1])


@pytest.mark.parametrize("kind", ["mamba2", "mamba1", "gated_delta"])
def test_memory_is_the_decay_of_the_mixer(teacher, kind):
    layout = teacher.layout.convert([1], to=kind)
    options = {"state_size": 8} if kind == "mamba1" else {}
    network = convert(teacher.network, layout, options=options)
    student = Model("student", network, teacher.tokenizer)
    mixer = student.network.model.layers[1].mixer
    found = look(student.network, DOCUMENTS)[1].memory
    assert 0 < found.state_rank <= 1 and found.state_growth > 0
    with torch.no_grad():
        mixer.A_log.sub_(torch.tensor(4.0).log())
    slower = look(student.network, DOCUMENTS)[1].memory
    assert slower.median_tokens == pytest.approx(4 * found.median_tokens, rel=1e-4)
    assert slower.longest_tokens == pytest.approx(4 * found.longest_tokens, rel=1e-4)


def test_mamba2_forgets_as_fast_as_its_memory_says(teacher):
    """The state after a write, left alone, has decayed to 1/e after the tokens of the memory."""
    student = task_student(teacher, "AMAAAA")
    mixer = student.network.model.layers[1].mixer
    with torch.no_grad():
        mixer.in_proj.weight[-mixer.num_heads :] = 0
        mixer.A_log.fill_(-torch.tensor(50.0).log())
    memory = look(student.network, DOCUMENTS)[1].memory
    assert memory.median_tokens == pytest.approx(50, rel=1e-4)
    assert memory.short_share == 0


def test_a_mixer_without_a_state_has_no_memory(teacher):
    for kind in ("identity", "sliding"):
        student = task_student(teacher, str(teacher.layout.convert([1], to=kind)))
        assert look(student.network, DOCUMENTS)[1].memory is None


def test_contributions_are_the_loss_without_the_mixer(teacher):
    student = sound(teacher, "AMAAAM")
    gains = measure_contributions(student.network, DOCUMENTS)
    assert set(gains) == {1, 5}
    assert all(abs(gain) > 1e-4 for gain in gains.values())


def test_agreement_is_that_of_a_direct_computation():
    teacher, student = (as_student(tiny_teacher(seed=seed)) for seed in (0, 1))
    rows = tokens(2, 20, seed=3).tolist()
    documents = [Document(row, 5) for row in rows]
    found = {(one.by, one.value): one for one in measure_agreement(teacher, student, documents)}
    with torch.no_grad():
        p, q = (
            torch.distributions.Categorical(logits=model(torch.tensor(rows)).logits.double())
            for model in (teacher, student)
        )
    kl = torch.distributions.kl_divergence(p, q)
    one = found[COMPLETION, None]
    assert one.forward_kl == pytest.approx(kl[:, 4:-1].mean().item(), rel=1e-5)
    assert found[PROMPT, None].forward_kl == pytest.approx(kl[:, :4].mean().item(), rel=1e-5)
    reverse = torch.distributions.kl_divergence(q, p)[:, 4:-1].mean().item()
    assert one.reverse_kl == pytest.approx(reverse, rel=1e-5)
    same = (p.logits.argmax(-1) == q.logits.argmax(-1))[:, 4:-1].double().mean().item()
    assert one.top1 == pytest.approx(same) and one.tokens == 30
    assert found["position", 32].forward_kl == pytest.approx(kl[:, 16:-1].mean().item(), rel=1e-5)
    parts = [row.tokens for key, row in found.items() if key[0] == "entropy"]
    assert sum(parts) == 30


def test_a_long_document_never_has_all_its_logits_at_once():
    stock = tiny_teacher()
    teacher, student = (as_student(tiny_teacher(seed=seed)) for seed in (0, 1))
    places = []
    student.lm_head.register_forward_hook(lambda head, given, made: places.append(len(made)))
    document = Document(tokens(1, 300)[0].tolist(), 5)
    found = measure_agreement(teacher, student, [document])
    measure_contributions(student, [document])
    assert sum(places[:2]) == 299 and max(places) <= 256
    for one, other in zip(measure_agreement(stock, student, [document]), found, strict=True):
        assert one.reverse_kl == pytest.approx(other.reverse_kl, rel=1e-5)


def test_a_model_agrees_with_itself_and_not_with_another_vocabulary():
    model, other = (as_student(tiny_teacher(vocab=vocab)) for vocab in (64, 80))
    document = Document(tokens(1, 10)[0].tolist(), 3)
    for one in measure_agreement(model, model, [document]):
        assert (one.forward_kl, one.reverse_kl, one.top1, one.top1_error) == (0, 0, 1, None)
    with pytest.raises(ModelError, match="vocabularies of 64 and 80"):
        measure_agreement(model, other, [document])
