"""The student model: a teacher's layers, some with another mixer, loaded, run and saved.

Example:
    model = load_model("models/teacher", dtype=torch.float32)
    print(model.layout)                                  # AAAAAAAA
    out = model(input_ids, segments=segments)            # several documents in a row
    model.generate(input_ids, max_new_tokens=20)

Read `hybrid` first, then `mixers/base`, `mixers/mamba2`, `cache`, `families`, `folders`, `loading`.
`import hybridize` suffices for transformers' AutoConfig and AutoModelForCausalLM to load a student,
or a published Apriel-H1 checkpoint: they import this package when they meet one.
"""

from hybridize.models import auto
from hybridize.models.cache import HybridCache, cache_bytes
from hybridize.models.folders import save_model
from hybridize.models.hybrid import HybridConfig, HybridForCausalLM, without
from hybridize.models.loading import load_model, load_tokenizer

auto.register()

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
