"""What transformers' AutoConfig and AutoModelForCausalLM know of our models, and of Apriel-H1.

`import hybridize` tells transformers the names only (`hybridize.core.auto_names`); this file is
imported when one of them is asked for.
"""

from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from hybridize.core.auto_names import APRIEL_H1
from hybridize.models.apriel_h1 import make_config, read_apriel_h1
from hybridize.models.folders import find_folder, read_contents
from hybridize.models.hybrid import HybridConfig, HybridForCausalLM
from hybridize.models.loading import read_tensors


class AprielH1Config(HybridConfig):
    """What AutoConfig makes of a published config.json; a `HybridConfig` in all but its reading."""

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Translate the published values, with the tensors' sizes where they are at hand."""
        folder = Path(str(kwargs.get("name_or_path", "")))
        if (folder / "config.json").is_file():
            config = read_contents(folder, with_tensors=False).config
        else:
            config = make_config(read_apriel_h1(config_dict, None, str(folder)), config_dict, {})
        own = ("teacher", "mixers", "mixer_options", "published", "dtype")
        return super().from_dict({name: getattr(config, name) for name in own}, **kwargs)


class AprielH1ForCausalLM(HybridForCausalLM):
    """What AutoModelForCausalLM asks for the model of an `AprielH1Config`; never instantiated."""

    config_class = AprielH1Config

    @classmethod
    def from_pretrained(  # type: ignore[override]  # transformers' own options pass through
        cls, path: Any, *args: Any, config: Any = None, **kwargs: Any
    ) -> Any:
        """Load a published checkpoint as a `HybridForCausalLM`, with transformers' own options.

        Raises:
            ModelError: the folder is incomplete, damaged or unsafe to read.
        """
        contents = read_contents(find_folder(path, kwargs.pop("revision", None)))
        found = contents.config
        chosen = getattr(config, "_attn_implementation_internal", None)
        if chosen is not None:
            found._attn_implementation = chosen
        found.dtype = getattr(config, "dtype", None) or found.dtype
        if contents.rows or contents.left_out:
            kwargs["state_dict"] = read_tensors(contents)
            return HybridForCausalLM.from_pretrained(None, *args, config=found, **kwargs)
        return HybridForCausalLM.from_pretrained(contents.folder, *args, config=found, **kwargs)


def register() -> None:
    """Make our classes known to AutoConfig and AutoModelForCausalLM."""
    AutoConfig.register(HybridConfig.model_type, HybridConfig, exist_ok=True)
    AutoModelForCausalLM.register(HybridConfig, HybridForCausalLM, exist_ok=True)
    for model_type in APRIEL_H1:
        CONFIG_MAPPING.register(model_type, AprielH1Config, exist_ok=True)
    AutoModelForCausalLM.register(AprielH1Config, AprielH1ForCausalLM, exist_ok=True)
