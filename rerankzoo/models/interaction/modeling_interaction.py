"""The interaction evaluator: what items are worth to one another, as sums over pairs, and how users come to them.

Ours; no paper. A Transformer over a slate has to find the products of two items' features by itself; this model is
given them. The logit of a target at position t of the slate l is

    z_t = f(l_t) + b[l_t] + p_t + sum over s != t of pair(l_t, l_s, s - t) + gate * trunk(l_1..l_t)

where f reads the fields of item and request (a network beside a linear path), b is one number per item id under a
Gaussian prior, p belongs to the position, `pair` is `rerankzoo.layers.PairInteractions` (low-rank products, some
rectified, weighted by distance, of items above and below; it reads what belongs to the item and, so that items can be
compared, how each does by itself), and the trunk, a causal Transformer, may be absent. A
`rerankzoo.layers.Behaviour` turns logits into probabilities and into the likelihood of a whole slate's feedback.

*Whole slates with revision*: V(l_1..l_t) is the expected utility if the page ended at t: every position is read given
all items that are known, and adding one revises those above it. What later items take away is part of V as soon as
they are there.

*Upstream scores*: of every candidate of every request there is one, far more than there is feedback. A small model of
them (`rerankzoo.layers.UpstreamModel`) is trained beside; the feedback's loss sends no gradient into it. It and the
priors count while training only: the loss of a validation is that of the feedback.

B requests, N candidates, M positions, S slates, T targets, D hidden; R rows being decoded, each a prefix.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from rerankzoo.batch import Batch, gather_candidates, inputs, shown, widened
from rerankzoo.features.utility import candidate_utility, position_discount
from rerankzoo.generation import Cache, ModelScorer, Scorer, ScorerState, SlateGenerationMixin
from rerankzoo.generation.scorer import check_positions
from rerankzoo.layers import BEHAVIOURS, FeedbackHead, PackedEmbedding, PairInteractions, UpstreamModel
from rerankzoo.layers.behaviour import CascadeBehaviour, ChoiceBehaviour
from rerankzoo.layers.embedding import compressed
from rerankzoo.models.base import EvaluatorOutput, SlateEvaluator
from rerankzoo.models.causal_trunk import keep_chosen, read_slates, shown_alone, step_candidates
from rerankzoo.models.interaction.configuration_interaction import InteractionEvaluatorConfig
from rerankzoo.models.registry import register_model


class ItemBias(PackedEmbedding):
    """T numbers per item id, 0 at the start."""


class ItemReading(NamedTuple):
    """What the model knows of items (...), wherever they stand."""

    logits: Tensor  # (..., T), without position and other items
    extra: Tensor  # (..., E), what the behaviour needs beside logits
    query: Tensor  # (..., H, r), for what others do to the item
    key: Tensor  # (..., H, r), for what the item does to others
    states: Tensor  # (..., D), for the trunk

    def at(self, slates: Tensor) -> ItemReading:
        """The items of slates (B, S, M'), or of soft ones, of a reading of candidates."""
        return ItemReading(*(gather_candidates(part.flatten(2), slates).unflatten(-1, part.shape[2:]) for part in self))


@register_model
class InteractionEvaluator(SlateGenerationMixin, SlateEvaluator):
    """Values slates by pairs of items and the behaviour of users; trained on logged slates.

    `generate` searches by the values of prefixes, and is cheap enough to serve.
    """

    config: InteractionEvaluatorConfig
    config_class = InteractionEvaluatorConfig
    supports_gradient_checkpointing = False  # it has no blocks

    def __init__(self, config: InteractionEvaluatorConfig) -> None:
        super().__init__(config)
        schema, size, targets = self.schema, config.hidden_size, len(self.schema.targets)
        names = [field.name for field in schema.select("candidate", "categorical")]
        self.id_field = names.index(schema.item_id) if schema.item_id in names else None
        others = len(names) > 1 or schema.numeric_size("candidate") > 0
        unread = [schema.item_id] if others and not config.reads_ids else []
        self.features = self.make_feature_embedding(without=unread)
        self.read_names = [name for name in names if name not in unread]
        self._register_columns(names)
        width, num_items = len(self.item_columns), self._num_items()
        self.network = nn.Linear(size, size)
        self.head = FeedbackHead(2 * size, schema, config.conditional_targets)
        self.leading = next(number for number, chain in enumerate(self.head.chains) if len(chain) == 1)
        self.position_bias = nn.Parameter(torch.empty(config.slate_size, targets))
        self.item_bias = (
            ItemBias([num_items], {"candidate": [0]}, targets) if num_items and config.item_bias_std else None
        )
        self.behaviour = BEHAVIOURS[config.behaviour](config.slate_size)
        effects = targets + self.behaviour.remembers  # the last one is of a click, on the leading target
        shape = (config.num_interaction_heads, config.interaction_size, config.slate_size, effects, config.looks_ahead)
        self.pairs = (
            PairInteractions(2 * width + 1 if config.compares else width, *shape)
            if config.num_interaction_heads
            else None
        )
        denoises = bool(config.denoises_upstream and schema.upstream_score and num_items)
        request = self.features.widths["request"]
        categories = config.embedding_size * len(self.read_names)  # columns of all fields, before those of numbers
        measured = sum(column >= categories for column in self.columns["item_columns"])
        self.upstream = UpstreamModel(num_items, width, request, measured or width) if denoises else None
        self.upstream_feature = nn.Linear(1, size, bias=False) if denoises else None
        depth = config.num_hidden_layers
        self.trunk = CausalTrunk(self.make_blocks(depth), config.slate_size, size, targets) if depth else None
        self.extra = nn.Linear(size, self.behaviour.extra_size) if self.behaviour.extra_size else None
        self.post_init()

    def _num_items(self) -> int:
        """Ids of the field that names the item; 0 where no categorical field does."""
        if self.id_field is None:
            return 0
        spec = self.schema.field(self.schema.item_id)
        return self.schema.field(spec.shares or spec.name).num_embeddings or 0

    def _register_columns(self, names: list[str]) -> None:
        """The categorical fields that are read, and the columns of the joined fields that belong to the item."""
        chosen, width = self.config.interaction_fields, self.config.embedding_size
        if chosen is None:
            left_out = {self.schema.item_id, self.schema.upstream_score}
            chosen = [field.name for field in self.schema.fields if field.name not in left_out]
        sizes = [(name, width) for name in self.read_names]
        sizes += [(field.name, field.size) for field in self.schema.numeric_fields("candidate")]
        columns, start = list[int](), 0
        for name, size in sizes:
            columns += range(start, start + size) if name in chosen else ()
            start += size
        self.columns = {
            "read_fields": [names.index(name) for name in self.read_names],
            "item_columns": columns or list(range(start)),
        }
        for buffer, numbers in self.columns.items():
            self.register_buffer(buffer, torch.tensor(numbers, dtype=torch.int64))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, InteractionEvaluator):
            init.zeros_(module.position_bias)
            for name, numbers in module.columns.items():
                init.copy_(module.get_buffer(name), torch.tensor(numbers, dtype=torch.int64))
            if module.item_bias is not None:
                init.zeros_(module.item_bias.table.weight)
            if module.extra is not None:
                init.constant_(module.extra.bias, -2.0)  # a click ends the reading seldom
        elif isinstance(module, UpstreamModel):
            init.zeros_(module.items.table.weight)
        elif isinstance(module, CausalTrunk):
            init.constant_(module.gate, 0.1)
        elif isinstance(module, PairInteractions):
            distance = torch.arange(module.weight.shape[-1]) + 1.0
            start = torch.stack([0.5 / distance, torch.zeros_like(distance)])[: module.weight.shape[2]]
            # Every other head starts as a repulsion: a rectified one cannot turn its products round, and a weight that
            # has to pass zero first is taken by what attracts.
            sign = 1.0 - 2.0 * (torch.arange(module.num_heads) % 2)
            init.copy_(module.weight, (start * sign[:, None, None]).expand_as(module.weight))
            plain, keys = module.num_plain_heads * module.head_size, module.key.weight
            alike = torch.cat([keys[:plain], module.query.weight[plain:]])  # rectified heads start as similarities
            init.copy_(keys, alike)
        elif isinstance(module, CascadeBehaviour):
            init.constant_(module.go_on, 2.0)
        elif isinstance(module, ChoiceBehaviour):
            init.constant_(module.others, -3.0)

    @property
    def reading_size(self) -> int:
        """Numbers that the scorer's memory holds of an item."""
        paired = 0 if self.pairs is None else 2 * self.pairs.num_heads * self.pairs.head_size
        return self.config.hidden_size + paired + 2 * len(self.schema.targets) + self.behaviour.extra_size

    # --- reading ----------------------------------------------------------------------------------------------------

    def read_items(self, batch: Batch) -> ItemReading:
        """Reads the candidates of a batch, before any slate is known."""
        batch = _compressed(batch)
        fields = self._fields(batch)
        items = fields.index_select(-1, self.item_columns)
        plain = self.features.project(fields, batch)
        if self.upstream is not None and self.upstream_feature is not None:
            with torch.no_grad():  # it learns from upstream scores alone
                score, residuals = self._upstream(batch, items)
            plain, items = plain + self.upstream_feature(score.unsqueeze(-1)), items + residuals
        states = F.gelu(self.network(F.gelu(plain)))
        logits = self.head(torch.cat([states, plain], dim=-1))
        if self.item_bias is not None:
            logits = logits + self.item_bias(self._ids(batch).unsqueeze(-1), "candidate").squeeze(-2)
        extra = logits.new_empty(*logits.shape[:-1], 0) if self.extra is None else self.extra(states)
        nothing = logits.new_empty(*logits.shape[:-1], 0, 1)
        query, key = (nothing, nothing) if self.pairs is None else self.pairs.heads(self._paired(items, logits))
        return ItemReading(logits, extra, query, key, states)

    def _paired(self, items: Tensor, logits: Tensor) -> Tensor:
        """What the pair channel reads of items (..., K) with these logits (..., T) by themselves."""
        if not self.config.compares:
            return items
        appeal = torch.tanh(logits[..., self.leading, None] / 2)
        return torch.cat([items, appeal, appeal * items], dim=-1)

    def _fields(self, batch: Batch) -> Tensor:
        """All that is read of the candidates (B, N, K), side by side."""
        ids = batch["candidate_categorical"].index_select(-1, self.read_fields)
        return self.features.join("candidate", {**batch, "candidate_categorical": ids})

    def _ids(self, batch: Batch) -> Tensor:
        """(B, N), where the schema has a field that names the item."""
        return batch["candidate_categorical"][..., self.id_field]

    def _upstream(self, batch: Batch, items: Tensor) -> tuple[Tensor, Tensor]:
        request = self.features.join("request", batch)
        scores, residuals = cast(UpstreamModel, self.upstream)(self._ids(batch), items, request)
        return scores, residuals

    def _slate_items(self, batch: Batch, slates: Tensor) -> ItemReading:
        """Reads the items of slates (B, S, M')."""
        alone = shown_alone(batch, slates)
        if alone is None:
            return self.read_items(batch).at(slates)
        return ItemReading(*(part.unflatten(1, slates.shape[1:]) for part in self.read_items(alone)))

    def compute(self, batch: Batch) -> EvaluatorOutput:
        """See `SlateEvaluator.compute`; the logits are those of positions that are looked at."""
        slates, feedback = batch["slates"], batch.get("feedback")
        given, extra, mask = self._read_slates(batch, prefixes=True)
        probabilities, values = self._value(batch, given, extra, prefixes=True)
        logits, probabilities = given[:, :, -1], probabilities[:, :, -1]
        output = EvaluatorOutput(
            logits=logits, utilities=values[..., -1], prefix_values=values, probabilities=probabilities
        )
        if feedback is None:
            return output
        happened = feedback.masked_fill(~mask.unsqueeze(-1), 0) > 0
        leading, seen = happened[..., self.leading], happened.any(-1)
        examined = self.head.log_likelihood(self._after_clicks(logits, extra, leading), feedback, slates)
        output["log_likelihoods"] = logged = self.behaviour.log_likelihood(
            logits[..., self.leading], extra, mask, examined, leading, seen
        )
        terms = {"feedback": self.head.loss(logged.unsqueeze(-1), slates)}
        if self.training:
            learned = mask.any(-1).any(-1)  # (B,), requests from which something is learned
            terms["feedback"] = terms["feedback"] + self._item_prior() * widened(learned.float()).mean()
            if self.upstream is not None:
                terms["upstream"] = self._upstream_loss(batch, learned)
        loss = torch.stack(list(terms.values())).sum()
        return EvaluatorOutput(loss=loss, loss_terms=terms, **output)

    @torch.no_grad()
    def score_slates(self, slates: Tensor, /, **batch: Tensor) -> Tensor:
        """See `SlateEvaluator.score_slates`: without the values of prefixes, which cost more than those of slates."""
        self._check_length(slates)
        known = {"slates": slates, **inputs(batch)}
        num_candidates = known["candidate_mask"].shape[1]
        if self.pairs is None or slates[0].numel() < num_candidates * num_candidates:
            given, extra, _ = self._read_slates(known, prefixes=False)
        else:
            candidates = self.read_items(known)
            nothing = candidates.query.new_empty(*candidates.query.shape[:2], 0, 1)
            unread = {"query": nothing, "key": nothing} | (
                {} if self.trunk is not None else {"states": nothing[..., 0]}
            )
            items = candidates._replace(**unread).at(slates)
            effects, extra = self._apart(self.pairs.of_slates(candidates.query, candidates.key, slates), items)
            given = (self._alone(items) + effects.sum(3)).unsqueeze(2)
        return self._value(known, given, extra, prefixes=False)[1].squeeze(-1)

    def _alone(self, items: ItemReading) -> Tensor:
        """Logits (B, S, M, T) of the positions of slates, without what the pair channel adds."""
        logits = items.logits + self.position_bias[: items.logits.shape[2]]
        if self.trunk is not None:
            logits = logits + self.trunk(items.states, self.config._attn_implementation)
        return widened(logits)

    def _read_slates(self, batch: Batch, prefixes: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (B, S, t, M, T) of all positions given the items down to t, extra (B, S, M, E) and mask (B, S, M).

        Without prefixes, t has one entry: whole slates.
        """
        slates = batch["slates"]
        items, mask, length = self._slate_items(batch, slates), shown(slates), slates.shape[2]
        given = self._alone(items).unsqueeze(2)
        if self.pairs is None:
            given = given.expand(-1, -1, length if prefixes else 1, -1, -1)
            nothing = given.new_zeros(*slates.shape, length)
            return given, nothing if self.behaviour.remembers else widened(items.extra), mask
        pairs = self.pairs(items.query, items.key).masked_fill(~mask[:, :, None, :, None], 0.0)
        effects, extra = self._apart(pairs, items)  # (B, S, M, s, T): of the item at s
        given = given + (effects.cumsum(3).transpose(2, 3) if prefixes else effects.sum(3).unsqueeze(2))
        return given, extra, mask

    def _apart(self, effects: Tensor, items: ItemReading) -> tuple[Tensor, Tensor]:
        """What items do to the logits (B, S, M, M, T), and what the behaviour needs (B, S, M, E)."""
        if self.behaviour.remembers:
            return effects[..., :-1], effects[..., -1]
        return effects, widened(items.extra)

    def _after_clicks(self, logits: Tensor, extra: Tensor, clicked: Tensor) -> Tensor:
        """The logits (B, S, M, T) of positions below those clicked (B, S, M), by a behaviour that remembers."""
        if not self.behaviour.remembers:
            return logits
        moved = (extra.tril(-1) * clicked.unsqueeze(-2)).sum(-1, keepdim=True)
        leading = torch.arange(logits.shape[-1], device=logits.device) == self.leading
        return logits + moved * leading

    def _value(self, batch: Batch, given: Tensor, extra: Tensor, prefixes: bool) -> tuple[Tensor, Tensor]:
        """Marginal probabilities (B, S, t, M, T) and expected utilities (B, S, t) of what `_read_slates` has read."""
        slates, length = batch["slates"], given.shape[-2]
        known = shown(slates).unsqueeze(2)
        if prefixes:
            known = known & torch.ones(length, length, dtype=torch.bool, device=slates.device).tril()
        value = gather_candidates(batch["candidate_value"], slates).unsqueeze(2)
        return self.worth(given, extra.unsqueeze(2).expand(*given.shape[:-1], -1), value, known)

    def worth(self, logits: Tensor, extra: Tensor, value: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Marginal probabilities (..., M, T) and expected utilities (...) of slates.

        Args:
            logits: (..., M, T), of positions that are looked at.
            extra: (..., M, E), for the behaviour.
            value: (..., M, T), of the items.
            mask: (..., M), True where a position was shown.
        """
        looked_at = self.behaviour.examination(logits[..., self.leading], extra, mask)
        probabilities = self.head.probabilities(logits) * looked_at.unsqueeze(-1)
        earned = candidate_utility(probabilities.masked_fill(~mask.unsqueeze(-1), 0), value, self.schema)
        position = torch.arange(mask.shape[-1], dtype=earned.dtype, device=earned.device)
        return probabilities, (earned * position_discount(position, self.schema)).sum(-1)

    def _item_prior(self) -> Tensor:
        """Negative log-density of the items' numbers, in the unit of the feedback's loss: per position and target."""
        positions = self.config.num_logged_positions
        if self.item_bias is None or not positions:
            return self.position_bias.new_zeros(())
        squares = widened(self.item_bias.table.weight).square().sum()
        return squares / (2 * self.config.item_bias_std**2) / (positions * len(self.schema.targets))

    def _upstream_loss(self, batch: Batch, learned: Tensor) -> Tensor:
        """Error of the predicted upstream scores, the mean over requests, with the prior of single items."""
        batch = _compressed(batch)
        predicted, _ = self._upstream(batch, self._fields(batch).index_select(-1, self.item_columns))
        scores = batch["candidate_numeric"][..., self.schema.position(str(self.schema.upstream_score))]
        mask = batch["candidate_mask"] & learned.unsqueeze(-1)
        # Squared up to 3 deviations of standardised scores, linear beyond: no outlier outweighs the rest.
        errors = 2 * F.huber_loss(widened(predicted), widened(scores), reduction="none", delta=3.0)
        errors = errors.masked_fill(~mask, 0.0)
        error = (errors.sum(-1) / mask.sum(-1).clamp_min(1)).mean()
        if not self.config.num_logged_positions:
            return error
        # A mean over requests in every part, so that many processes learn what one does.
        prior = cast(UpstreamModel, self.upstream).prior() / self.config.num_logged_positions
        return error + prior * widened(learned.float()).mean()

    def scorer(self) -> Scorer:
        """See `SlateGenerationMixin.scorer`: the value of each prefix extended by each candidate."""
        return InteractionScorer(self)


def _compressed(batch: Batch) -> Batch:
    """The batch with numbers that no product makes too large."""
    return {**batch, **{name: compressed(batch[name]) for name in ("candidate_numeric", "request_numeric")}}


class CausalTrunk(nn.Module):
    """What a causal Transformer adds to the logits of positions, through a gate that is nearly closed at the start."""

    def __init__(self, layers: nn.ModuleList, slate_size: int, hidden_size: int, num_targets: int) -> None:
        super().__init__()
        self.positions = nn.Embedding(slate_size, hidden_size)
        self.layers = layers
        self.norm = nn.LayerNorm(hidden_size)
        self.head = nn.Linear(hidden_size, num_targets)
        self.gate = nn.Parameter(torch.empty(()))

    def forward(self, states: Tensor, implementation: str) -> Tensor:
        """Logits (B, S, M, T) of slates whose items have these states (B, S, M, D)."""
        return self.logits(read_slates(self.layers, self.positions, states, implementation))

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (..., T) from the last layer's states (..., D)."""
        return self.gate * self.head(self.norm(hidden))


class InteractionScorer(ModelScorer):
    """Values all extensions of all prefixes; a row keeps the logits of its items, given its items.

    A new item changes the logits of those above it, by one product each: nothing is read again.
    """

    kind = "value"

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """See `Scorer.encode`."""
        items = self.model.read_items(batch)._asdict()
        return {"candidate_states": items.pop("states"), **items, "candidate_value": batch["candidate_value"]}

    def step(self, state: ScorerState) -> tuple[Tensor, Cache]:
        """See `Scorer.step`; the cache gets the logits (R, N, t + 1, T) of every extended prefix."""
        model, position, memory = self.model, state.prefix.shape[1], state.memory
        check_positions(position + 1, model.config.slate_size)
        newest = state.of_requests(memory["logits"] + model.position_bias[position])
        cache: Cache = {}
        if model.trunk is not None:
            trunk = model.trunk
            hidden, cache = step_candidates(trunk.layers, trunk.positions, memory["candidate_states"], state)
            newest = newest + trunk.logits(hidden)
        newest = widened(newest).unsqueeze(2)  # (R, N, 1, T)
        extra, value = (state.of_requests(memory[name]).unsqueeze(2) for name in ("extra", "candidate_value"))
        if position:
            newest, extra = self._with_prefix(state, newest, extra)
            value = self._behind(state, "candidate_value", value)
        every = torch.ones_like(newest[..., 0], dtype=torch.bool)
        values = model.worth(newest, widened(extra), value, every)[1]
        cache |= {"logits": newest} | ({"moved": extra} if model.behaviour.remembers else {})
        return values.masked_fill(~state.available, float("-inf")), cache

    def _with_prefix(self, state: ScorerState, newest: Tensor, extra: Tensor) -> tuple[Tensor, Tensor]:
        """Of all extended prefixes the logits (R, N, t + 1, T), and what the behaviour needs (R, N, t + 1, E).

        From those of the new items by themselves, (R, N, 1, T) and (R, N, 1, E).
        """
        pairs, position, targets = self.model.pairs, state.prefix.shape[1], newest.shape[-1]
        before = state.cache["logits"].unsqueeze(1).expand(-1, newest.shape[1], -1, -1)
        remembers = self.model.behaviour.remembers
        moved = newest.new_zeros(*newest.shape[:2], position)
        if pairs is not None:
            query, key = (state.of_requests(state.memory[name]) for name in ("query", "key"))
            weight = widened(pairs.weight[..., :position]).flip(-1)  # (T, H, sides, t): the first item is the farthest
            down = pairs.affinities(query, self._chosen(state, "key"))  # (R, H, N, t)
            newest = newest + torch.einsum("rhnt,cht->rnc", down, weight[:targets, :, 0]).unsqueeze(2)
            if pairs.looks_ahead:
                up = pairs.affinities(self._chosen(state, "query"), key)  # (R, H, t, N)
                before = before + torch.einsum("rhtn,cht->rntc", up, weight[:targets, :, 1])
            if remembers:
                moved = torch.einsum("rhnt,ht->rnt", down, weight[-1, :, 0])
        logits = torch.cat([before, newest], dim=2)
        if not remembers:
            return logits, self._behind(state, "extra", extra)
        above = F.pad(state.cache["moved"], (0, 1)).unsqueeze(1).expand(-1, newest.shape[1], -1, -1)
        return logits, torch.cat([above, moved.unsqueeze(2)], dim=2)  # the newest has no effect yet

    def _behind(self, state: ScorerState, name: str, newest: Tensor) -> Tensor:
        """(R, N, t + 1, ...): what is known of the rows' items, before that of each new one (R, N, 1, ...)."""
        chosen = self._chosen(state, name).unsqueeze(1).expand(-1, newest.shape[1], -1, -1)
        return torch.cat([chosen, newest], dim=2)

    def _chosen(self, state: ScorerState, name: str) -> Tensor:
        """(R, t, ...), an entry of the memory for the rows' items."""
        memory = state.memory[name]
        places = state.request.unsqueeze(-1) * memory.shape[1] + state.prefix.clamp_min(0)
        return memory.flatten(0, 1)[places]

    def select(self, cache: Cache, parent: Tensor | None, index: Tensor) -> Cache:
        """See `Scorer.select`."""
        rows = torch.arange(index.shape[0], device=index.device) if parent is None else parent
        chosen = index.clamp_min(0)
        kept: Cache = {name: cache[name][rows, chosen] for name in ("logits", "moved") if name in cache}
        if self.model.trunk is not None:
            kept |= keep_chosen(self.model.trunk.layers, cache, parent, rows, chosen)
        return kept


__all__ = ["InteractionEvaluator"]
