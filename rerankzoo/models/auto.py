"""Auto classes: the right class for a checkpoint, found by its config."""

from __future__ import annotations

from collections import OrderedDict

from transformers import AutoConfig, AutoModel
from transformers.models.auto.auto_factory import _BaseAutoModelClass, _LazyAutoMapping
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from rerankzoo.models.base import RerankingPreTrainedModel
from rerankzoo.models.nar4rec import NAR4RecConfig, NAR4RecEvaluator, NAR4RecForReranking


class AutoModelForReranking(_BaseAutoModelClass):
    """Loads any model that generates slates: `AutoModelForReranking.from_pretrained("org/nar4rec-shop")`."""

    _model_mapping = _LazyAutoMapping(CONFIG_MAPPING_NAMES, OrderedDict())


#: Config class -> (generators, all heads). `config.architectures` tells the heads of one config apart.
FAMILIES = {
    NAR4RecConfig: ((NAR4RecForReranking,), (NAR4RecForReranking, NAR4RecEvaluator)),
}


def model_class(architecture: str) -> type[RerankingPreTrainedModel]:
    """The model class of this name.

    Raises:
        ValueError: If no family has one.
    """
    known = {head.__name__: head for _, heads in FAMILIES.values() for head in heads}
    if architecture not in known:
        raise ValueError(f"architecture {architecture!r} is not one of {sorted(known)}")
    return known[architecture]


def register() -> None:
    """Tells transformers' auto classes about every model family; called by `import rerankzoo`."""
    for config, (generators, heads) in FAMILIES.items():
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModel.register(config, heads, exist_ok=True)
        AutoModelForReranking.register(config, generators, exist_ok=True)
