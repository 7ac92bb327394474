"""What vLLM is told, or refused, before a student is loaded."""

from typing import Any

from vllm.logger import init_logger
from vllm.model_executor.models.config import VerifyAndUpdateConfig

from hybridize.core.errors import ModelError

LOG = init_logger(__name__)


class HybridLimits(VerifyAndUpdateConfig):
    """Settings without which answers would be wrong or slow to go wrong."""

    @staticmethod
    def verify_and_update_config(vllm_config: Any) -> None:
        """Keep states in float32, and turn off what the layers cannot do.

        Raises:
            ModelError: drafts (speculative decoding) or pipeline parallelism are asked for.
        """
        cache = vllm_config.cache_config
        if vllm_config.speculative_config is not None:
            raise ModelError("students are not served with speculative decoding. Leave it out.")
        if vllm_config.parallel_config.pipeline_parallel_size > 1:
            raise ModelError("students are not served with pipeline parallelism. Use 1 stage.")
        if cache.enable_prefix_caching:
            LOG.warning("hybridize: prefix caching is turned off; states are not kept by prefix.")
            cache.enable_prefix_caching = False
        if cache.mamba_ssm_cache_dtype == "auto":
            cache.mamba_ssm_cache_dtype = "float32"
