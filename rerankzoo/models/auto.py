"""Auto classes: the right class for a checkpoint, found by its config."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from transformers import AutoConfig, AutoFeatureExtractor, AutoModel
from transformers.models.auto.auto_factory import _BaseAutoModelClass, _LazyAutoMapping
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from rerankzoo.errors import HubError
from rerankzoo.features.extractor import RerankingFeatureExtractor
from rerankzoo.hub_errors import one_line_errors
from rerankzoo.models.base import RerankingConfig, RerankingPreTrainedModel
from rerankzoo.models.degre import DeGReConfig, DeGReEvaluator, DeGReGenerator
from rerankzoo.models.nar4rec import NAR4RecConfig, NAR4RecEvaluator, NAR4RecForReranking
from rerankzoo.models.pointwise import PointwiseConfig, PointwiseForReranking
from rerankzoo.models.prm import PRMConfig, PRMForReranking

#: Where a checkpoint keeps the evaluator beside its generator.
EVALUATOR_FOLDER = "evaluator"


class AutoModelForReranking(_BaseAutoModelClass):
    """Loads any model that generates slates: `AutoModelForReranking.from_pretrained("org/nar4rec-shop")`."""

    _model_mapping = _LazyAutoMapping(CONFIG_MAPPING_NAMES, OrderedDict())

    @classmethod
    def from_config(cls, config: Any, **kwargs: Any) -> Any:
        """See `transformers.AutoModel.from_config`.

        Of a family with several generators, a config that no model was saved with makes the first.
        """
        if not config.architectures and type(config) in FAMILIES:
            return FAMILIES[type(config)][0][0]._from_config(config, **kwargs)
        return super().from_config(config, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any) -> Any:
        """See `transformers.AutoModel.from_pretrained`.

        Raises:
            ValueError: If the checkpoint is another head, such as an evaluator, whose weights a generator cannot use.
        """
        loaded = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # with output_loading_info=True
        saved = model.config.architectures
        if saved and type(model).__name__ not in saved:
            raise ValueError(
                f"{pretrained_model_name_or_path} holds {saved}, not a model that generates; use AutoModel"
            )
        return loaded


Heads = tuple[type[RerankingPreTrainedModel], ...]

#: Config class -> (generators, all heads). `config.architectures` tells the heads of one config apart.
FAMILIES: dict[type[RerankingConfig], tuple[Heads, Heads]] = {
    DeGReConfig: ((DeGReGenerator, DeGReEvaluator), (DeGReGenerator, DeGReEvaluator)),
    NAR4RecConfig: ((NAR4RecForReranking,), (NAR4RecForReranking, NAR4RecEvaluator)),
    PointwiseConfig: ((PointwiseForReranking,), (PointwiseForReranking,)),
    PRMConfig: ((PRMForReranking,), (PRMForReranking,)),
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


def evaluator_subfolder(path: str, **options: Any) -> str:
    """Where the evaluator of a checkpoint is, so that a generator's name may stand for the evaluator beside it.

    Args:
        path: Folder or Hub id of an evaluator, or of a generator with an evaluator beside it.
        **options: For `from_pretrained`: `revision`, `token`, `cache_dir`...

    Returns:
        The `subfolder` to load evaluator and extractor from: `""` or `"evaluator"`.

    Raises:
        HubError: If there is no checkpoint, or it is a generator without an evaluator.
    """
    revision = options.get("revision")
    with one_line_errors(path, revision):
        config = AutoConfig.from_pretrained(path, **options)
    saved = (config.architectures or [type(config).__name__])[0]
    evaluators = [head.__name__ for _, heads in FAMILIES.values() for head in heads if hasattr(head, "score_slates")]
    if saved in evaluators:
        return ""
    try:
        with one_line_errors(path, revision, EVALUATOR_FOLDER):
            AutoConfig.from_pretrained(path, subfolder=EVALUATOR_FOLDER, **options)
    except HubError as error:
        raise HubError(f"{path} holds a {saved}, which is no evaluator, and none is beside it: {error}") from error
    return EVALUATOR_FOLDER


def register() -> None:
    """Tells transformers' auto classes about every model family; called by `import rerankzoo`."""
    for config, (generators, heads) in FAMILIES.items():
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModel.register(config, heads, exist_ok=True)
        AutoFeatureExtractor.register(config, RerankingFeatureExtractor, exist_ok=True)
        # A tuple is chosen from by `config.architectures`, which a config that was not loaded lacks.
        AutoModelForReranking.register(config, generators if len(generators) > 1 else generators[0], exist_ok=True)
