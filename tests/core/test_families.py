"""The sizes of the families, on models as large as people convert."""

import pytest

from hybridize.core.shape import ModelShape

KEYS = (
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "vocab_size",
    "tie_word_embeddings",
)
PUBLISHED = {
    "Llama-3.2-1B": (("llama", 2048, 16, 32, 8, 8192, 128_256, True), 1_235_814_400),
    "Mistral-Nemo-2407": (("mistral", 5120, 40, 32, 8, 14_336, 131_072, False), 12_247_782_400),
    "Qwen2.5-7B": (("qwen2", 3584, 28, 28, 4, 18_944, 152_064, False), 7_615_616_512),
    "Qwen3-8B": (("qwen3", 4096, 36, 32, 8, 12_288, 151_936, False), 8_190_735_360),
    "SmolLM3-3B": (("smollm3", 2048, 36, 16, 4, 11_008, 128_256, True), 3_075_098_624),
    "Granite-3.3-8B": (("granite", 4096, 40, 32, 8, 12_800, 49_159, True), 8_170_864_640),
    "OLMo-2-7B": (("olmo2", 4096, 32, 32, 32, 11_008, 100_352, False), 7_298_617_344),
    "Phi-4-mini": (("phi3", 3072, 32, 24, 8, 8192, 200_064, True), 3_836_021_760),
}
HEAD_DIM = {"Mistral-Nemo-2407": 128}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_the_counted_parameters(name):
    import torch

    from hybridize.models import HybridConfig, HybridForCausalLM

    values, parameters = PUBLISHED[name]
    config = dict(zip(KEYS, values, strict=True)) | {"max_position_embeddings": 4096}
    config |= {"pad_token_id": 0, "sliding_window": None}
    if name in HEAD_DIM:
        config["head_dim"] = HEAD_DIM[name]
    assert ModelShape.from_config(config).parameters() == parameters
    with torch.device("meta"):
        model = HybridForCausalLM(HybridConfig(teacher=config))
    assert sum(weight.numel() for weight in model.parameters()) == parameters
