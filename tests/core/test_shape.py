"""The shape of a model counts what the real model has."""

import json

import pytest

from hybridize.core.artifacts import plain
from hybridize.core.errors import ModelError
from hybridize.core.families import FAMILIES as SIZES
from hybridize.core.layout import Layout
from hybridize.core.shape import ModelShape

CONFIG = {
    "num_hidden_layers": 3,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 48,
    "vocab_size": 64,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
}
VARIANTS = [
    {"model_type": "llama"},
    {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    {"model_type": "mistral", "tie_word_embeddings": True, "sliding_window": None},
    {"model_type": "qwen2", "head_dim": 8},
    {"model_type": "qwen3", "attention_bias": True},
    {"model_type": "smollm3"},
    {"model_type": "smollm3", "attention_bias": True, "mlp_bias": True},
    {"model_type": "granite", "head_dim": 8},
    {"model_type": "granite", "attention_bias": True, "mlp_bias": True},
    {"model_type": "olmo2"},
    {"model_type": "olmo2", "attention_bias": True, "num_key_value_heads": None},
    {"model_type": "phi3", "head_dim": 8},
    {"model_type": "phi3", "tie_word_embeddings": True},
]


def test_the_same_families_are_known_with_and_without_torch():
    from hybridize.models.families import FAMILIES

    assert list(FAMILIES) == list(SIZES)


LEFT_OUT = ("num_key_value_heads", "head_dim", "tie_word_embeddings", "sliding_window")


@pytest.mark.parametrize("family", SIZES)
def test_what_a_config_leaves_out_is_what_transformers_puts_in(family):
    from transformers import AutoConfig

    config = {key: value for key, value in CONFIG.items() if key not in LEFT_OUT}
    config |= {"model_type": family, "num_attention_heads": 32, "hidden_size": 64}
    whole = AutoConfig.for_model(**config)
    assert ModelShape.from_config(config) == ModelShape.from_config(whole.to_dict())


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(map(str, v.values())))
def test_parameters_are_those_of_transformers(variant):
    from transformers import AutoConfig, AutoModelForCausalLM

    config = {**CONFIG, **variant}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    shape = ModelShape.from_config(config)
    assert shape.parameters() == sum(weight.numel() for weight in model.parameters())
    assert ModelShape.from_config(model.config.to_dict()) == shape


MIXERS = [
    ("mamba2", {}),
    ("mamba2", {"expand": 2, "state_size": 4, "conv_width": 3}),
    ("mamba1", {"state_size": 8}),
    ("gated_delta", {}),
    ("gated_delta", {"expand": 2, "conv_width": 3, "conv_bias": True}),
    ("sliding", {"window": 7, "sinks": 2}),
    ("sliding", {"window": 100}),
    ("identity", {}),
]


@pytest.mark.parametrize(("kind", "options"), MIXERS, ids=str)
def test_students_have_the_counted_parameters_and_cache(kind, options):
    from hybridize.models import cache_bytes
    from hybridize.surgery import convert
    from tests.tiny import as_student, tiny_teacher, tokens

    teacher = as_student(tiny_teacher(layers=3))
    layout = teacher.layout.convert([0, 2], to=kind)
    student = convert(teacher, layout, init="random", options=options, seed=0)
    shape = ModelShape.from_config(student.config.teacher.to_dict())
    counted = {kind: options}
    assert shape.parameters(layout, counted) == sum(w.numel() for w in student.parameters())
    cache = student.make_cache()
    student(tokens(1, 24), past_key_values=cache, use_cache=True)
    expected = shape.cache_bytes(layout, 24, bytes_per_value=4, options=counted)
    assert cache_bytes(cache) == expected


def test_the_teacher_of_apriel_has_the_published_sizes():
    shape = ModelShape.from_config(
        {
            "model_type": "mistral",
            "num_hidden_layers": 50,
            "hidden_size": 5120,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "intermediate_size": 14336,
            "vocab_size": 131072,
            "max_position_embeddings": 65536,
            "rope_theta": 1e6,
            "sliding_window": None,
        }
    )
    assert shape.parameters() == pytest.approx(14.974e9, rel=1e-4)
    assert shape.mixer_parameters("attention") == pytest.approx(52.43e6, rel=1e-4)
    assert shape.mixer_parameters("mamba1") == pytest.approx(76.44e6, rel=1e-3)
    per_token = shape.cache_bytes(shape.layout(), 1000) / 1000
    assert per_token == 200 * 1024
    h30 = shape.layout().convert(range(30), to="mamba1")
    state = 30 * (65_536 * 4 + 4096 * 3 * 2)
    assert shape.cache_bytes(h30, 1000) == 80 * 1024 * 1000 + state


def test_a_student_config_gives_the_shape_of_its_teacher():
    teacher = {**CONFIG, "model_type": "llama", "rope_parameters": {"rope_theta": 5e5}}
    shape = ModelShape.from_config({"model_type": "hybridize", "teacher": teacher})
    assert shape.rope_theta == 5e5
    assert ModelShape.from_json(json.loads(json.dumps(plain(shape)))) == shape


def test_flops_grow_with_context_only_where_there_is_attention():
    shape = ModelShape.from_config({**CONFIG, "model_type": "llama"})
    hybrid = Layout.parse("AMM")
    mamba = Layout.uniform(3, "mamba2")
    growth = [
        shape.flops_per_token(layout, 1000) - shape.flops_per_token(layout, 0)
        for layout in (shape.layout(), hybrid, mamba)
    ]
    assert growth == [3 * 4 * 1000 * 64, 4 * 1000 * 64, 0]


def test_a_sliding_layer_keeps_its_window_and_its_sinks_only():
    shape = ModelShape.from_config({**CONFIG, "model_type": "llama"})
    sliding = Layout.uniform(3, "sliding")
    options = {"sliding": {"window": 8, "sinks": 2}}
    sizes = [shape.cache_bytes(sliding, tokens, options=options) for tokens in (8, 9, 10, 100)]
    assert sizes == [3 * (kept * 2 * 32 * 2 + 8) for kept in (8, 9, 9, 9)]
    growth = [shape.flops_per_token(sliding, tokens, options) for tokens in (0, 10, 1000)]
    assert growth[1] - growth[0] == 3 * 4 * 10 * 64 and growth[2] == growth[1]


@pytest.mark.parametrize(
    ("family", "changes", "layers"),
    [
        ("mistral", {}, (0, 1, 2)),
        ("phi3", {}, (0, 1, 2)),
        ("smollm3", {"use_sliding_window": True, "no_rope_layer_interval": 2}, (1,)),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 1}, (1, 2)),
        (
            "qwen3",
            {
                "use_sliding_window": True,
                "layer_types": ["sliding_attention", "full_attention", "full_attention"],
            },
            (0,),
        ),
    ],
)
def test_a_teacher_with_windows_keeps_them_only(family, changes, layers):
    from hybridize.models import cache_bytes
    from tests.tiny import as_student, tiny_teacher, tokens

    teacher = as_student(tiny_teacher(family, layers=3, sliding_window=8, **changes))
    shape = ModelShape.from_config(teacher.config.teacher.to_dict())
    assert shape.window_layers == layers
    plain_config = {**CONFIG, "model_type": family, "sliding_window": 8, **changes}
    assert ModelShape.from_config(plain_config).window_layers == layers
    for num_tokens in (5, 24):
        cache = teacher.make_cache()
        teacher(tokens(1, num_tokens), past_key_values=cache)
        expected = shape.cache_bytes(teacher.layout, num_tokens, bytes_per_value=4)
        assert cache_bytes(cache) == expected


def test_an_unknown_family_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(ModelError, match=r"'gpt_neox' is not a known family \(known: llama"):
        ModelShape.from_config({"model_type": "gpt_neox"}, name="models/teacher")
    with pytest.raises(ModelError, match="no 'hidden_size'"):
        ModelShape.from_config({"model_type": "llama", "num_attention_heads": 4})
    with pytest.raises(ModelError, match=r"there is no .*config\.json"):
        ModelShape.read(tmp_path)
