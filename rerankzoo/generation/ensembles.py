"""Several models as one: evaluators that agree on a value, generators that propose together. Knows no family.

B requests, N candidates, M positions, S slates, K members.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

import torch
from torch import Tensor, nn
from transformers import AutoModel
from transformers.utils import cached_file

from rerankzoo.atomic_writing import SAVED_MODEL, saved_over
from rerankzoo.batch import Batch
from rerankzoo.generation.configuration import RerankingGenerationConfig
from rerankzoo.generation.constraints.rules import SlateRules
from rerankzoo.generation.mixin import SlateGenerationMixin
from rerankzoo.generation.scorer import Cache, Scorer, ScorerState
from rerankzoo.generation.search import Decoded
from rerankzoo.text_files import read_json

#: Of an ensemble's folder: what it is, and in how many subfolders its members are.
ENSEMBLE_FILE = "ensemble.json"

E = TypeVar("E", bound="Ensemble")


class Ensemble(SlateGenerationMixin, nn.Module):
    """Models of one schema (else SchemaMismatchError), at least one, saved in subfolders of one folder."""

    #: Arguments beside the members; saved.
    options: ClassVar[tuple[str, ...]] = ()

    def __init__(self, members: Sequence[Any]) -> None:
        super().__init__()
        if not members:
            raise ValueError("an ensemble needs at least one member")
        for member in members:
            member.check_schema(members[0].schema)
        self.members = nn.ModuleList(members)
        self.config, self.schema = members[0].config, members[0].schema
        self.generation_config = RerankingGenerationConfig()

    @property
    def device(self) -> torch.device:
        """Where the members are."""
        return cast(torch.device, self.members[0].device)

    @property
    def dtype(self) -> torch.dtype:
        """What the members compute in."""
        return cast(torch.dtype, self.members[0].dtype)

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Saves the members into subfolders, with their options; what an earlier save left in the folder goes."""
        options = {name: getattr(self, name) for name in self.options}
        text = json.dumps({"class": type(self).__name__, "members": len(self.members), **options}, indent=2) + "\n"
        with saved_over(Path(save_directory), (*SAVED_MODEL, "config.json")) as folder:
            for number, member in enumerate(self.members):
                cast(Any, member).save_pretrained(folder / f"member-{number}", **kwargs)
            (folder / ENSEMBLE_FILE).write_text(text, encoding="utf-8")

    @classmethod
    def from_pretrained(cls: type[E], path: str | os.PathLike[str], subfolder: str = "", **kwargs: Any) -> E:
        """Loads what `save_pretrained` wrote, from a folder or Hub id, with every member's `from_pretrained` options.

        Raises ValueError if the folder holds another kind of ensemble, OSError if it holds none.
        """
        hub = {name: kwargs[name] for name in ("revision", "token", "cache_dir", "local_files_only") if name in kwargs}
        saved = read_json(Path(cast(str, cached_file(os.fspath(path), ENSEMBLE_FILE, subfolder=subfolder, **hub))))
        kind, count = saved.pop("class"), saved.pop("members")
        if kind != cls.__name__:
            raise ValueError(f"{path} holds a {kind}, expected a {cls.__name__}")
        folders = [f"{subfolder}/member-{number}".lstrip("/") for number in range(count)]
        return cls([AutoModel.from_pretrained(path, subfolder=folder, **kwargs) for folder in folders], **saved).eval()


class EvaluatorEnsemble(Ensemble):
    """Several evaluators as one: the mean of their values, less a multiple of their spread.

    Takes the place of an evaluator wherever one is asked for: in `generate`, mining, evaluation and the pipeline.

    Args:
        members: Evaluators of the same schema, such as of several seeds; to search with, they need scorers.
        spread_penalty: k, not negative; a value is the members' mean minus k times their standard deviation. A little
            pessimism costs nothing, a lot hurts (docs/models/degre.md).
    """

    options = ("spread_penalty",)

    def __init__(self, members: Sequence[Any], spread_penalty: float = 0.0) -> None:
        if spread_penalty < 0:
            raise ValueError(f"spread_penalty must not be negative, got {spread_penalty}")
        super().__init__(members)
        self.spread_penalty = spread_penalty

    def combine(self, values: Tensor) -> Tensor:
        """One value (...) from the members' values (K, ...)."""
        spread = values.std(0, correction=0) if self.spread_penalty else 0.0
        return values.mean(0) - self.spread_penalty * spread

    @torch.no_grad()
    def score_slates(self, slates: Tensor, /, **batch: Tensor) -> Tensor:
        """Predicted utility (B, S) of slates (B, S, M); -100 pads."""
        return self.combine(torch.stack([cast(Any, member).score_slates(slates, **batch) for member in self.members]))

    def score_choices(self, choices: Tensor, /, **batch: Tensor) -> Any:
        """Utilities of soft slates, and the members' mean probabilities; see `SlateEvaluator.score_choices`."""
        outputs = [cast(Any, member).score_choices(choices, **batch) for member in self.members]
        chances = [output.probabilities for output in outputs if output.probabilities is not None]
        probabilities = torch.stack(chances).mean(0) if len(chances) == len(outputs) else None
        utilities = self.combine(torch.stack([output.utilities for output in outputs]))
        return type(outputs[0])(utilities=utilities, probabilities=probabilities)

    def scorer(self) -> Scorer:
        """See `SlateGenerationMixin.scorer`."""
        return EnsembleScorer(self, [cast(Any, member).scorer() for member in self.members])


class EnsembleScorer(Scorer):
    """Combines the scores of the members' scorers, which decode the same prefixes side by side."""

    kind = "value"

    def __init__(self, ensemble: EvaluatorEnsemble, scorers: Sequence[Scorer]) -> None:
        self.ensemble, self.scorers = ensemble, scorers

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """See `Scorer.encode`: everything is in the members' states."""
        return {}

    def start(self, batch: Batch) -> ScorerState:
        """See `Scorer.start`."""
        return replace(super().start(batch), cache={"states": [scorer.start(batch) for scorer in self.scorers]})

    def step(self, state: ScorerState) -> tuple[Tensor, Cache]:
        """See `Scorer.step`."""
        states = state.cache["states"]
        steps = [scorer.step(member) for scorer, member in zip(self.scorers, states, strict=True)]
        # The spread of -inf is not a number.
        scores = torch.stack([scores for scores, _ in steps]).masked_fill(~state.available, 0.0)
        combined = self.ensemble.combine(scores).masked_fill(~state.available, float("-inf"))
        return combined, {"states": states, "caches": [cache for _, cache in steps]}

    def select(self, cache: Cache, parent: Tensor | None, index: Tensor) -> Cache:
        """See `Scorer.select`."""
        members = zip(self.scorers, cache["states"], cache["caches"], strict=True)
        return {"states": [scorer.extend(state, known, parent, index) for scorer, state, known in members]}


class GeneratorPool(Ensemble):
    """Several generators that propose together, each by its own decoding parameters; an evaluator chooses.

    `generate(evaluator=...)` returns the best of all members' `num_return_sequences` slates. Without an evaluator there
    is nothing to compare the members' slates by, whose scores are each their own model's: all of them are returned,
    (B, K x S, M), member by member.
    """

    def decode(self, batch: Batch, config: RerankingGenerationConfig, rules: SlateRules | None = None) -> Decoded:
        """See `SlateGenerationMixin.decode`."""
        parts = []
        for member in cast(Any, self.members):
            parts.append(vars(member.decode(batch, member.generation_config.merged(**config.parameters()), rules)))
        return Decoded(**{name: torch.cat([part[name] for part in parts], dim=1) for name in parts[0]})
