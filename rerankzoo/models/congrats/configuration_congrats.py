"""Configuration of CONGRATS."""

from __future__ import annotations

from typing import ClassVar, Literal

from huggingface_hub.dataclasses import strict

from rerankzoo.models.base import ImitationConfig, size_field


@strict
class CongratsConfig(ImitationConfig):
    """Sizes and decoding of `CongratsForReranking`; see also `ImitationConfig`.

    Args:
        num_hidden_layers: Layers of the candidate encoder.
        num_graph_layers: Layers of the graph decoder: self-attention among vertices, cross-attention to candidates.
        vertices_per_position: lambda: the graph has lambda * `slate_size` vertices. The more, the more slates it holds
            apart; the paper uses 4, found 6 best and 8 worse.
        path_decoding: What the scores of a next item are: `"look_ahead"`, those of the best next vertex (the paper's
            joint look-ahead, if decoded greedily), or `"marginal"`, the exact chances over all paths.
        items_at_ends: Whether every path begins at the first vertex that draws items and ends at the last one, as in
            our sources' formula; the first and the last item then do not depend on the path.
    """

    model_type = "congrats"
    keys_to_ignore_at_inference: ClassVar[list[str]] = [*ImitationConfig.keys_to_ignore_at_inference, "path_logits"]

    num_hidden_layers: int = size_field(default=2)
    num_graph_layers: int = size_field(default=1)
    vertices_per_position: int = size_field(default=4)
    path_decoding: Literal["look_ahead", "marginal"] = "look_ahead"
    items_at_ends: bool = False


__all__ = ["CongratsConfig"]
