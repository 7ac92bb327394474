"""Students and published Apriel-H1 checkpoints in vLLM: a plugin that vLLM finds by itself.

    pip install --no-deps hybridize        # in the environment of vLLM
    python -m vllm.entrypoints.openai.api_server --model out/h7 --no-enable-prefix-caching

vLLM calls `register` in each of its processes, by the entry point `vllm.general_plugins`. What is
imported here needs vLLM, torch and transformers as vLLM has them, and of this package `core` and
`ops` only; the classes of `hybridize.models` are not used.

Order of reading: config (what a folder says in vLLM's words), model, attention, states (how a layer
keeps a state of constant size per request), then the mixers.
"""

ARCHITECTURE = "HybridForCausalLM"


def register() -> None:
    """Make the folders of this package known to vLLM; may be called any number of times."""
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    from hybridize.vllm_plugin.config import register_configs
    from hybridize.vllm_plugin.limits import HybridLimits

    register_configs()
    MODELS_CONFIG_MAP[ARCHITECTURE] = HybridLimits
    ModelRegistry.register_model(ARCHITECTURE, f"hybridize.vllm_plugin.model:{ARCHITECTURE}")
