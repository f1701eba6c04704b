"""CONGRATS: a graph whose paths are slates, so that slates of different kinds have paths of their own.

Breaking the Likelihood Trap: Consistent Generative Recommendation with Graph-structured Model (KDD 2026, arXiv
2510.10127, Peking University and Kuaishou), NAR4Rec's follow-up. V = lambda * M learned vertices read the candidates;
each has a distribution over the candidates and one over the vertices behind it. A slate is drawn along a path

    P(l, v) = E[0, v_1] * prod_t E[v_t, v_{t+1}] * prod_t P(l_t | v_t) * E[v_M, V + 1],        v_1 < v_2 < ... < v_M

and learned by the likelihood of the slate whatever the path, which a dynamic program sums exactly
(`rerankzoo.losses.graph_log_likelihood`). What a slate is worth is taught by a frozen evaluator through soft choices
(`rerankzoo.training.EvaluatorGradient`, the paper's consistent differentiable training).

B requests, N candidates, M positions, S slates, V vertices, D hidden; R rows being decoded.

Where this differs from the paper, or fills in what our sources (its abstract, an article of its authors, a reading
note) do not state:

- A silent vertex stands before those that draw items, and one behind, as the beginning and the end of a text do in the
  directed acyclic transformer. By our sources' formula the first item of every slate is drawn at the first vertex and
  the last item at the last one: they then cannot depend on the path, and two disjoint slates mix (`items_at_ends`; see
  docs/models/congrats.md).
- Transitions have a learned preference for how far they go, which begins at paths of M even jumps. Without it most
  paths have another length at the start; training soon knows a single path, and mixes as NAR4Rec does.
- Pre-norm Transformer blocks with GELU. Matching logits are scaled by 1/sqrt(D) and vertices pass through a linear map,
  as NAR4Rec's positions do here.
- Logged slates are learned whose utility reaches a quantile of the log; our sources do not say which are, nor whether
  NAR4Rec's unlikelihood is kept: it is not.
- A slate with fewer items than positions (a request with few candidates) has a path of its own length.
- At decoding, scores are renormalised over the candidates left. Greedy decoding by `"look_ahead"` is the published
  joint look-ahead. Nothing makes it end near the last vertex (not stated), but it leaves a vertex for each position to
  come. The `"marginal"` scorer, exact chances of the next item over all paths, is ours.
- What consistency is taught through are the logits of the vertices that greedy look-ahead visits. Which path the
  paper takes is not stated; with this one the transitions learn from the likelihood alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import initialization as init

from rerankzoo.batch import PADDING, Batch, gather_candidates
from rerankzoo.generation import Cache, Scorer, ScorerState
from rerankzoo.generation.scorer import check_positions, remaining_log_probs
from rerankzoo.layers import CandidateEncoder, PointerHead, QueryEncoder
from rerankzoo.losses import graph_log_likelihood, log_probabilities, log_transitions, slate_mean
from rerankzoo.losses.graph import NO_CHANCE
from rerankzoo.models.base import SlateGenerator, SlateModelOutput, worth_imitating
from rerankzoo.models.congrats.configuration_congrats import CongratsConfig
from rerankzoo.models.registry import register_model


class PathGraph(NamedTuple):
    """What the model makes of a request."""

    logits: Tensor  # (B, V, N), of the candidates at each vertex
    emissions: Tensor  # (B, V, N), their log-probabilities; NO_CHANCE for padding
    transitions: Tensor  # (B, V + 2, V + 2), log-probabilities; NO_CHANCE backwards
    states: Tensor  # (B, N, D), of the candidates

    def memory(self) -> dict[str, Tensor]:
        """What scorers keep of it."""
        return {"candidate_states": self.states, "emissions": self.emissions, "transitions": self.transitions}

    def tails(self, slate_size: int) -> Tensor:
        """(B, M, V), the mass of the paths from each vertex that end after 0, 1... M - 1 further items."""
        tails = [self.transitions[:, 1:-1, -1]]
        for _ in range(slate_size - 1):
            tails.append(_summed(tails[-1].unsqueeze(1) + self.transitions[:, 1:-1, 1:-1], dim=2))
        return torch.stack(tails, dim=1)

    def marginals(self, length: Tensor, slate_size: int) -> Tensor:
        """Log-chances (B, M, N) of each position's item, whatever the others, in slates of so many items (B)."""
        tails, prior, positions = self.tails(slate_size), self.transitions[:, 0, 1:-1], []
        for position in range(slate_size):
            if position:
                prior = _summed(prior.unsqueeze(-1) + self.transitions[:, 1:-1, 1:-1], dim=1)
            left = (length - position - 1).clamp_min(0).view(-1, 1, 1).expand(-1, 1, prior.shape[1])
            weights = (prior + tails.gather(1, left).squeeze(1)).log_softmax(-1)
            positions.append(_summed(weights.unsqueeze(-1) + self.emissions, dim=1))
        return torch.stack(positions, dim=1)


@dataclass
class PathOutput(SlateModelOutput):
    """Output of CONGRATS: logits are log-chances of each position's item over all paths, whatever the others.

    Attributes:
        path_logits: (B, M, N), of the vertices that greedy look-ahead visits: what soft slates are drawn by.
    """

    path_logits: Tensor | None = None


@register_model
class CongratsForReranking(SlateGenerator):
    """CONGRATS' generator: candidate encoder, graph decoder, slates as paths."""

    config: CongratsConfig
    config_class = CongratsConfig
    paper = (
        "CONGRATS",
        "Breaking the Likelihood Trap: Consistent Generative Recommendation with Graph-structured Model, KDD 2026, "
        "<https://arxiv.org/abs/2510.10127>.",
    )

    def __init__(self, config: CongratsConfig) -> None:
        super().__init__(config)
        size, vertices = config.hidden_size, config.vertices_per_position * config.slate_size + 2
        self.features = self.make_feature_embedding()
        self.candidate_encoder = CandidateEncoder(self.make_blocks(config.num_hidden_layers), size)
        self.vertex_encoder = QueryEncoder(
            self.make_blocks(config.num_graph_layers, cross_attention=True), vertices, size
        )
        self.pointer = PointerHead(size)
        self.leave = nn.Linear(size, size, bias=False)  # a softmax over the vertices behind would not see a bias
        self.enter = nn.Linear(size, size, bias=False)
        self.jump = nn.Parameter(torch.empty(vertices - 1))  # of 1, 2... vertices
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, CongratsForReranking):
            usual = len(module.jump) / (module.config.slate_size + 1)  # of a slate's equal jumps from end to end
            jumps = torch.arange(1.0, len(module.jump) + 1)
            init.copy_(module.jump, -2 * ((jumps - usual) / usual).square())

    def compute(self, batch: Batch) -> PathOutput:
        """See `SlateGenerator.compute`; learns from slates with feedback that reach the utility threshold."""
        graph, size = self.read_graph(batch), self.config.slate_size
        path = self.greedy_path(graph, batch).unsqueeze(-1).expand(-1, -1, graph.logits.shape[2])
        output = PathOutput(
            logits=graph.marginals(batch["candidate_mask"].sum(-1).clamp_max(size), size),
            candidate_states=graph.states,
            path_logits=graph.logits.gather(1, path),
        )
        if not {"slates", "feedback", "candidate_value"} <= batch.keys():
            return output
        slates = batch["slates"]
        likelihood = graph_log_likelihood(graph.emissions, graph.transitions, slates)  # (B, S)
        loss = slate_mean(-worth_imitating(self, batch) * likelihood, slates).mean()
        return PathOutput(loss=loss, loss_terms={"likelihood": loss}, **output)

    def read_graph(self, batch: Batch) -> PathGraph:
        """The graph of each request."""
        mask, implementation = batch["candidate_mask"], self.config._attn_implementation
        states = self.candidate_encoder(self.features(batch), mask, implementation)
        vertices = self.vertex_encoder(states, mask, implementation)  # (B, V + 2, D)
        logits = self.pointer(vertices[:, 1:-1], states, mask)
        emissions = log_probabilities(logits).masked_fill(~mask.unsqueeze(1), NO_CHANCE)
        edges = self.leave(vertices) @ self.enter(vertices).transpose(-1, -2) * vertices.shape[-1] ** -0.5
        place = torch.arange(vertices.shape[1], device=vertices.device)
        edges = edges + self.jump[(place - place.unsqueeze(-1) - 1).clamp_min(0)]
        if self.config.items_at_ends:
            edges = edges.masked_fill(self._passing_ends(vertices), NO_CHANCE)
        return PathGraph(logits, emissions, log_transitions(edges), states)

    @staticmethod
    def _passing_ends(vertices: Tensor) -> Tensor:
        """(V + 2, V + 2), True for transitions that pass the first drawing vertex or, but of one item, the last."""
        vertex = torch.arange(vertices.shape[1], device=vertices.device)
        end = vertex[-1]
        passes_first = (vertex.unsqueeze(-1) == 0) & (vertex != 1)
        return passes_first | ((vertex == end) & (vertex != end - 1).unsqueeze(-1) & (vertex != 1).unsqueeze(-1))

    @torch.no_grad()
    def greedy_path(self, graph: PathGraph, batch: Batch) -> Tensor:
        """The vertices (B, M) that greedy look-ahead visits; the last one again where no candidate is left."""
        scorer = LookAheadScorer(lambda _: graph, self.config.slate_size)
        state, path = scorer.start(batch), []
        for _ in range(self.config.slate_size):
            scores, cache = scorer.step(state)
            index = scores.argmax(-1).masked_fill(~state.available.any(-1), PADDING)
            state = scorer.extend(state, cache, None, index)
            path.append(state.cache["vertex"])
        return torch.stack(path, dim=1).clamp_min(0)  # without candidates there is no path

    def scorer(self) -> Scorer:
        """See `SlateGenerationMixin.scorer`: by the config's `path_decoding`."""
        scorers = {"look_ahead": LookAheadScorer, "marginal": MarginalScorer}
        return scorers[self.config.path_decoding](self.read_graph, self.config.slate_size)


class PathScorer(Scorer):
    """Scores the next item of paths.

    Args:
        read: Makes a batch's graph.
        slate_size: M of the model.
    """

    kind = "log_prob"

    def __init__(self, read: Callable[[Batch], PathGraph], slate_size: int) -> None:
        self.read = read
        self.slate_size = slate_size


class LookAheadScorer(PathScorer):
    """Scores a candidate by the next vertex that suits it best: `max over v of log E[u, v] + log P(i | v)`.

    A row knows its last vertex u, counted from the first that draws items. Vertices are left for the positions to come.
    """

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """See `Scorer.encode`."""
        return self.read(batch).memory()

    def step(self, state: ScorerState) -> tuple[Tensor, Cache]:
        """See `Scorer.step`; the cache gets the vertex (R, N) that each candidate would be drawn at."""
        position, emissions = state.prefix.shape[1], state.of_requests(state.memory["emissions"])
        check_positions(position + 1, self.slate_size)
        transitions, drawing = state.memory["transitions"], torch.arange(emissions.shape[1], device=emissions.device)
        last = state.cache["vertex"] if position else torch.full_like(state.request, -1)
        rows = state.request * transitions.shape[1] + last + 1  # the silent vertex stands before the others
        reached = transitions.flatten(0, 1).index_select(0, rows)[:, 1:-1]  # (R, V)
        reached = reached.masked_fill(drawing > len(drawing) - self.slate_size + position, NO_CHANCE)
        scores, following = (emissions + reached.unsqueeze(-1)).max(1)
        return remaining_log_probs(scores, state.available), {"vertex": last, "following": following}

    def select(self, cache: Cache, parent: Tensor | None, index: Tensor) -> Cache:
        """See `Scorer.select`."""
        rows = torch.arange(index.shape[0], device=index.device) if parent is None else parent
        following = cache["following"][rows, index.clamp_min(0)]
        return {"vertex": torch.where(index < 0, cache["vertex"][rows], following)}


class MarginalScorer(PathScorer):
    """Scores a candidate by its chance of being next, over all paths that agree with the prefix and reach the end.

    A row knows the mass (V) of the paths to each vertex.
    """

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """See `Scorer.encode`."""
        graph = self.read(batch)
        length = batch["candidate_mask"].sum(-1).clamp_max(self.slate_size)
        return {**graph.memory(), "tails": graph.tails(self.slate_size), "length": length}

    def step(self, state: ScorerState) -> tuple[Tensor, Cache]:
        """See `Scorer.step`; the cache gets the mass of the paths to each vertex, before its item is drawn."""
        scores, prior = self.next_item(state)
        return remaining_log_probs(scores, state.available), {"prior": prior}

    def next_item(self, state: ScorerState) -> tuple[Tensor, Tensor]:
        """Log-chances (R, N) of the next item, items chosen before not left out; and the mass (R, V) of paths there.

        Of a whole slate they add up to `graph_log_likelihood`, less the mass of all paths of its length.
        """
        position, memory = state.prefix.shape[1], state.memory
        check_positions(position + 1, self.slate_size)
        emissions, transitions = state.of_requests(memory["emissions"]), state.of_requests(memory["transitions"])
        if position == 0:
            prior = transitions[:, 0, 1:-1]
        else:
            drawn = gather_candidates(memory["emissions"].transpose(1, 2), self._last(state)).flatten(0, 1)  # (R, V)
            prior = _summed((state.cache["prior"] + drawn).unsqueeze(-1) + transitions[:, 1:-1, 1:-1], dim=1)
        left = (state.of_requests(memory["length"]) - position - 1).clamp_min(0)
        tails = memory["tails"].flatten(0, 1).index_select(0, state.request * self.slate_size + left)
        weights = (prior + tails).log_softmax(-1)
        return (weights.unsqueeze(-1) + emissions).logsumexp(1), prior

    @staticmethod
    def _last(state: ScorerState) -> Tensor:
        """The item chosen last (B, R / B) by each row."""
        num_requests = state.memory["emissions"].shape[0]
        return state.prefix[:, -1].view(num_requests, -1)


def _summed(mass: Tensor, dim: int) -> Tensor:
    """The logarithm of summed chances; the least is `NO_CHANCE`, so that none of them runs away."""
    return mass.logsumexp(dim).clamp_min(NO_CHANCE)


__all__ = ["CongratsForReranking"]
