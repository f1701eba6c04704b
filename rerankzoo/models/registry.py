"""Which models there are, and how transformers' auto classes find them.

Every folder of `rerankzoo.models` is a family. Its heads name themselves by `register_model`, and are imported when one
of them is asked for: by name, or by transformers for a checkpoint.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from rerankzoo.errors import did_you_mean

Model = TypeVar("Model", bound=type)

#: Heads by class name, in the order of their definition.
MODELS: dict[str, type] = {}

#: Modules of transformers with a mapping that is asked for classes by their names.
_MAPPINGS = {
    "transformers.models.auto.configuration_auto": "CONFIG_MAPPING",
    "transformers.models.auto.feature_extraction_auto": "FEATURE_EXTRACTOR_MAPPING",
}


def family_names() -> list[str]:
    """The families: folders of this package."""
    return sorted(path.parent.name for path in Path(__file__).parent.glob("*/__init__.py"))


def load_families() -> dict[str, type]:
    """Imports all families.

    Returns:
        All heads by class name.
    """
    for name in family_names():
        import_module(f"{__package__}.{name}")
    return MODELS


def model_class(architecture: str) -> Any:
    """The model class of this name.

    Raises:
        ValueError: If no family has one.
    """
    known = MODELS if architecture in MODELS else load_families()
    if architecture not in known:
        near = did_you_mean(architecture, known)
        raise ValueError(f"architecture {architecture!r} is not one of {sorted(known)}{near}")
    return known[architecture]


def find_name(name: str) -> Any:
    """A public name of a family, which is imported for it.

    Raises:
        AttributeError: If no family has it.
    """
    # The family whose name it begins with comes first, so that mostly only one is imported.
    for family in sorted(family_names(), key=lambda family: not name.lower().startswith(family)):
        module = import_module(f"{__package__}.{family}")
        if name in getattr(module, "__all__", ()):
            return getattr(module, name)
    raise AttributeError(f"module 'rerankzoo' has no attribute {name!r}")


def register_model(model: Model) -> Model:
    """Makes a head known by its name, and to transformers' auto classes by its config; used as a decorator.

    Of a family with several heads, a checkpoint's `architectures` tell which is meant. A head that generates is also
    found by `AutoModelForReranking`; the first of a family is what a config makes that no model was saved with.
    """
    from transformers import AutoConfig, AutoFeatureExtractor, AutoModel

    from rerankzoo.features.extractor import RerankingFeatureExtractor
    from rerankzoo.models.auto import AutoModelForReranking

    MODELS[model.__name__] = model
    config: Any = model.config_class  # type: ignore[attr-defined]
    heads = heads_of(config)
    AutoConfig.register(config.model_type, config, exist_ok=True)
    AutoModel.register(config, tuple(heads), exist_ok=True)
    AutoFeatureExtractor.register(config, RerankingFeatureExtractor, exist_ok=True)
    if generators := [head for head in heads if head.can_generate()]:
        # A tuple is chosen from by `config.architectures`, which a config that was not loaded lacks.
        found = tuple(generators) if len(generators) > 1 else generators[0]
        AutoModelForReranking.register(config, found, exist_ok=True)
    return model


def heads_of(config_class: type) -> list[Any]:
    """The heads of a config that are imported; generators stand before evaluators, which may search too."""
    heads: list[Any] = [head for head in MODELS.values() if head.config_class is config_class]  # type: ignore[attr-defined]
    return sorted(heads, key=lambda head: hasattr(head, "score_slates"))


class _Families(dict):
    """What transformers looks its registered classes up in; imports the families before it says that it has none."""

    def _loaded(self) -> None:
        base = sys.modules.get(f"{__package__}.base")
        if base is None or not getattr(base.__spec__, "_initializing", False):  # which imports transformers' models
            load_families()

    def __contains__(self, key: object) -> bool:
        if not super().__contains__(key):
            self._loaded()
        return super().__contains__(key)

    def __getitem__(self, key: Any) -> Any:
        if not super().__contains__(key):
            self._loaded()
        return super().__getitem__(key)

    def keys(self) -> Any:
        self._loaded()
        return super().keys()

    def values(self) -> Any:
        self._loaded()
        return super().values()

    def items(self) -> Any:
        self._loaded()
        return super().items()


def register_on_demand() -> None:
    """Lets transformers' auto classes find our models without importing either; called by `import rerankzoo`."""
    for module, name in _MAPPINGS.items():
        if module in sys.modules:
            _open_mapping(sys.modules[module], name)
    if not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())


def _open_mapping(module: ModuleType, name: str) -> None:
    mapping: Any = getattr(module, name)
    if not isinstance(mapping._extra_content, _Families):
        mapping._extra_content = _Families(mapping._extra_content)


class _AfterImport(MetaPathFinder):
    """Opens the mappings of transformers as soon as they are there."""

    def find_spec(self, fullname: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Finds the modules with mappings, and no others."""
        if fullname not in _MAPPINGS:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            loader.exec_module = _then_open(loader.exec_module, _MAPPINGS[fullname])
        return spec


def _then_open(execute: Callable[[ModuleType], None], name: str) -> Callable[[ModuleType], None]:
    def execute_and_open(module: ModuleType) -> None:
        execute(module)
        _open_mapping(module, name)

    return execute_and_open
