"""The student model: a teacher's layers, some with another mixer, loaded, run and saved.

Example:
    model = load_model("models/teacher", dtype=torch.float32)
    print(model.layout)                                  # AAAAAAAA
    out = model(input_ids, segments=segments)            # several documents in a row
    model.generate(input_ids, max_new_tokens=20)

Read `hybrid` first, then `mixers/base`, `mixers/mamba2`, `cache`, `families` and `loading`.
Importing this package makes the model known to transformers' AutoConfig and AutoModelForCausalLM.
"""

from transformers import AutoConfig, AutoModelForCausalLM

from hybridize.models.cache import HybridCache, cache_bytes
from hybridize.models.hybrid import HybridConfig, HybridForCausalLM, without
from hybridize.models.loading import load_model, load_tokenizer, save_model

AutoConfig.register("hybridize", HybridConfig, exist_ok=True)
AutoModelForCausalLM.register(HybridConfig, HybridForCausalLM, exist_ok=True)

__all__ = [
    "HybridCache",
    "HybridConfig",
    "HybridForCausalLM",
    "cache_bytes",
    "load_model",
    "load_tokenizer",
    "save_model",
    "without",
]
