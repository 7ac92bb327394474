"""Aligned mixers come nearer to the attention, each as if alone, and fit into any layout."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

import hybridize as hz
from hybridize.core.errors import Interrupted, ModelError, RecipeError
from hybridize.core.layout import Layout
from hybridize.models.model import Model
from hybridize.stages import align
from hybridize.stages.align import Alignment, AlignSettings, make_candidates
from hybridize.stages.convert import convert_folder
from hybridize.stages.importance import ReplaceOneSettings, replace_one
from hybridize.surgery.aligned import AlignedMixers
from hybridize.surgery.apply import convert, plan_weights
from hybridize.surgery.fresh import FreshSettings, convert_fresh
from hybridize.training.data import batch
from hybridize.training.objectives import count_tokens
from hybridize.training.optim import OptimizerSettings
from hybridize.training.settings import FitSettings
from tests.close import assert_close
from tests.tiny import as_student, tiny_teacher
from tests.tiny_tasks import save_task_teacher, task_rows, task_teacher

TRAINING = FitSettings(
    tokens=12 * 256,
    tokens_per_step=256,
    grad_clip=None,
    optimizer=OptimizerSettings(lr=5e-3, weight_decay=0.0),
)
SETTINGS = AlignSettings(training=TRAINING, fresh=FreshSettings(seed=3), heldout_tokens=512)


@pytest.fixture(scope="module")
def teacher():
    return task_teacher()


@pytest.fixture(scope="module")
def aligned(teacher, tmp_path_factory):
    folder = tmp_path_factory.mktemp("aligned")
    return align.run(teacher, task_rows(), SETTINGS, folder, heldout=task_rows("heldout"))[0]


def read_files(aligned):
    return {path.name: load_file(path) for path in sorted(aligned.folder.glob("*.safetensors"))}


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name


def test_every_mixer_comes_nearer_to_the_attention(aligned):
    assert aligned.layers == (0, 1, 2, 3)
    for entry in aligned.errors:
        assert entry.after < 0.9 * entry.before, entry


def test_the_error_is_that_of_the_layers_of_the_teacher(teacher):
    """Against the outputs that hooks on the modules of an unpacked row see."""
    rows = batch(task_rows(), 0, 1)
    real = rows.segments_BT[0] == 1
    alone = replace(
        rows,
        input_ids_BT=rows.input_ids_BT[:, real],
        segments_BT=rows.segments_BT[:, real],
        loss_mask_BT=rows.loss_mask_BT[:, real],
    )
    candidates = make_candidates(teacher, SETTINGS)
    found = Alignment(teacher.network, by_layer=True)(candidates, alone)
    seen = {}
    hooks = [
        layer.self_attn.register_forward_hook(
            lambda _, args, kwargs, made, n=n: seen.update({n: (kwargs["hidden_states"], made[0])}),
            with_kwargs=True,
        )
        for n, layer in enumerate(teacher.network.model.layers)
    ]
    with torch.no_grad():
        teacher.network(alone.input_ids_BT)
    for hook in hooks:
        hook.remove()
    assert found.count == real.sum() == len(seen[0][0][0])
    ctx, squares = teacher.network.make_context(seen[0][0]), 0.0
    for layer, (given, made) in seen.items():
        output = candidates.mixers[layer](given, ctx)
        error = ((output - made).norm(dim=-1) / made.norm(dim=-1)).sum()
        assert_close(found.parts[f"layer-{layer:02d}"], error.detach(), 1e-5)
        squares += (output - made).square().sum().detach()
    assert_close(found.total.detach(), squares, 1e-5)


def test_padding_does_not_count_and_prompts_do(teacher):
    rows = batch(task_rows(), 0, 2)
    loss = Alignment(teacher.network)
    real = int((rows.segments_BT != 0).sum())
    assert rows.num_counted < count_tokens(loss, rows) == real < rows.input_ids_BT.numel()
    other = replace(rows, input_ids_BT=torch.where(rows.segments_BT == 0, 7, rows.input_ids_BT))
    candidates = make_candidates(teacher, SETTINGS)
    assert_close(loss(candidates, other).total, loss(candidates, rows).total, 1e-5)


def test_the_teacher_runs_once_a_batch_for_all_layers_and_only_mixers_train(teacher, tmp_path):
    training = replace(TRAINING, tokens=3 * 256, rows_per_microbatch=1)
    num_batches = 3 * 256 // task_rows().sequence_length
    ran = []
    hooks = [
        block.register_forward_hook(lambda *_, n=n: ran.append(n))
        for n, block in enumerate(teacher.network.model.layers)
    ]
    _, fitted = align.run(teacher, task_rows(), replace(SETTINGS, training=training), tmp_path)
    for hook in hooks:
        hook.remove()
    assert ran == [0, 1, 2, 3] * num_batches
    student = convert(teacher.network, Layout.parse("MMMM"))
    mixers = (layer.mixer for layer in student.model.layers)
    assert fitted.trainable == sum(p.numel() for mixer in mixers for p in mixer.parameters())


@pytest.mark.parametrize("layer", [0, 3])
def test_a_layer_alone_gets_the_same_weights(teacher, aligned, tmp_path, layer):
    settings = replace(SETTINGS, layers=(layer,))
    alone, _ = align.run(teacher, task_rows(), settings, tmp_path)
    assert alone.layers == (layer,)
    name = f"layer-{layer:02d}.safetensors"
    assert_same(read_files(alone)[name], read_files(aligned)[name])


def test_the_teacher_stays_as_it_was(teacher):
    fresh = task_teacher().network.state_dict()
    assert_same(teacher.network.state_dict(), fresh)
    assert all(parameter.grad is None for parameter in teacher.network.parameters())


def test_a_student_has_exactly_the_aligned_mixers(teacher, aligned):
    files = read_files(aligned)
    assert list(files) == [f"layer-{layer:02d}.safetensors" for layer in range(4)]
    start = FreshSettings(init="aligned", aligned=aligned.folder)
    for strip in ("AMAM", "MMMM"):
        network = convert_fresh(teacher.network, Layout.parse(strip), start, source=teacher.network)
        state = network.state_dict()
        for layer in network.layout.converted:
            own = files[f"layer-{layer:02d}.safetensors"]
            assert_same({n: t for n, t in state.items() if f".{layer}.mixer." in n}, own)
    weights = plan_weights(teacher.network, Layout.parse("AMAM"), init="aligned")
    assert weights.counts["of aligned mixers"] == 2 * len(own)


def test_layers_converted_before_and_calibration_leave_aligned_mixers_alone(teacher, aligned):
    first = convert(teacher.network, Layout.parse("AMAA"), init="random", seed=8)
    start = FreshSettings(init="aligned", aligned=aligned.folder)
    rows = batch(task_rows(), 0, 2)
    network = convert_fresh(
        first,
        Layout.parse("AMAM"),
        start,
        source=teacher.network,
        calibration=(rows.input_ids_BT, rows.segments_BT),
    )
    state, before = network.state_dict(), first.state_dict()
    for name, tensor in state.items():
        if ".1.mixer." in name:
            assert torch.equal(tensor, before[name]), name
    own = read_files(aligned)["layer-03.safetensors"]
    assert_same({n: t for n, t in state.items() if ".3.mixer." in n}, own)


def test_folder_to_folder_gives_the_same(aligned, tmp_path):
    teacher = save_task_teacher(tmp_path / "teacher")
    how = {"init": "aligned", "aligned": aligned.folder}
    out = convert_folder(teacher, Layout.parse("AAMM"), tmp_path / "h2", settings=how)
    loaded = hz.load_teacher(teacher, device="cpu")
    network = hz.convert(loaded, Layout.parse("AAMM"), init=aligned).network
    assert_same(hz.load_model(out, device="cpu").network.state_dict(), network.state_dict())


def test_an_interrupted_alignment_goes_on_to_the_same_weights(teacher, aligned, tmp_path):
    steps = []
    run = (teacher, task_rows(), SETTINGS, tmp_path)
    with pytest.raises(Interrupted, match="after step 5 of 12"):
        align.run(*run, progress=steps.append, stop=lambda: len(steps) == 5)
    assert not list(tmp_path.glob("*.safetensors")) and not (tmp_path / "aligned.json").exists()
    made, _ = align.run(*run, progress=steps.append)
    assert [record.step for record in steps] == list(range(1, 13))
    for name, tensors in read_files(aligned).items():
        assert_same(read_files(made)[name], tensors)


def test_replace_one_starts_from_aligned_mixers(teacher, aligned):
    heldout = task_rows("heldout")
    probe = ReplaceOneSettings(
        tokens=512, steps=0, fresh=FreshSettings(init="aligned", aligned=aligned.folder)
    )
    found = replace_one(teacher, teacher, task_rows(), heldout, probe)
    other = hz.measure_importance(
        teacher, heldout, settings=hz.ReplaceOne(steps=0), tokens=512, mixer=aligned
    )
    raw = replace_one(teacher, teacher, task_rows(), heldout, replace(probe, fresh=SETTINGS.fresh))
    assert [entry.score for entry in found.scores] == [entry.score for entry in other.scores]
    assert sum(e.score for e in found.scores) < 0.9 * sum(e.score for e in raw.scores)


@pytest.mark.parametrize("family", ["granite", "olmo2", "phi3"])
@pytest.mark.parametrize("kind", ["gated_delta", "mamba1"])
def test_other_families_and_mixers_are_aligned(family, kind, tmp_path):
    """Families that scale or norm what a mixer makes, after it is compared."""
    known = task_teacher()
    vocab = known.network.config.vocab_size
    teacher = Model("teacher", as_student(tiny_teacher(family, vocab=vocab)), known.tokenizer)
    made = hz.align(
        teacher,
        task_rows(),
        out=tmp_path,
        settings={"tokens": 2048, "tokens_per_step": 256, "lr": 5e-3},
        mixer={"kind": kind, "options": {"state_size": 8} if kind == "mamba1" else {}},
        layers=[1, 2],
        heldout=task_rows("heldout"),
    )
    assert made.layers == (1, 2) and made.kind == kind
    assert all(entry.after < entry.before for entry in made.errors)
    assert str(AlignedMixers.read(tmp_path)) == str(made)


def test_what_does_not_fit_is_refused(teacher, aligned, tmp_path):
    def start(folder, strip="AMAM", **options):
        how = FreshSettings(init="aligned", aligned=folder, options=options)
        convert_fresh(teacher.network, Layout.parse(strip), how, source=teacher.network)

    with pytest.raises(ModelError, match=r"holds no aligned mixers: aligned.json is missing"):
        start(tmp_path)
    with pytest.raises(ModelError, match=r"init aligned needs mixers that were aligned before"):
        start(None)
    with pytest.raises(
        ModelError, match=r"layer 1 becomes gated_delta \{\}, but .* holds mamba2 \{\}"
    ):
        start(aligned.folder, "AGAA")
    with pytest.raises(ModelError, match=r"becomes mamba2 \{'state_size': 4\}"):
        start(aligned.folder, state_size=4)
    contents = json.loads((aligned.folder / "aligned.json").read_text())
    contents["errors"] = contents["errors"][:2]
    (tmp_path / "aligned.json").write_text(json.dumps(contents))
    with pytest.raises(ModelError, match=r"holds no mixer for layer 3, only for 0, 1"):
        start(tmp_path)
    with pytest.raises(ModelError, match=r"layer-01.safetensors: model.layers.1.mixer.* be read"):
        start(tmp_path, "AMAA")
    tensors = read_files(aligned)["layer-01.safetensors"]
    save_file(
        tensors | {"model.layers.1.mixer.D": torch.zeros(9)}, tmp_path / "layer-01.safetensors"
    )
    with pytest.raises(ModelError, match=r"model.layers.1.mixer.D has shape \(9,\), not \(4,\)"):
        start(tmp_path, "AMAA")
    (tmp_path / "aligned.json").write_text("{}")
    with pytest.raises(ModelError, match=r"aligned.json is damaged \('errors'\)"):
        start(tmp_path)


def test_what_cannot_be_aligned_is_refused(teacher, tmp_path):
    with pytest.raises(ModelError, match=r"mixer identity has nothing to train"):
        hz.align(teacher, task_rows(), out=tmp_path, mixer={"kind": "identity"})
    with pytest.raises(ModelError, match=r"no attention in layer 9 .* attention: 0, 1, 2, 3"):
        hz.align(teacher, task_rows(), out=tmp_path, layers=[9])
    with pytest.raises(RecipeError, match=r"align.learning_rate is not a setting"):
        hz.align(teacher, task_rows(), out=tmp_path, settings={"learning_rate": 1e-3})
