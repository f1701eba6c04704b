"""GFN4Rec: a generative flow network, whose slates are as probable as they are good.

Generative Flow Network for Listwise Recommendation (KDD 2023, arXiv 2306.02239, Kuaishou). A flow F runs from the empty
slate over prefixes to slates. Where it balances, a slate is drawn in proportion to its reward R, so that sampling finds
many good slates and not one again and again. The losses are `rerankzoo.losses.trajectory_balance` and
`detailed_balance`; `rerankzoo.training.FlowBalance` applies them to drawn slates and an evaluator's values.

B requests, N candidates, M positions, S slates, D hidden.

Where this differs from the paper, or fills in what our sources (its public code, notes) do not state:

- The network is `PointerGenerator`, with a flow read off the decoder's state. The public code's is an MLP over the
  user's state and the chosen items side by side.
- Chosen items are left out of the softmax in training, too. In the public code they stay in it, so that another policy
  is balanced than the one that decodes.
- Of the public code's offsets only the one of the reward is here, `log(R + reward_offset)`; those of probabilities and
  flows bend the optimum.
- The reward is the utility by the schema's weights and values; the paper's is the mean feedback.
- `balance: group`, the variance of `log R - log pi` within a group, needs no flow; it is the default of the objective
  and the recipe's, with `R = exp(sharpness * standardised value)`. `sharpness` is ours.
- From plain logs, where there is one slate per request, balance says nothing of the policy (the flow takes up all). The
  logged slates above the utility threshold are learned by likelihood besides.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rerankzoo.batch import Batch, inputs, widened
from rerankzoo.features.utility import slate_utility
from rerankzoo.losses import detailed_balance, slate_mean, trajectory_balance
from rerankzoo.models.gfn4rec.configuration_gfn4rec import GFN4RecConfig
from rerankzoo.models.pointer_generator import Encoded, PointerGenerator, choice_log_probs
from rerankzoo.models.registry import register_model


@register_model
class GFN4RecForReranking(PointerGenerator):
    """GFN4Rec's generator: candidate encoder, causal decoder, pointer, and the flow of every prefix."""

    config: GFN4RecConfig
    config_class = GFN4RecConfig
    paper = (
        "GFN4Rec",
        "Generative Flow Network for Listwise Recommendation, KDD 2023, <https://arxiv.org/abs/2306.02239>.",
    )

    def __init__(self, config: GFN4RecConfig) -> None:
        super().__init__(config)
        self.features = self.make_feature_embedding()
        self.make_layers()
        self.flow = None if config.balance == "group" else nn.Linear(config.hidden_size, 1)
        self.post_init()

    def learn(
        self, batch: Batch, encoded: Encoded, hidden: Tensor, logits: Tensor
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """See `PointerGenerator.learn`; the flow learns what the slates earned, or are worth."""
        loss, terms = super().learn(batch, encoded, hidden, logits)
        reward = None if self.flow is None else self._reward(batch)
        if loss is None or reward is None:
            return loss, terms
        slates = batch["slates"]
        log_probs = choice_log_probs(logits, encoded.mask, slates)
        balanced = trajectory_balance if self.config.balance == "trajectory" else detailed_balance
        errors = balanced(log_probs, self._log_flows(hidden), reward, slates)
        flow = slate_mean(errors, slates).mean()
        return loss + self.config.flow_weight * flow, {**terms, "flow": flow}

    def _log_flows(self, hidden: Tensor) -> Tensor:
        """log F (B, S, M) of the prefix above each position.

        Raises:
            ValueError: If there is no flow.
        """
        if self.flow is None:
            raise ValueError("there is no flow to balance with: the model's balance is 'group'")
        return widened(self.flow(hidden)).squeeze(-1)

    def _reward(self, batch: Batch) -> Tensor | None:
        """The logarithm (B, S) of the rewards of the batch's slates; `None` where nobody knows them."""
        if "slate_values" in batch:
            reward = batch["slate_values"]
        elif {"feedback", "candidate_value"} <= batch.keys():
            reward = slate_utility(batch["feedback"], batch["slates"], batch["candidate_value"], self.schema)
        else:
            return None
        reward = widened(reward) + self.config.reward_offset
        return reward.clamp_min(torch.finfo(reward.dtype).tiny).log()

    def flows(self, slates: Tensor, /, **batch: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probability of each choice, and log F of the prefix above it: (B, S, M) both.

        Args:
            slates: (B, S, M), -100 pads.
            **batch: The batch by its keys; labels in it are ignored.

        Raises:
            ValueError: If there is no flow.
        """
        self._check_length(slates)
        encoded = self.encode(inputs(batch))
        hidden = self.read(encoded, slates)
        log_probs = choice_log_probs(self.point(hidden, encoded, slates), encoded.mask, slates)
        return log_probs, self._log_flows(hidden)


__all__ = ["GFN4RecForReranking"]
