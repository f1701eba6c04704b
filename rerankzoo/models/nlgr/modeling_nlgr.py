"""NLGR: a start list is edited: where, and then what. The evaluator's word on neighbouring lists teaches it.

NLGR: Utilizing Neighbor Lists for Generative Rerank in Personalized Recommendation Systems (WWW 2025 Companion, arXiv
2502.06097, Meituan). From the upstream list on, one network chooses a position (PDU) and another what to put there
(CRU), given the items at the others. A neighbour differs from the list in one edit; training values all neighbours of
the lists on the way, and moves the choices towards those that an evaluator likes better (the paper's loss, by the
objective `rerankzoo.training.NeighbourReward`) or towards the best of all (ours, `rerankzoo.training.BestNeighbour`).

B requests, N candidates, M positions, S slates, K edits, D hidden.

Where this differs from the paper, or fills in what our sources (its abstract, a note) do not state:

- Both choices read one small Transformer: at each slot a query that sees the other slots' items and all candidates,
  but not its own slot's item (the paper's masked position), for every slot at once. Where to edit also reads the slot's
  item. The paper has attention per field, pooled, and MLPs.
- Where to edit also goes by the item choice: the less probable the item that is there, the more there is to gain. With
  `position_network: false` by that alone.
- The user is the averaged history, as in this zoo's others; the paper attends to sessions of past lists.
- A candidate that stands in the list already may be chosen: the two change places. The paper's neighbours replace an
  item only, so that a swap takes two edits.
- Choices are a softmax; no Gumbel noise, no straight-through gradient, for the loss is an expectation or a
  cross-entropy.
- At serving each edit leads to a slate that was not there before, and what is served is the slate on the way whose
  items are the most probable given one another. The paper ends when the item chosen is the one that is there, or below
  a probability that is not known to us.
- Scores of single candidates, by which all other strategies decode, are a head of its own, learned from feedback.
- Without an evaluator the edits are learned from the log (ours): which item got feedback, given the other slots; and
  to edit positions that got none. Of mined slates, by their weights, what stands at every position.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rerankzoo.batch import Batch, gather_candidates, inputs
from rerankzoo.generation import Decoded, SlateRules, StaticScorer
from rerankzoo.generation.scorer import check_positions, of_choices, remaining_log_probs
from rerankzoo.generation.search import greedy_search
from rerankzoo.layers import CandidateEncoder, PointerHead, key_mask, upstream_rank
from rerankzoo.losses import slate_mean
from rerankzoo.models.base import SlateModelOutput
from rerankzoo.models.nlgr.configuration_nlgr import NLGRConfig
from rerankzoo.models.nlgr.generation_nlgr import NLGRGenerationConfig
from rerankzoo.models.registry import register_model
from rerankzoo.models.score_and_sort import ScoreAndSortModel
from rerankzoo.slates import edited_slates, put


@register_model
class NLGRForReranking(ScoreAndSortModel):
    """NLGR's generator: candidate encoder, slots, position and item choice; and scores of single candidates.

    Args:
        config: Its schema must name an upstream score.

    Raises:
        SchemaError: If it does not.
    """

    config: NLGRConfig
    config_class = NLGRConfig
    generation_config_class = NLGRGenerationConfig
    strategies = ("greedy", "beam", "contrastive", "sample", "edits")
    paper = (
        "NLGR",
        "NLGR: Utilizing Neighbor Lists for Generative Rerank in Personalized Recommendation Systems, WWW 2025, "
        "<https://arxiv.org/abs/2502.06097>.",
    )

    def __init__(self, config: NLGRConfig) -> None:
        super().__init__(config)
        size = config.hidden_size
        self.upstream_column = self.upstream_score_column()
        self.candidate_encoder = CandidateEncoder(self.make_blocks(config.num_hidden_layers), size)
        self.tokens = nn.Embedding(2 * config.slate_size, size)  # of the queries, and of the items
        self.slot_layers = self.make_blocks(config.num_slot_layers, cross_attention=True)
        self.norm = nn.LayerNorm(size)
        self.item_choice = PointerHead(size)
        if config.position_network:
            self.position_choice = nn.Sequential(nn.Linear(2 * size, size), nn.GELU(), nn.Linear(size, 1, bias=False))
        self.post_init()

    @property
    def num_positions(self) -> int:
        """As many as the slots; scores alone would do for any number."""
        return self.config.slate_size

    def encode_candidates(self, batch: Batch) -> Tensor:
        """See `ScoreAndSortModel.encode_candidates`."""
        embedded = self.features(batch)
        return self.candidate_encoder(embedded, batch["candidate_mask"], self.config._attn_implementation)

    def compute(self, batch: Batch) -> SlateModelOutput:
        """See `SlateGenerator.compute`; learns scores from feedback, edits from logged or mined slates."""
        output, slates, weights = super().compute(batch), batch.get("slates"), batch.get("slate_weights")
        if slates is None or (weights is None and "feedback" not in batch):
            return output
        terms = dict(output.loss_terms or {})
        for name, losses in self._edit_losses(output["candidate_states"], batch).items():
            terms[name] = (slate_mean(losses, slates) if weights is None else (weights * losses).sum(-1)).mean()
        output.loss, output.loss_terms = torch.stack(list(terms.values())).sum(), terms
        return output

    def _edit_losses(self, states: Tensor, batch: Batch) -> dict[str, Tensor]:
        """The losses (B, S) of both choices, from slates with feedback, or mined ones."""
        slates, good = batch["slates"], self._good(batch)
        where, what = self._choices(states, slates, batch["candidate_mask"])
        poor = (slates >= 0) & ~good & good.any(-1, keepdim=True)
        return {
            "item": -of_choices(what, slates).masked_fill(~good, 0.0).sum(-1),
            "position": -where.masked_fill(~poor, 0.0).sum(-1) / poor.sum(-1).clamp_min(1),
        }

    @staticmethod
    def _good(batch: Batch) -> Tensor:
        """The positions (B, S, M) of slates whose items are to be learned."""
        real = batch["slates"] >= 0
        if "slate_weights" in batch:
            return real
        return (batch["feedback"].masked_fill(~real.unsqueeze(-1), 0) > 0).any(-1)

    def edit_choices(self, slates: Tensor, /, **batch: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities of all edits of given slates (B, S, M); -100 pads. Labels in the batch are ignored.

        Returns:
            Of each position to be edited (B, S, M), -inf at padding; and of each candidate to be put there, which are
            (B, S, M, N), -inf where there is none. One that stands there already leaves the slate as it is; one that
            stands elsewhere changes places with the item that is there.
        """
        self._check_length(slates)
        known = inputs(batch)
        return self._choices(self.encode_candidates(known), slates, known["candidate_mask"])

    def _choices(self, states: Tensor, slates: Tensor, candidate_mask: Tensor) -> tuple[Tensor, Tensor]:
        """See `edit_choices`, of encoded candidates (B, N, D)."""
        size, real = slates.shape[-1], slates >= 0
        query, item = self.tokens.weight.unflatten(0, (2, -1))[:, :size]  # (M, D) each
        shown = gather_candidates(states, slates) + item
        hidden, sight = torch.cat([query.expand_as(shown), shown], dim=2).flatten(0, 1), self._sight(real)
        for layer in self.slot_layers:
            hidden = layer(
                hidden,
                mask=sight,
                memory=states,
                memory_mask=key_mask(candidate_mask),
                implementation=self.config._attn_implementation,
            )
        query, item = self.norm(hidden).unflatten(0, slates.shape[:2]).chunk(2, dim=2)  # (B, S, M, D) each
        what = self.item_choice(query.flatten(1, 2), states, candidate_mask).unflatten(1, slates.shape[1:])
        available = candidate_mask[:, None, None] & real.unsqueeze(-1)
        what = remaining_log_probs(what, available.expand(what.shape))
        where = -of_choices(what, slates)  # of what stands there, -log p: the more, the more there is to gain
        if self.config.position_network:
            where = where + self.position_choice(torch.cat([query, item], dim=-1)).squeeze(-1)
        return remaining_log_probs(where, real), what

    @staticmethod
    def _sight(real: Tensor) -> Tensor:
        """What the 2 M tokens of slates see (B * S, 1, 2 M, 2 M): all themselves, queries the items of other slots."""
        size = real.shape[-1]
        itself = torch.eye(size, dtype=torch.bool, device=real.device)
        others = (real.unsqueeze(-2) & ~itself).flatten(0, 1)  # (B * S, M, M)
        own, nothing = itself.expand_as(others), torch.zeros_like(others)
        return torch.cat([torch.cat([own, others], -1), torch.cat([nothing, own], -1)], -2).unsqueeze(1)

    def start_slates(self, batch: Batch, slate_size: int) -> Tensor:
        """The upstream order (B, 1, M): what is edited; of equal scores the first; -100 pads."""
        rank = upstream_rank(batch["candidate_numeric"][..., self.upstream_column], batch["candidate_mask"]).float()
        return greedy_search(StaticScorer(lambda _: (-rank, rank.unsqueeze(-1))), batch, slate_size).slates

    def edit_path(self, slates: Tensor, num_edits: int, draw: bool = False, /, **batch: Tensor) -> Decoded:
        """Edits slates (B, S, M), one edit after the other: drawn ones, or the most probable that leads to a new slate.

        Returns:
            Slates (B, S * (K + 1), M), those after all edits of a slate side by side, beginning with the slate itself;
            and as step scores the log-probabilities of the edits so far, each at its position.
        """
        return self._edit_path(self.encode_candidates(batch), slates, num_edits, batch["candidate_mask"], draw)

    def refine(self, slates: Tensor, num_edits: int, /, **batch: Tensor) -> Decoded:
        """The surest slate on the `edit_path` of each slate (B, S, M).

        That is the one whose items, each given the others, are the most probable; of equal ones the first.

        Returns:
            Slates (B, S, M), and as step scores the log-probabilities of the edits that lead to them.
        """
        mask, states = batch["candidate_mask"], self.encode_candidates(batch)
        path = self._edit_path(states, slates, num_edits, mask, False)
        sure = of_choices(self._choices(states, path.slates, mask)[1], path.slates).sum(-1)  # (B, S * (K + 1))
        best = sure.unflatten(1, (-1, num_edits + 1)).argmax(-1, keepdim=True).unsqueeze(-1)  # (B, S, 1, 1)
        best = best.expand(-1, -1, 1, slates.shape[-1])
        slates, steps = (
            some.unflatten(1, (-1, num_edits + 1)).gather(2, best).squeeze(2)
            for some in (path.slates, path.step_scores)
        )
        return Decoded(slates, steps.sum(-1), steps)

    def _edit_path(self, states: Tensor, slates: Tensor, num_edits: int, mask: Tensor, draw: bool) -> Decoded:
        """See `edit_path`, of encoded candidates (B, N, D)."""
        check_positions(slates.shape[-1], self.config.slate_size)
        path, scores = [slates], [torch.zeros(slates.shape, device=slates.device)]
        for _ in range(num_edits):
            changed, chances = self._edit(states, torch.stack(path, dim=2), mask, draw)
            path.append(changed)
            scores.append(scores[-1] + chances)
        slates, steps = torch.stack(path, dim=2).flatten(1, 2), torch.stack(scores, dim=2).flatten(1, 2)
        return Decoded(slates, steps.sum(-1), steps)

    def _edit(self, states: Tensor, path: Tensor, mask: Tensor, draw: bool) -> tuple[Tensor, Tensor]:
        """Slates (B, S, M) after an edit of the last of a path (B, S, K, M), and its log-probability; 0 if it is none.

        The most probable edits may lead round in circles, and out of a slate that no edit seems to improve leads none.
        """
        slates = path[:, :, -1]
        where, what = self._choices(states, slates, mask)
        edits = (where.unsqueeze(-1) + what).flatten(2)  # (B, S, M * N)
        if draw:
            wanted = _noisy(edits)
        else:
            neighbours = edited_slates(slates, what.shape[-1]).flatten(2, 3).unsqueeze(3)  # (B, S, M * N, 1, M)
            wanted = edits.masked_fill((neighbours == path.unsqueeze(2)).all(-1).any(-1), float("-inf"))
        best, edit = wanted.max(-1, keepdim=True)  # (B, S, 1)
        position = edit // what.shape[-1]
        item = edit - position * what.shape[-1]  # ONNX knows no remainder by a size
        changed = torch.where(best > float("-inf"), put(slates, position, item), slates)
        place = torch.arange(slates.shape[-1], device=slates.device)
        kept = (place != position) | (changed == slates).all(-1, keepdim=True)
        return changed, edits.gather(-1, edit).expand(slates.shape).masked_fill(kept, 0.0)

    def decode(self, batch: Batch, config: NLGRGenerationConfig, rules: SlateRules | None = None) -> Decoded:
        """See `SlateGenerationMixin.decode`.

        Raises:
            ValueError: If there are constraints, for editing: edits do not keep them.
        """
        if config.strategy != "edits":
            return super().decode(batch, config, rules)
        if rules is not None:
            raise ValueError("edits keep no constraints; decode without num_refinements")
        return self.refine(self.start_slates(batch, config.slate_size), config.num_refinements, **batch)


def _noisy(log_probs: Tensor) -> Tensor:
    """Log-probabilities with Gumbel noise, so that the largest is a draw."""
    uniform = torch.rand_like(log_probs).clamp_min(torch.finfo(log_probs.dtype).tiny)
    return log_probs - (-uniform.log()).log()


__all__ = ["NLGRForReranking"]
