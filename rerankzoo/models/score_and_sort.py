"""Base of rankers that give every candidate one score and sort: pointwise and listwise.

B requests, N candidates, M positions, S slates, T targets, D hidden, K items of a list to learn from.
"""

from __future__ import annotations

from abc import abstractmethod
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn

from rerankzoo.batch import PADDING, Batch, gather_candidates, inputs
from rerankzoo.errors import SchemaError
from rerankzoo.features.schema import FeatureSchema
from rerankzoo.features.utility import candidate_utility
from rerankzoo.generation import (
    Decoded,
    DiverseGenerationConfig,
    RerankingGenerationConfig,
    Scorer,
    SlateRules,
    StaticScorer,
    diverse_search,
    item_vectors,
)
from rerankzoo.generation.diverse import VARIETIES
from rerankzoo.layers import FeedbackHead
from rerankzoo.losses import RANKING_LOSSES, feedback_loss, slate_mean
from rerankzoo.models.base import RerankingConfig, SlateGenerator, SlateModelOutput

#: Cross-entropy of each item's feedback by itself: the only loss under which scores are expected utilities.
BCE = "bce"


@strict
class ScoreAndSortConfig(RerankingConfig):
    """What all rankers that sort by a score have beside the fields of `RerankingConfig`.

    Args:
        loss: `"bce"`: a probability for each target, and a score that is the expected utility. Or a loss of lists
            (`rerankzoo.losses.RANKING_LOSSES`): `"softmax"`, `"listnet"`, `"attention_rank"`, `"listmle"` or `"lambda"`
            (of NDCG@`slate_size`); the score then only orders. It learns the utility of what the labels say, so one
            target or several, clicks or grades, are all the same to it.
        labels: What it learns from: `"slates"`, the feedback of what was shown, or `"candidates"`, the labels of
            candidates (`candidate_feedback`); `None`: slates, where the log has them.
    """

    training_fields = RerankingConfig.training_fields | {"labels"}

    loss: Literal["bce", "softmax", "listnet", "attention_rank", "listmle", "lambda"] = "bce"
    labels: Literal["slates", "candidates"] | None = None


def labelled_candidates(batch: Batch) -> tuple[Tensor, Tensor]:
    """The candidates with known labels as one list: items (B, 1, N), -100 elsewhere, and labels (B, 1, N, T)."""
    known = batch["candidate_feedback_mask"]
    items = torch.arange(known.shape[1], device=known.device).where(known, PADDING)
    return items.unsqueeze(1), batch["candidate_feedback"].unsqueeze(1)


def learned_lists(labels: str | None, batch: Batch, schema: FeatureSchema) -> tuple[Tensor, Tensor] | None:
    """What to learn from: items (B, S, K) of lists, -100 elsewhere, and their feedback (B, S, K, T); `None` without.

    Args:
        labels: Whose, as of `ScoreAndSortConfig`.
        batch: With its labels.
        schema: Of the batch.

    Raises:
        SchemaError: If labels of candidates are to be learned, which a target that counts does not have.
    """
    shown = {"slates", "feedback"} <= batch.keys()
    if labels == "slates" or (labels is None and shown):
        return (batch["slates"], batch["feedback"]) if shown else None
    if "candidate_feedback" not in batch:
        return None
    unlabelled = [one.name for one in schema.targets if one.candidate_feedback is None and one.weight]
    if unlabelled:
        raise SchemaError(f"targets {unlabelled} have no candidate_feedback to learn from; give them weight 0")
    return labelled_candidates(batch)


def check_ranks(loss: str, schema: FeatureSchema) -> None:
    """Raises SchemaError where a loss is to rank by a utility that can be negative."""
    negative = [target.name for target in schema.targets if target.weight < 0]
    if negative:
        raise SchemaError(f"loss {loss!r} ranks by utility, which targets {negative} can make negative")


class ScoreAndSortModel(SlateGenerator):
    """Scores each candidate; greedy decoding sorts by the score.

    With the loss `"bce"` there is one feedback probability per target, fitted to the positions that the log has shown,
    or to labelled candidates; the score is the expected utility, the sum over targets of weight x value x probability.
    With a loss of lists the score is a number that orders a list as the utility of its feedback does; a value that
    multiplies feedback, such as a price, is then known to the model only where it is a field too. A family implements
    `encode_candidates`.
    """

    config: ScoreAndSortConfig
    generation_config_class = DiverseGenerationConfig
    strategies = (*SlateGenerator.strategies, *VARIETIES)
    learns_from: ClassVar[frozenset[str]] = frozenset({"slates", "parts", "candidates"})

    def __init__(self, config: ScoreAndSortConfig) -> None:
        super().__init__(config)
        self.features = self.make_feature_embedding()
        if config.loss != BCE:
            check_ranks(config.loss, self.schema)

    @property
    def num_positions(self) -> int | None:
        """Any number: a score does not depend on the position."""
        return None

    def post_init(self) -> None:
        """Adds the heads, behind the family's own layers, and initialises all weights."""
        size, ranks = self.config.hidden_size, self.config.loss != BCE
        self.heads = nn.Linear(size, 1) if ranks else FeedbackHead(size, self.schema)
        super().post_init()

    @abstractmethod
    def encode_candidates(self, batch: Batch) -> Tensor:
        """Representations (B, N, D) of the candidates."""

    def compute(self, batch: Batch) -> SlateModelOutput:
        """See `SlateGenerator.compute`; the logits are the scores, the same at every position."""
        if "candidate_value" not in batch:
            raise ValueError(
                f"{type(self).__name__} scores candidates by their value: the batch has no candidate_value"
            )
        states = self.encode_candidates(batch)
        logits = self.heads(states)  # (B, N, T), or one
        value, mask = batch["candidate_value"], batch["candidate_mask"]
        head = self.heads if isinstance(self.heads, FeedbackHead) else None
        scores = head.candidate_utility(logits, value) if head else logits.squeeze(-1)  # (B, N)
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        matrix = scores.unsqueeze(1).expand(-1, self.config.slate_size, -1)  # (B, M, N)
        lists = learned_lists(self.config.labels, batch, self.schema)
        if lists is None:
            return SlateModelOutput(logits=matrix, candidate_states=states)
        loss = self._loss(gather_candidates(logits, lists[0]), *lists, value)
        name = "feedback" if head else self.config.loss
        return SlateModelOutput(loss=loss, loss_terms={name: loss}, logits=matrix, candidate_states=states)

    def _loss(self, logits: Tensor, items: Tensor, feedback: Tensor, value: Tensor) -> Tensor:
        """The mean over requests, of the logits (B, S, K, T) of the items (B, S, K) of lists."""
        known = items != PADDING
        if self.config.loss == BCE:
            return slate_mean(feedback_loss(logits, feedback, known), items).mean()
        relevance = candidate_utility(feedback, gather_candidates(value, items), self.schema)
        ranking = RANKING_LOSSES[self.config.loss]
        if self.config.loss == "lambda":
            ranking = partial(ranking, k=self.config.slate_size)
        return slate_mean(ranking(logits.squeeze(-1), relevance, known), items).mean()

    def scorer(self) -> Scorer:
        """See `SlateGenerationMixin.scorer`: the scores, renormalised over the candidates left, at any position."""
        return StaticScorer(self._scores)

    def _scores(self, batch: Batch) -> tuple[Tensor, Tensor]:
        output: Any = self.compute(inputs(batch))
        return output.logits[:, 0], output.candidate_states

    def decode(self, batch: Batch, config: RerankingGenerationConfig, rules: SlateRules | None = None) -> Decoded:
        """See `SlateGenerationMixin.decode`; for variety, items are what the schema's fields say (`item_vectors`)."""
        kind = config.strategy
        if kind not in VARIETIES:
            return super().decode(batch, config, rules)
        size, diversity = config.slate_size or self.config.slate_size, float(getattr(config, f"{kind}_diversity"))
        return diverse_search(self.scorer(), batch, size, kind, diversity, item_vectors(batch, self.schema), rules)
