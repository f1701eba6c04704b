"""Decoding parameters, saved and loaded with the model as `generation_config.json`."""

from __future__ import annotations

import math
from typing import Any

from transformers import GenerationConfig, PreTrainedConfig

from rerankzoo.errors import shown

#: What `generate()` understands. The words are transformers', so that nobody has to learn new ones.
PARAMETERS = (
    "slate_size",
    "num_beams",
    "num_return_sequences",
    "do_sample",
    "temperature",
    "top_k",
    "penalty_alpha",
    "return_dict_in_generate",
)
_BOOKKEEPING = ("_from_model_config", "transformers_version", "_commit_hash")


class RerankingGenerationConfig(GenerationConfig):
    """How `generate()` decodes slates. What is left out is `None`, and then has the default given below.

    Args:
        slate_size: M, positions of a slate. Default: the model's `config.slate_size`.
        num_beams: W; more than 1 switches to beam search. Default 1.
        num_return_sequences: S, slates per request; with an evaluator, slates it chooses from. Default 1.
        do_sample: Draw every position at random. Default False.
        temperature: Divides the scores before sampling. Default 1.
        top_k: Sample from, or compare in contrastive decoding, only this many best candidates. Default: all.
        penalty_alpha: Weight of the similarity penalty in [0, 1]; switches to contrastive decoding. Default: none.
        return_dict_in_generate: Return a `SlateGenerationOutput` instead of the slates alone. Default False.

    Raises:
        ValueError: If a parameter is unknown, out of its range, or contradicts another one.
    """

    def __init__(self, **kwargs: Any) -> None:
        unknown = sorted(key for key in kwargs if key not in (*PARAMETERS, *_BOOKKEEPING))
        if unknown:
            raise ValueError(f"unknown decoding parameters {shown(unknown)}; known ones are {list(PARAMETERS)}")
        self.slate_size: int | None = kwargs.pop("slate_size", None)
        super().__init__(**kwargs)

    @classmethod
    def from_model_config(cls, model_config: PreTrainedConfig | dict[str, Any]) -> RerankingGenerationConfig:
        """The defaults of a new model: the model's config holds no decoding parameters but the slate's size."""
        return cls()

    def parameters(self) -> dict[str, Any]:
        """What is set."""
        return {key: getattr(self, key) for key in PARAMETERS if getattr(self, key) is not None}

    def merged(self, **overrides: Any) -> RerankingGenerationConfig:
        """A copy with some parameters replaced; parameters of another decoding strategy are dropped from it.

        Naming a strategy (`num_beams`, `do_sample` or `penalty_alpha`) in a call replaces the saved strategy, so that
        a checkpoint that decodes contrastively by default can still be asked for 4 beams.
        """
        own = self.parameters()
        if any(overrides.get(key) is not None for key in ("num_beams", "do_sample", "penalty_alpha")):
            for key in ("num_beams", "do_sample", "temperature", "top_k", "penalty_alpha", "num_return_sequences"):
                own.pop(key, None)
        own.update({key: value for key, value in overrides.items() if value is not None})
        return type(self)(**own)

    @property
    def strategy(self) -> str:
        """`"greedy"`, `"beam"`, `"contrastive"` or `"sample"`."""
        if self.do_sample:
            return "sample"
        if self.penalty_alpha is not None:
            return "contrastive"
        return "beam" if (self.num_beams or 1) > 1 else "greedy"

    def validate(self, strict: bool = False, **kwargs: Any) -> None:
        """Checks ranges and contradictions; see the class for what is raised."""
        for key in ("slate_size", "num_beams", "num_return_sequences", "top_k"):
            value = getattr(self, key)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ValueError(f"{key} must be a positive integer, got {shown(value)}")
        for key in ("do_sample", "return_dict_in_generate"):
            if not isinstance(getattr(self, key), bool | None):
                raise ValueError(f"{key} must be True or False, got {shown(getattr(self, key))}")
        if self.temperature is not None and not (_is_number(self.temperature) and 0 < self.temperature < math.inf):
            raise ValueError(f"temperature must be a finite number above 0, got {shown(self.temperature)}")
        if self.penalty_alpha is not None and not (_is_number(self.penalty_alpha) and 0 <= self.penalty_alpha <= 1):
            raise ValueError(f"penalty_alpha must lie in [0, 1], got {shown(self.penalty_alpha)}")
        self._validate_strategy()

    def _validate_strategy(self) -> None:
        beams, sequences = self.num_beams or 1, self.num_return_sequences or 1
        named = {"num_beams": beams > 1, "do_sample": self.do_sample, "penalty_alpha": self.penalty_alpha is not None}
        chosen = [key for key, on in named.items() if on]
        if len(chosen) > 1:
            raise ValueError(f"choose one decoding strategy, got {chosen}")
        if self.temperature is not None and not self.do_sample:
            raise ValueError(f"temperature {self.temperature} needs do_sample=True")
        if self.top_k is not None and not self.do_sample and self.penalty_alpha is None:
            raise ValueError(f"top_k {self.top_k} needs do_sample=True or penalty_alpha")
        if sequences > beams and not self.do_sample:
            raise ValueError(
                f"num_return_sequences {sequences} exceeds num_beams {beams}; use that many beams, or do_sample=True"
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
