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
- The differentiable-evaluator loss and the graph decoder of the follow-up CONGRATS (arXiv 2510.10127) are not part of
  it.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import initialization as init

from rerankzoo.batch import gather_candidates, inputs
from rerankzoo.features.utility import slate_utility
from rerankzoo.generation import Batch, MatrixScorer, Scorer, SlateGenerationMixin
from rerankzoo.layers import PointerHead, TransformerBlock, causal_mask, key_mask
from rerankzoo.losses import (
    contrastive_loss,
    feedback_loss,
    likelihood_loss,
    log_probabilities,
    position_log_likelihood,
    slate_mean,
    unlikelihood_loss,
)
from rerankzoo.models.base import EvaluatorOutput, RerankingPreTrainedModel, SlateModelOutput
from rerankzoo.models.nar4rec.configuration_nar4rec import NAR4RecConfig


def _block(config: NAR4RecConfig, cross_attention: bool = False) -> TransformerBlock:
    return TransformerBlock(
        config.hidden_size,
        config.num_attention_heads,
        config.intermediate_size,
        config.hidden_dropout_prob,
        config.attention_probs_dropout_prob,
        cross_attention,
    )


class NAR4RecCandidateEncoder(nn.Module):
    """Transformer over the candidates without positions: permutation equivariant."""

    def __init__(self, config: NAR4RecConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_block(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size)

    def forward(self, candidates: Tensor, candidate_mask: Tensor, implementation: str) -> Tensor:
        """Encodes candidates (B, N, D) to (B, N, D)."""
        mask = key_mask(candidate_mask)
        for layer in self.layers:
            candidates = layer(candidates, mask=mask, implementation=implementation)
        return self.norm(candidates)


class NAR4RecPositionEncoder(nn.Module):
    """M learned position queries, the same for all requests, that attend to one another and to the candidates.

    Sharing them is what keeps training samples dense (paper: position encoder).
    """

    def __init__(self, config: NAR4RecConfig) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.empty(config.slate_size, config.hidden_size))
        self.layers = nn.ModuleList(_block(config, cross_attention=True) for _ in range(config.num_position_layers))
        self.norm = nn.LayerNorm(config.hidden_size)

    def forward(self, candidates: Tensor, candidate_mask: Tensor, implementation: str) -> Tensor:
        """Position states (B, M, D) for encoded candidates (B, N, D)."""
        positions = self.queries.unsqueeze(0).expand(candidates.shape[0], -1, -1)
        mask = key_mask(candidate_mask)
        for layer in self.layers:
            positions = layer(positions, memory=candidates, memory_mask=mask, implementation=implementation)
        return self.norm(positions)


class NAR4RecPreTrainedModel(RerankingPreTrainedModel):
    """Weight initialisation of the NAR4Rec family."""

    config: NAR4RecConfig
    config_class = NAR4RecConfig
    _no_split_modules: ClassVar[list[str]] = ["TransformerBlock"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, NAR4RecPositionEncoder):
            init.normal_(module.queries, mean=0.0, std=1.0)


class NAR4RecForReranking(SlateGenerationMixin, NAR4RecPreTrainedModel):
    """NAR4Rec's generator: candidate encoder, position encoder, matching.

    Example:
        >>> model = NAR4RecForReranking(NAR4RecConfig(feature_schema=extractor.schema.to_dict()))  # doctest: +SKIP
        >>> slates = model.generate(**extractor(rows), penalty_alpha=0.1)  # doctest: +SKIP
    """

    def __init__(self, config: NAR4RecConfig) -> None:
        super().__init__(config)
        self.features = self.make_feature_embedding()
        self.candidate_encoder = NAR4RecCandidateEncoder(config)
        self.position_encoder = NAR4RecPositionEncoder(config)
        self.pointer = PointerHead(config.hidden_size)
        self.post_init()

    def forward(
        self,
        candidate_categorical: Tensor,
        candidate_numeric: Tensor,
        candidate_mask: Tensor,
        request_categorical: Tensor,
        request_numeric: Tensor,
        history_categorical: Tensor | None = None,
        history_mask: Tensor | None = None,
        candidate_value: Tensor | None = None,
        slates: Tensor | None = None,
        feedback: Tensor | None = None,
        **other: Tensor,
    ) -> SlateModelOutput:
        """Scores every candidate at every position in one pass; with slates and feedback, also the loss.

        Args:
            candidate_categorical: (B, N, F) int64.
            candidate_numeric: (B, N, F).
            candidate_mask: (B, N), True where a candidate is real.
            request_categorical: (B, F) int64.
            request_numeric: (B, F).
            history_categorical: (B, L, F) int64, where the schema has history fields.
            history_mask: (B, L).
            candidate_value: (B, N, T), value of each target for each candidate; needed for the loss.
            slates: (B, S, M'), logged slates, M' at most the config's slate size; -100 pads.
            feedback: (B, S, M', T), their feedback.
            **other: Further keys of the batch, which this model does not use.

        Returns:
            `SlateModelOutput`.

        Raises:
            ValueError: If slates are longer than the config's slate size, or no utility threshold is set.
        """
        candidates = self.features(
            request_categorical,
            request_numeric,
            candidate_categorical,
            candidate_numeric,
            history_categorical,
            history_mask,
        )
        implementation = self.config._attn_implementation
        states = self.candidate_encoder(candidates, candidate_mask, implementation)  # (B, N, D)
        positions = self.position_encoder(states, candidate_mask, implementation)  # (B, M, D)
        logits = self.pointer(positions, states, candidate_mask)
        if slates is None or feedback is None or candidate_value is None:
            return SlateModelOutput(logits=logits, candidate_states=states)
        logged = {"slates": slates, "feedback": feedback, "candidate_value": candidate_value}
        terms = self._loss_terms(logits, states, candidate_mask, logged)
        return SlateModelOutput(loss=self._weigh(terms), loss_terms=terms, logits=logits, candidate_states=states)

    def _loss_terms(self, logits: Tensor, states: Tensor, candidate_mask: Tensor, logged: Batch) -> dict[str, Tensor]:
        length, threshold = logged["slates"].shape[-1], self.config.utility_threshold
        if length > self.config.slate_size:
            raise ValueError(f"slates have {length} positions, the model has slate_size {self.config.slate_size}")
        if threshold is None:
            raise ValueError("utility_threshold is not set; use a quantile of slate_utility() over the training split")
        log_probs = log_probabilities(logits[:, :length])
        slates = logged["slates"]
        liked = likelihood_loss(position_log_likelihood(log_probs, slates))  # (B, S)
        disliked = unlikelihood_loss(log_probs, slates, candidate_mask)
        reached = (slate_utility(schema=self.schema, **logged) >= threshold).to(log_probs.dtype)  # (B, S)
        return {
            "likelihood": slate_mean(reached * liked, slates).mean(),
            "unlikelihood": slate_mean((1 - reached) * disliked, slates).mean(),
            "contrastive": contrastive_loss(states, candidate_mask, self.config.contrastive_margin).mean(),
        }

    def _weigh(self, terms: dict[str, Tensor]) -> Tensor:
        return (
            self.config.likelihood_weight * terms["likelihood"]
            + self.config.unlikelihood_weight * terms["unlikelihood"]
            + self.config.contrastive_weight * terms["contrastive"]
        )

    def scorer(self) -> Scorer:
        """See `SlateGenerationMixin.scorer`: column t of the matching matrix, renormalised over what is left."""
        return MatrixScorer(self._matrix)

    def _matrix(self, batch: Batch) -> tuple[Tensor, Tensor]:
        output = self(**inputs(batch))
        return output.logits, output.candidate_states


class NAR4RecEvaluator(NAR4RecPreTrainedModel):
    """NAR4Rec's evaluator: predicts the feedback of every position of a slate from the slate down to it.

    Trained separately, on logged slates. Its slate values choose the best of several generated slates:
    `generator.generate(**batch, do_sample=True, num_return_sequences=16, evaluator=evaluator)`.
    """

    def __init__(self, config: NAR4RecConfig) -> None:
        super().__init__(config)
        self.features = self.make_feature_embedding()
        self.positions = nn.Embedding(config.slate_size, config.hidden_size)
        self.layers = nn.ModuleList(_block(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size)
        self.heads = nn.Linear(config.hidden_size, len(self.schema.targets))
        self.post_init()

    def forward(
        self,
        candidate_categorical: Tensor,
        candidate_numeric: Tensor,
        candidate_mask: Tensor,
        request_categorical: Tensor,
        request_numeric: Tensor,
        slates: Tensor,
        candidate_value: Tensor,
        history_categorical: Tensor | None = None,
        history_mask: Tensor | None = None,
        feedback: Tensor | None = None,
        **other: Tensor,
    ) -> EvaluatorOutput:
        """Predicts the feedback of slates; with feedback, also the loss.

        Args:
            candidate_categorical: (B, N, F) int64.
            candidate_numeric: (B, N, F).
            candidate_mask: (B, N), True where a candidate is real.
            request_categorical: (B, F) int64.
            request_numeric: (B, F).
            slates: (B, S, M'), M' at most the config's slate size; -100 pads.
            candidate_value: (B, N, T), value of each target for each candidate.
            history_categorical: (B, L, F) int64, where the schema has history fields.
            history_mask: (B, L).
            feedback: (B, S, M', T) in [0, 1].
            **other: Further keys of the batch, which this model does not use.

        Returns:
            `EvaluatorOutput`.

        Raises:
            ValueError: If slates are longer than the config's slate size, or feedback lies outside [0, 1].
        """
        length = slates.shape[-1]
        if length > self.config.slate_size:
            raise ValueError(f"slates have {length} positions, the model has slate_size {self.config.slate_size}")
        candidates = self.features(
            request_categorical,
            request_numeric,
            candidate_categorical,
            candidate_numeric,
            history_categorical,
            history_mask,
        )
        logits = self._feedback_logits(candidates, slates)
        utilities = slate_utility(logits.sigmoid(), slates, candidate_value, self.schema)
        if feedback is None:
            return EvaluatorOutput(logits=logits, utilities=utilities)
        loss = slate_mean(feedback_loss(logits, feedback, slates >= 0), slates).mean()
        return EvaluatorOutput(loss=loss, loss_terms={"feedback": loss}, logits=logits, utilities=utilities)

    def _feedback_logits(self, candidates: Tensor, slates: Tensor) -> Tensor:
        """(B, S, M, T) for candidates (B, N, D) and slates (B, S, M)."""
        length = slates.shape[-1]
        position = torch.arange(length, device=slates.device)
        hidden = (gather_candidates(candidates, slates) + self.positions(position)).flatten(0, 1)  # (B * S, M, D)
        mask = key_mask((slates >= 0).flatten(0, 1))
        if self.config.evaluator_is_causal:
            mask = causal_mask(length, slates.device)  # padding stands at the end: no real position looks at it
        for layer in self.layers:
            hidden = layer(hidden, mask=mask, implementation=self.config._attn_implementation)
        return self.heads(self.norm(hidden)).unflatten(0, slates.shape[:2])

    @torch.no_grad()
    def score_slates(self, slates: Tensor, /, **batch: Tensor) -> Tensor:
        """Predicted utility of slates; see `rerankzoo.generation.SlateEvaluator`.

        Args:
            slates: (B, S, M), -100 pads.
            **batch: The batch by its keys; labels in it are ignored.

        Returns:
            (B, S).
        """
        return self(slates=slates, **inputs(batch)).utilities


__all__ = ["NAR4RecEvaluator", "NAR4RecForReranking"]
