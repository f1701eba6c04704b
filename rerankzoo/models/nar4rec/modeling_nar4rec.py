"""NAR4Rec: non-autoregressive generation of slates, and its evaluator.

Non-autoregressive Generative Models for Reranking Recommendation (KDD 2024, arXiv 2402.06871, Kuaishou). All positions
of a slate are predicted in one pass: a matching matrix between m position states and n candidate states.

B requests, N candidates, M positions, S slates, T targets, D hidden.

Where this differs from the paper, or fills in what our sources (summaries and an article by the authors) do not state:

- Pre-norm Transformer blocks with GELU; the paper's block is not described. The position encoder has its own number of
  layers.
- The matching logits are scaled by 1/sqrt(D) and the positions pass through a linear map, as in attention.
- A candidate's input is a linear map of all field embeddings and numeric features of candidate, user and context,
  plus the averaged embeddings of the user's history where the schema has one.
- The utility threshold is a quantile of the logged utility on the training split; the paper's rule is not stated.
- The losses are sums over positions and means over requests. With several slates per request, the mean over slates.
- At decoding, p(v | t) is renormalised over the candidates left before each choice. Greedy decoding is the same with
  and without; beam search and sampling need it to be a distribution over slates.
- The evaluator is a causal Transformer over the slate by default: a position's feedback is predicted from the items
  down to it, as people read. The paper says "sequence model"; a bidirectional one (`evaluator_is_causal=False`) does as
  well (docs/models/nar4rec.md). Its slate value is the sum over positions and targets of weight x value x probability
  (x position discount, where the schema has one).
- The contrastive loss on position states is the hinge of the candidates' term; our sources give no formula. Off by
  default.
- The differentiable-evaluator loss and the graph decoder of the follow-up CONGRATS (arXiv 2510.10127) are a family of
  their own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rerankzoo.batch import Batch, gather_candidates, shown
from rerankzoo.generation import MatrixScorer, Scorer
from rerankzoo.layers import CandidateEncoder, FeedbackHead, PointerHead, QueryEncoder, causal_mask, key_mask
from rerankzoo.losses import (
    contrastive_loss,
    likelihood_loss,
    log_probabilities,
    position_log_likelihood,
    slate_mean,
    unlikelihood_loss,
)
from rerankzoo.models.base import (
    EvaluatorOutput,
    RerankingPreTrainedModel,
    SlateEvaluator,
    SlateGenerator,
    SlateModelOutput,
    worth_imitating,
)
from rerankzoo.models.nar4rec.configuration_nar4rec import NAR4RecConfig
from rerankzoo.models.registry import register_model


class NAR4RecPreTrainedModel(RerankingPreTrainedModel):
    """Base of the NAR4Rec family."""

    config: NAR4RecConfig
    config_class = NAR4RecConfig
    paper = (
        "NAR4Rec",
        "Ren et al., Non-autoregressive Generative Models for Reranking Recommendation, KDD 2024, "
        "<https://doi.org/10.1145/3637528.3671645>.",
    )


@register_model
class NAR4RecForReranking(NAR4RecPreTrainedModel, SlateGenerator):
    """NAR4Rec's generator: candidate encoder, position encoder, matching; all positions in one pass."""

    def __init__(self, config: NAR4RecConfig) -> None:
        super().__init__(config)
        size = config.hidden_size
        self.features = self.make_feature_embedding()
        self.candidate_encoder = CandidateEncoder(self.make_blocks(config.num_hidden_layers), size)
        blocks = self.make_blocks(config.num_position_layers, cross_attention=True)
        self.position_encoder = QueryEncoder(blocks, config.slate_size, size)
        self.pointer = PointerHead(size)
        self.post_init()

    def compute(self, batch: Batch) -> SlateModelOutput:
        """See `SlateGenerator.compute`; learns from slates with feedback.

        Raises:
            ValueError: If there is something to learn from and no utility threshold.
        """
        logits, states, positions = self._match(batch)
        if not {"slates", "feedback", "candidate_value"} <= batch.keys():
            return SlateModelOutput(logits=logits, candidate_states=states)
        terms = self._loss_terms(logits, states, positions, batch)
        loss = torch.stack([getattr(self.config, f"{name}_weight") * term for name, term in terms.items()]).sum()
        return SlateModelOutput(loss=loss, loss_terms=terms, logits=logits, candidate_states=states)

    def _match(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Matching logits (B, M, N), candidate states (B, N, D) and position states (B, M, D)."""
        mask, implementation = batch["candidate_mask"], self.config._attn_implementation
        states = self.candidate_encoder(self.features(batch), mask, implementation)
        positions = self.position_encoder(states, mask, implementation)  # (B, M, D)
        return self.pointer(positions, states, mask), states, positions

    def _loss_terms(self, logits: Tensor, states: Tensor, positions: Tensor, batch: Batch) -> dict[str, Tensor]:
        slates, mask, reached = batch["slates"], batch["candidate_mask"], worth_imitating(self, batch)
        margin, filled = self.config.contrastive_margin, (slates >= 0).any(1)
        log_probs = log_probabilities(logits[:, : slates.shape[-1]])
        liked = likelihood_loss(position_log_likelihood(log_probs, slates))  # (B, S)
        disliked = unlikelihood_loss(log_probs, slates, mask)
        return {
            "likelihood": slate_mean(reached * liked, slates).mean(),
            "unlikelihood": slate_mean((1 - reached) * disliked, slates).mean(),
            "contrastive": contrastive_loss(states, mask, margin).mean(),
            "position_contrastive": contrastive_loss(positions[:, : slates.shape[-1]], filled, margin).mean(),
        }

    def scorer(self) -> Scorer:
        """See `SlateGenerationMixin.scorer`: column t of the matching matrix, renormalised over what is left."""
        return MatrixScorer(lambda batch: self._match(batch)[:2])


@register_model
class NAR4RecEvaluator(NAR4RecPreTrainedModel, SlateEvaluator):
    """NAR4Rec's evaluator: predicts the feedback of every position of a slate from the slate down to it.

    Trained separately, on logged slates. Its slate values choose the best of several generated slates:
    `generator.generate(**batch, do_sample=True, num_return_sequences=16, evaluator=evaluator)`.
    """

    def __init__(self, config: NAR4RecConfig) -> None:
        super().__init__(config)
        self.features = self.make_feature_embedding()
        self.positions = nn.Embedding(config.slate_size, config.hidden_size)
        self.layers = self.make_blocks(config.num_hidden_layers)
        self.norm = nn.LayerNorm(config.hidden_size)
        self.heads = FeedbackHead(config.hidden_size, self.schema)
        self.post_init()

    def compute(self, batch: Batch) -> EvaluatorOutput:
        """See `SlateEvaluator.compute`."""
        slates, feedback = batch["slates"], batch.get("feedback")
        logits = self._feedback_logits(self.features(batch), slates)
        output = EvaluatorOutput(
            logits=logits,
            utilities=self.heads.position_utility(logits, slates, batch["candidate_value"]).sum(-1),
            probabilities=self.heads.probabilities(logits),
        )
        if feedback is None:
            return output
        logged = self.heads.log_likelihood(logits, feedback, slates)
        loss = self.heads.loss(logged, slates)
        return EvaluatorOutput(loss=loss, loss_terms={"feedback": loss}, log_likelihoods=logged.sum(-1), **output)

    def _feedback_logits(self, candidates: Tensor, slates: Tensor) -> Tensor:
        """(B, S, M, T) for candidates (B, N, D) and slates (B, S, M), or soft ones."""
        length = slates.shape[2]
        position = torch.arange(length, device=slates.device)
        hidden = (gather_candidates(candidates, slates) + self.positions(position)).flatten(0, 1)  # (B * S, M, D)
        mask = key_mask(shown(slates).flatten(0, 1))
        if self.config.evaluator_is_causal:
            mask = causal_mask(length, slates.device)  # padding stands at the end: no real position looks at it
        for layer in self.layers:
            hidden = layer(hidden, mask=mask, implementation=self.config._attn_implementation)
        return self.heads(self.norm(hidden)).unflatten(0, slates.shape[:2])


__all__ = ["NAR4RecEvaluator", "NAR4RecForReranking"]
