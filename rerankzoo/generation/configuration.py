"""Decoding parameters, saved and loaded with the model as `generation_config.json`."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, ClassVar, TypeVar

import numpy as np
from transformers import GenerationConfig, PreTrainedConfig

from rerankzoo.errors import shown

logger = logging.getLogger(__name__)

Config = TypeVar("Config", bound="RerankingGenerationConfig")

#: Values by which a parameter that switches to a strategy does not.
_OFF: dict[str, Any] = {"num_beams": 1, "do_sample": False}
_BOOKKEEPING = ("_from_model_config", "transformers_version", "_commit_hash")


class RerankingGenerationConfig(GenerationConfig):
    """How `generate()` decodes slates. What is left out is `None`, and then has the default given below.

    A family with a decoding of its own subclasses it: names its parameters in `extra_parameters`, those that switch to
    its decoding in `strategies` too, and what they may be in `counts` or `shares`; else it checks them in `validate`.

    Args:
        slate_size: M, positions of a slate. Default: the model's `config.slate_size`.
        num_beams: W; more than 1 switches to beam search. Default 1.
        num_return_sequences: S, slates per request; with an evaluator, slates it chooses from. Default 1.
        do_sample: Draw every position at random. Default False.
        temperature: Divides the scores before sampling. Default 1.
        top_k: Sample from, or compare in contrastive decoding, only this many best candidates. Default: all.
        penalty_alpha: Weight of the similarity penalty in [0, 1]; switches to contrastive decoding. Default: none.
        return_dict_in_generate: Return a `SlateGenerationOutput` instead of the slates alone. Default False.

    Raises ValueError if a parameter is unknown, out of its range, or contradicts another one.
    """

    #: Parameters of a subclass beside those above.
    extra_parameters: ClassVar[tuple[str, ...]] = ()
    #: Parameters that are positive integers.
    counts: ClassVar[tuple[str, ...]] = ("slate_size", "num_beams", "num_return_sequences", "top_k")
    #: Parameters that lie in [0, 1].
    shares: ClassVar[tuple[str, ...]] = ("penalty_alpha",)
    #: Which strategy a parameter switches to.
    strategies: ClassVar[Mapping[str, str]] = {
        "do_sample": "sample",
        "penalty_alpha": "contrastive",
        "num_beams": "beam",
    }

    def __init__(self, **kwargs: Any) -> None:
        self._check_names(kwargs.keys() - set(_BOOKKEEPING))
        for name in ("slate_size", *self.extra_parameters):
            setattr(self, name, kwargs.pop(name, None))
        super().__init__(**kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        """Scalars of numpy become Python's."""
        super().__setattr__(name, value.item() if isinstance(value, np.generic) else value)

    @classmethod
    @cache
    def names(cls) -> tuple[str, ...]:
        """All parameters. The words are transformers', so that nobody has to learn new ones."""
        common = ("num_beams", "num_return_sequences", "do_sample", "temperature", "top_k", "penalty_alpha")
        return ("slate_size", *common, *cls.extra_parameters, "return_dict_in_generate")

    def _check_names(self, parameters: Iterable[str]) -> None:
        if unknown := sorted(set(parameters) - set(self.names())):
            raise ValueError(f"unknown decoding parameters {shown(unknown)}, expected some of {list(self.names())}")

    @classmethod
    def from_model_config(cls: type[Config], model_config: PreTrainedConfig | dict[str, Any]) -> Config:
        """The defaults of a new model: the model's config holds no decoding parameters but the slate's size."""
        return cls()

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """See `GenerationConfig.from_dict`; parameters that this version does not know are left out, with a warning."""
        known = {key: value for key, value in config_dict.items() if key in (*cls.names(), *_BOOKKEEPING)}
        if unknown := sorted(config_dict.keys() - known.keys()):
            logger.warning("decoding parameters %s are unknown to this version and ignored", shown(unknown))
        return super().from_dict(known, **kwargs)

    def parameters(self) -> dict[str, Any]:
        """What is set."""
        return {name: value for name in self.names() if (value := getattr(self, name)) is not None}

    def merged(self: Config, **overrides: Any) -> Config:
        """A copy with some parameters replaced, checked as by the class.

        Naming a strategy (`num_beams`, `do_sample` or `penalty_alpha`) drops the parameters of the saved one, so that
        a checkpoint that decodes contrastively by default can still be asked for 4 beams.
        """
        self._check_names(overrides)
        new, changed = copy.copy(self), {name: value for name, value in overrides.items() if value is not None}
        if not self.strategies.keys().isdisjoint(changed):
            for name in set(self.names()) - {"slate_size", "return_dict_in_generate"}:
                setattr(new, name, None)
        for name, value in changed.items():
            setattr(new, name, value)
        new.validate()
        return new

    @property
    def strategy(self) -> str:
        """`"greedy"`, `"beam"`, `"contrastive"`, `"sample"`, or a subclass's own."""
        return next(iter(self._chosen().values()), "greedy")

    def _chosen(self) -> dict[str, str]:
        """The parameters that switch to a strategy, and the strategies."""
        return {key: kind for key, kind in self.strategies.items() if getattr(self, key) not in (None, _OFF.get(key))}

    def validate(self, strict: bool = False, **kwargs: Any) -> None:
        """Checks ranges and contradictions; see the class for what is raised."""
        for key in self.counts:
            value = getattr(self, key)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ValueError(f"{key} must be a positive integer, got {shown(value)}")
        for key in self.shares:
            value = getattr(self, key)
            if value is not None and not (_is_number(value) and 0 <= value <= 1):
                raise ValueError(f"{key} must lie in [0, 1], got {shown(value)}")
        for key in ("do_sample", "return_dict_in_generate"):
            if not isinstance(getattr(self, key), bool | None):
                raise ValueError(f"{key} must be True or False, got {shown(getattr(self, key))}")
        if self.temperature is not None and not (_is_number(self.temperature) and 0 < self.temperature < math.inf):
            raise ValueError(f"temperature must be a finite number above 0, got {shown(self.temperature)}")
        beams, sequences, chosen = self.num_beams or 1, self.num_return_sequences or 1, self._chosen()
        if len(chosen) > 1:
            raise ValueError(f"choose one decoding strategy, got {list(chosen)}")
        if self.temperature is not None and not self.do_sample:
            raise ValueError(f"temperature {self.temperature} needs do_sample=True")
        if self.top_k is not None and not self.do_sample and self.penalty_alpha is None:
            raise ValueError(f"top_k {self.top_k} needs do_sample=True or penalty_alpha")
        if sequences > beams and self.strategy in ("greedy", "beam", "contrastive"):
            hint = "use that many beams, or do_sample=True"
            raise ValueError(f"num_return_sequences {sequences} exceeds num_beams {beams}; {hint}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
