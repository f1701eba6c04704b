"""GoalRank: a generator alone, taught by what groups of slates are worth against one another.

GoalRank: Group-Relative Optimization for a Large Ranking Model (ICLR 2026, arXiv 2509.22046, Kuaishou and others). Of a
group of slates of one request a frozen evaluator knows the values V; the policy that they ask for is
`softmax((V - mean V) / deviation)` (`rerankzoo.losses.group_targets`), and the generator learns it by cross-entropy
(equation 5, `group_loss`). At serving there is no evaluator.

The group is mined (`rerankzoo mine`, whose table has the values), or drawn anew in every step
(`rerankzoo.training.GroupRelative`).

B requests, S slates.

Where this differs from the paper, or fills in what our sources (its abstract, third-party notes, and public code that
does not run) do not state:

- The network is `PointerGenerator`: candidates attend to one another without positions, and a causal decoder over the
  chosen items points at the next one. The public code adds the sum of the chosen items to all shuffled candidates, and
  runs the whole network anew for every position.
- Which auxiliary policies the paper's groups hold beside the model's own slates is not known to us. Ours hold draws of
  the model and changed copies of them, or what mining's `proposals` name.
- The least spread that a group must have is not known to us: groups without any teach nothing.
- The deviation is that of the population; the public code's is that of a sample.
- The evaluator is any of ours, which see the order of a slate; the public code's values items one by one.
- A supervised term beside the group's is the objective's `supervised_weight`, 0 by default; the paper's is not known.
"""

from __future__ import annotations

from torch import Tensor

from rerankzoo.batch import Batch
from rerankzoo.generation.rollouts import distinct
from rerankzoo.losses import group_loss, hard_label_loss, log_probabilities
from rerankzoo.models.goalrank.configuration_goalrank import GoalRankConfig
from rerankzoo.models.pointer_generator import PointerGenerator
from rerankzoo.models.registry import register_model


@register_model
class GoalRankForReranking(PointerGenerator):
    """GoalRank's generator: candidate encoder, causal decoder, pointer. Decodes greedily unless told otherwise."""

    config: GoalRankConfig
    config_class = GoalRankConfig
    paper = (
        "GoalRank",
        "GoalRank: Group-Relative Optimization for a Large Ranking Model, ICLR 2026, "
        "<https://arxiv.org/abs/2509.22046>.",
    )

    def __init__(self, config: GoalRankConfig) -> None:
        super().__init__(config)
        self.features = self.make_feature_embedding()
        self.make_layers()
        self.post_init()

    def distil(self, logits: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """See `PointerGenerator.distil`: mined slates with values are a group, whatever their weights."""
        if "slate_values" not in batch:
            return super().distil(logits, batch)
        slates = batch["slates"]
        log_likelihood = -hard_label_loss(log_probabilities(logits), slates)  # (B, S)
        loss = group_loss(log_likelihood, batch["slate_values"], distinct(slates)).mean()
        return loss, {"group": loss}


__all__ = ["GoalRankForReranking"]
