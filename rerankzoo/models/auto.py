"""Loading: the right class for a checkpoint, found by its config, with its feature extractor."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

from transformers import AutoConfig, AutoModel
from transformers.models.auto.auto_factory import _BaseAutoModelClass, _LazyAutoMapping
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.utils import cached_file

from rerankzoo.errors import HubError
from rerankzoo.features.extractor import RerankingFeatureExtractor
from rerankzoo.hub_errors import one_line_errors
from rerankzoo.models.registry import heads_of, load_families, model_class

#: Where a checkpoint keeps the evaluator beside its generator.
EVALUATOR_FOLDER = "evaluator"
#: What `from_pretrained` takes to find files; the rest of its options are the model's.
_PLACE = ("revision", "token", "cache_dir", "local_files_only", "force_download", "proxies", "subfolder")


class AutoModelForReranking(_BaseAutoModelClass):
    """Loads any model that generates slates: `AutoModelForReranking.from_pretrained("org/nar4rec-shop")`."""

    _model_mapping = _LazyAutoMapping(CONFIG_MAPPING_NAMES, OrderedDict())

    @classmethod
    def from_config(cls, config: Any, **kwargs: Any) -> Any:
        """See `transformers.AutoModel.from_config`.

        Of a family with several generators, a config that no model was saved with makes the first.
        """
        generators = [head for head in heads_of(type(config)) if head.can_generate()]
        if not config.architectures and generators:
            return generators[0]._from_config(config, **kwargs)
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


class Checkpoint(NamedTuple):
    """A model in evaluation mode and the feature extractor that it was trained with."""

    model: Any
    extractor: RerankingFeatureExtractor


def load_checkpoint(path: str | os.PathLike[str], auto: Any = AutoModel, **options: Any) -> Checkpoint:
    """Loads a model, all of whose weights must be there, with its feature extractor.

    Args:
        path: A folder or Hub id; of an ensemble, too.
        auto: What loads: `AutoModelForReranking` for models that must generate, or a class.
        **options: As of `from_pretrained`: `dtype`, `device_map`, `attn_implementation`, `revision`, `subfolder`...

    Returns:
        Model and extractor.

    Raises:
        HubError: If anything is missing or damaged, or the Hub cannot be reached; in one line.
        SchemaMismatchError: If model and extractor do not belong together.
    """
    place = {name: value for name, value in options.items() if name in _PLACE}
    name = os.fspath(path)
    with one_line_errors(name, place.get("revision"), place.get("subfolder")):
        model = _load_ensemble(name, place, options) or _load_whole(name, auto, options)
        extractor = RerankingFeatureExtractor.from_pretrained(name, **place)
    model.check_schema(extractor.schema)
    return Checkpoint(model.eval(), extractor)


def _load_whole(path: str, auto: Any, options: dict[str, Any]) -> Any:
    # Without the flag transformers would ask on the terminal whether to run a checkpoint's code.
    options = {"trust_remote_code": False, **options, "output_loading_info": True}
    model, report = auto.from_pretrained(path, **options)
    for problem in ("missing_keys", "mismatched_keys"):
        if names := sorted(map(str, report[problem])):
            listed = f"{', '.join(names[:3])} ({len(names)} in all)"
            raise HubError(f"cannot load {path}: its file of weights has {problem.replace('_', ' ')} {listed}")
    return model


def _load_ensemble(path: str, place: dict[str, Any], options: dict[str, Any]) -> Any:
    """An ensemble or pool; `None` where there is none."""
    from rerankzoo.generation import ensembles
    from rerankzoo.text_files import read_json

    file = cached_file(path, ensembles.ENSEMBLE_FILE, _raise_exceptions_for_missing_entries=False, **place)
    if file is None:
        return None
    kinds = {kind.__name__: kind for kind in ensembles.Ensemble.__subclasses__()}
    kind = read_json(Path(file)).get("class")
    if kind not in kinds:
        raise HubError(f"cannot load {path}: {kind!r} is no ensemble, expected one of {sorted(kinds)}")
    return kinds[kind].from_pretrained(path, **options)


def load_evaluator(path: str | os.PathLike[str], **options: Any) -> Checkpoint:
    """Loads an evaluator, whichever way its name is given.

    Args:
        path: A folder or Hub id of an evaluator, of an ensemble, or of a generator with an evaluator beside it.
        **options: See `load_checkpoint`.

    Returns:
        Evaluator and extractor.

    Raises:
        HubError: See `load_checkpoint`; or if it is a generator without an evaluator.
    """
    name = os.fspath(path)
    if options.get("subfolder"):
        return load_checkpoint(name, **options)
    place = {key: value for key, value in options.items() if key in _PLACE}
    return load_checkpoint(name, **{**options, "subfolder": evaluator_subfolder(name, **place)})


def evaluator_subfolder(path: str, **options: Any) -> str:
    """Where the evaluator of a checkpoint is, so that a generator's name may stand for the evaluator beside it.

    Args:
        path: Folder or Hub id of an evaluator, of an ensemble, or of a generator with an evaluator beside it.
        **options: For `from_pretrained`: `revision`, `token`, `cache_dir`...

    Returns:
        The `subfolder` to load evaluator and extractor from: `""` or `"evaluator"`.

    Raises:
        HubError: If there is no checkpoint, or it is a generator without an evaluator.
    """
    revision = options.get("revision")
    if _is_ensemble(path, options):
        return ""
    with one_line_errors(path, revision):
        config = AutoConfig.from_pretrained(path, **options)
    saved = (config.architectures or [type(config).__name__])[0]
    if hasattr(load_families().get(saved), "score_slates"):
        return ""
    if _is_ensemble(path, {**options, "subfolder": EVALUATOR_FOLDER}):
        return EVALUATOR_FOLDER
    try:
        with one_line_errors(path, revision, EVALUATOR_FOLDER):
            AutoConfig.from_pretrained(path, subfolder=EVALUATOR_FOLDER, **options)
    except HubError as error:
        raise HubError(f"{path} holds a {saved}, which is no evaluator, and none is beside it: {error}") from error
    return EVALUATOR_FOLDER


def _is_ensemble(path: str, options: dict[str, Any]) -> bool:
    from rerankzoo.generation.ensembles import ENSEMBLE_FILE

    with one_line_errors(path, options.get("revision")):
        return cached_file(path, ENSEMBLE_FILE, _raise_exceptions_for_missing_entries=False, **options) is not None


__all__ = [
    "EVALUATOR_FOLDER",
    "AutoModelForReranking",
    "Checkpoint",
    "evaluator_subfolder",
    "load_checkpoint",
    "load_evaluator",
    "model_class",
]
