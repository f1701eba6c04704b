"""Configuration of Seq2Slate."""

from __future__ import annotations

from typing import Literal

from huggingface_hub.dataclasses import strict

from rerankzoo.models.base import count_field
from rerankzoo.models.recurrent_pointer import RecurrentPointerConfig


@strict
class Seq2SlateConfig(RecurrentPointerConfig):
    """Sizes and losses of `Seq2SlateForReranking`; see also `RecurrentPointerConfig`.

    Args:
        decoder: See `RecurrentPointerConfig`; the published one is the LSTM.
        loss: `"cross_entropy"` or `"hinge"` of every step with the labels of the items left
            (`rerankzoo.losses.step_cross_entropy`, `step_hinge`); or `"likelihood"` of the better logged slates, which
            asks for no labels of single items (see `ImitationConfig`).
        prefix: What stands above a step in training: what the model would choose itself, greedily (`"own"`), or what
            the log has shown (`"shown"`).
        negatives: What a relevant item is to stand above: the others left whose label is known (`"labelled"`), or all
            others left (`"all"`).
        labels: What it learns from: `"slates"`, the feedback of what was shown, or `"candidates"`, the labels of
            candidates; `None`: slates, where the log has them.
        max_position_embeddings: Upstream ranks that have an embedding of their own, candidates further down share the
            last one; 0: the upstream order is not read.

    Raises:
        ValueError: If a name is unknown, or what was shown is to stand above steps that learn from candidates.
        huggingface_hub.errors.StrictDataclassError: If a value has the wrong type or is out of its range.
    """

    model_type = "seq2slate"
    training_fields = RecurrentPointerConfig.training_fields | {"loss", "prefix", "negatives", "labels"}

    decoder: Literal["transformer", "lstm"] = "lstm"
    loss: Literal["cross_entropy", "hinge", "likelihood"] = "cross_entropy"
    prefix: Literal["own", "shown"] = "own"
    negatives: Literal["labelled", "all"] = "labelled"
    labels: Literal["slates", "candidates"] | None = None
    max_position_embeddings: int = count_field(default=0)

    def validate_prefix(self) -> None:
        """Checks that there is what shall stand above; called by the strict dataclass."""
        if self.prefix == "shown" and self.labels == "candidates":
            raise ValueError("prefix 'shown' needs slates that were shown; labels are those of 'candidates'")


__all__ = ["Seq2SlateConfig"]
