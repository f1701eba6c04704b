"""From the ids and numbers of a batch to vectors per candidate or per field, and what fields pass through. No config.

B requests, N candidates, L history, F fields of a candidate, R fields of the request, E embedding width, D hidden or
field width.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, groupby
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rerankzoo.batch import Batch
from rerankzoo.layers.history import TargetAttention
from rerankzoo.layers.transformer import is_plain, softmax_of_few

#: Numbers beyond it count as this much. What a field of that size says is lost in the norms that follow anyway, and
#: its squares, or float16, would overflow.
LARGEST_NUMBER = 1e4


def bounded(numeric: Tensor, dtype: torch.dtype) -> Tensor:
    """Numeric features of any size, infinite ones too, cut to `LARGEST_NUMBER` on both sides, in a model's precision.

    Standardised features are never cut. Raw ones of that size should be standardised, or pass through log1p.
    """
    return numeric.clamp(-LARGEST_NUMBER, LARGEST_NUMBER).to(dtype)


def compressed(numeric: Tensor) -> Tensor:
    """Numeric features of any size, of which what exceeds 10 counts by its logarithm: for models without norms."""
    size = numeric.clamp(-LARGEST_NUMBER, LARGEST_NUMBER)
    return size.clamp(-10, 10) + size.sign() * torch.log1p((size.abs() - 10).clamp_min(0))


class PackedEmbedding(nn.Module):
    """The embeddings of all categorical fields in one table: one gather per group of fields.

    A field owns a block of consecutive rows, or shares the block of another field. Id 0 (padding or missing) always
    yields zeros.

    Args:
        num_embeddings: Number of ids of each field that owns a block.
        owners: For each group of fields, the number of the block of each of its fields.
        embedding_size: E.
    """

    def __init__(self, num_embeddings: Sequence[int], owners: Mapping[str, Sequence[int]], embedding_size: int) -> None:
        super().__init__()
        self.num_embeddings = tuple(num_embeddings)
        self.owners = {group: tuple(blocks) for group, blocks in owners.items()}
        self.table = nn.Embedding(max(1, sum(num_embeddings)), embedding_size)
        for group in self.owners:  # persistent: what is not in the checkpoint is lost when built on the meta device
            self.register_buffer(f"{group}_offsets", torch.tensor(self.offsets(group), dtype=torch.int64))

    def offsets(self, group: str) -> list[int]:
        """The first row of each field of a group."""
        starts = [0, *accumulate(self.num_embeddings)]
        return [starts[block] for block in self.owners[group]]

    def continues(self, source: PackedEmbedding) -> bool:
        """Tells whether this table has the blocks of another one, each with at least as many ids, as wide."""
        old, new = source.num_embeddings, self.num_embeddings
        grown = len(old) == len(new) and all(few <= many for few, many in zip(old, new, strict=True))
        return grown and self.owners == source.owners and self.table.embedding_dim == source.table.embedding_dim

    def continued_table(self, source: PackedEmbedding) -> Tensor:
        """The table with the rows of the one that it `continues`.

        Returns:
            A new tensor (rows, E): per block the source's rows, then this table's own for ids that the source lacks.
        """
        table = self.table.weight.detach().clone()
        if self.num_embeddings:
            blocks = zip(
                table.split(self.num_embeddings),
                source.table.weight.detach().split(source.num_embeddings),
                strict=True,
            )
            for own, known in blocks:
                own[: len(known)] = known
        return table

    def forward(self, ids: Tensor, group: str) -> Tensor:
        """Looks up the ids (..., F) of a group of fields.

        Returns:
            (..., F, E).
        """
        rows = ids + self.get_buffer(f"{group}_offsets")
        return self.table(rows) * (ids > 0).unsqueeze(-1)


class FeatureEmbedding(nn.Module):
    """Joins the user's and context's features to every candidate's: one vector per candidate.

    The vector is a linear map of the concatenation of all field embeddings and numeric columns of the request, the
    candidate and the (averaged) history; it is computed group by group, so that the request is projected once and not
    once per candidate. Numbers are `bounded`. With `history_heads` every candidate reads the past items for itself, by
    target attention, instead of their mean.

    Args:
        num_embeddings: Number of ids of each categorical field that owns embeddings.
        owners: For `"request"`, `"candidate"` and `"history"`, the owning field of each categorical field.
        num_numeric: For each group, the number of numeric columns.
        embedding_size: E.
        hidden_size: D.
        history_heads: Attention heads by which candidates read the history; 0: they are handed its mean.
        timed: Whether the batch tells how long ago past items were; of use to attention only.
        paged: Whether the batch tells which page they were on; of use to attention only.
    """

    def __init__(
        self,
        num_embeddings: Sequence[int],
        owners: Mapping[str, Sequence[int]],
        num_numeric: Mapping[str, int],
        embedding_size: int,
        hidden_size: int,
        history_heads: int = 0,
        timed: bool = False,
        paged: bool = False,
    ) -> None:
        super().__init__()
        self.embedding = PackedEmbedding(num_embeddings, owners, embedding_size)
        widths = {
            group: len(owners[group]) * embedding_size + num_numeric.get(group, 0)
            for group in ("request", "candidate", "history")
        }
        self.widths = widths
        self.candidate_projection = nn.Linear(widths["candidate"], hidden_size)
        # A group without fields has no projection: a parameter that can get no gradient stops distributed training.
        self.request_projection = nn.Linear(widths["request"], hidden_size, bias=False) if widths["request"] else None
        self.history_projection = nn.Linear(widths["history"], hidden_size, bias=False) if widths["history"] else None
        reads = history_heads and widths["history"]
        self.history_attention = TargetAttention(hidden_size, history_heads, timed, paged) if reads else None

    def forward(self, batch: Batch) -> Tensor:
        """The vectors (B, N, D) of the candidates of a batch.

        Raises:
            ValueError: If there are history fields, and the batch lacks past items or what attention reads of them.
        """
        return self.project(self.join("candidate", batch), batch)

    def project(self, candidates: Tensor, batch: Batch) -> Tensor:
        """The vectors (B, N, D) of candidates whose fields are joined already (B, N, `join`'s width)."""
        hidden = self.candidate_projection(candidates)
        if self.request_projection is not None:
            hidden = hidden + self.request_projection(self.join("request", batch)).unsqueeze(1)
        if self.history_projection is not None:
            history, mask = joined_history(self.embedding, batch)
            if self.history_attention is None:
                hidden = hidden + self.history_projection(mean_history(history, mask)).unsqueeze(1)
            else:
                past, when = self.history_projection(history), map(batch.get, ("history_time", "history_page"))
                hidden = hidden + self.history_attention(hidden, past, mask, *when)
        return hidden

    def past_items(self, batch: Batch) -> Tensor:
        """The vectors (B, L, D) of the user's past items one by one, of a schema that has history fields."""
        return cast(nn.Linear, self.history_projection)(joined_history(self.embedding, batch)[0])

    def join(self, group: str, batch: Batch) -> Tensor:
        """See `join_fields`."""
        return join_fields(self.embedding, group, batch)


class FieldEmbedding(nn.Module):
    """One vector per field, for attention among the fields of an item.

    A categorical field's embedding, a numeric field's number and a dense field's vector each pass through a linear map
    of that field's own; numbers are `bounded`. The fields of the request and of the (averaged) history are the same for
    all candidates and are computed once per request. With `reads_history` every candidate reads the past items for
    itself, by target attention: what it has read is one more field of it.

    Args:
        num_embeddings: Number of ids of each categorical field that owns embeddings.
        owners: For `"request"`, `"candidate"` and `"history"`, the owning field of each categorical field.
        numeric_sizes: For each group, the number of columns of each numeric or dense field.
        embedding_size: E.
        field_size: D.
        reads_history: Whether candidates read the history by attention, and are not handed its mean.
        timed: Whether the batch tells how long ago past items were; of use to attention only.
        paged: Whether the batch tells which page they were on; of use to attention only.
    """

    def __init__(
        self,
        num_embeddings: Sequence[int],
        owners: Mapping[str, Sequence[int]],
        numeric_sizes: Mapping[str, Sequence[int]],
        embedding_size: int,
        field_size: int,
        reads_history: bool = False,
        timed: bool = False,
        paged: bool = False,
    ) -> None:
        super().__init__()
        self.field_size = field_size
        self.embedding = PackedEmbedding(num_embeddings, owners, embedding_size)
        self.projections = nn.ModuleDict()
        self._runs: dict[str, list[tuple[int, int]]] = {}  # of each group, width and number of like fields side by side
        for group, blocks in owners.items():
            sizes = [*[embedding_size] * len(blocks), *numeric_sizes.get(group, ())]
            self.projections[group] = nn.ModuleList(nn.Linear(size, field_size) for size in sizes)
            self._runs[group] = [(size, len(list(run))) for size, run in groupby(sizes)]
        reads = reads_history and self._runs.get("history")
        self.history_attention = TargetAttention(field_size, 1, timed, paged) if reads else None

    def _num_fields(self, group: str) -> int:
        return len(cast(nn.ModuleList, self.projections[group]))

    @property
    def num_candidate_fields(self) -> int:
        """Fields of a candidate."""
        return self._num_fields("candidate") + (self.history_attention is not None)

    @property
    def num_request_fields(self) -> int:
        """Fields that all candidates of a request share: the request's, and the history's as far as it is averaged."""
        return self._num_fields("request") + (self._num_fields("history") if self.history_attention is None else 0)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Embeds a batch; errors are those of `FeatureEmbedding.forward`.

        Returns:
            The fields of the candidates (B, N, F, D), categorical ones first, and those of the requests (B, F', D),
            where F' may be 0.
        """
        candidates = self._embed("candidate", join_fields(self.embedding, "candidate", batch))
        shared = [candidates.new_empty(candidates.shape[0], 0, self.field_size)]
        if self._runs["request"]:
            shared.append(self._embed("request", join_fields(self.embedding, "request", batch)))
        if self._runs["history"]:
            joined, mask = joined_history(self.embedding, batch)
            if self.history_attention is None:
                shared.append(self._embed("history", mean_history(joined, mask)))
            else:
                past, when = self._embed("history", joined).mean(-2), map(batch.get, ("history_time", "history_page"))
                read = self.history_attention(candidates.mean(-2), past, mask, *when)
                candidates = torch.cat([candidates, read.unsqueeze(-2)], dim=-2)
        return candidates, torch.cat(shared, dim=1)

    def _embed(self, group: str, joined: Tensor) -> Tensor:
        """(..., F, D) from a group's `join_fields`, where a part without fields keeps its parameters' gradients."""
        runs, maps = self._runs[group], list(cast(Iterable[nn.Linear], self.projections[group]))
        parts = joined.split([size * number for size, number in runs], dim=-1)
        ends = accumulate(number for _, number in runs)
        mapped = [
            _map_each(part, maps[end - number : end]) for part, end, (_, number) in zip(parts, ends, runs, strict=True)
        ]
        return torch.cat(mapped, dim=-2)


def _map_each(columns: Tensor, maps: Sequence[nn.Linear]) -> Tensor:
    """What F linear maps of K numbers each make of the columns (..., F * K): (..., F, D), in one call for all.

    Maps that are more than a plain `nn.Linear` (quantised, adapted) are called one by one.
    """
    if not all(is_plain(linear, nn.Linear) for linear in maps):
        parts = columns.unflatten(-1, (len(maps), -1)).unbind(-2)
        return torch.stack([linear(part) for linear, part in zip(maps, parts, strict=True)], dim=-2)
    weight = torch.stack([linear.weight for linear in maps])  # (F, D, K)
    bias = torch.stack([linear.bias for linear in maps])
    fields = columns.unflatten(-1, (len(maps), -1))
    if fields.shape[-1] == 1:
        return torch.addcmul(bias, fields, weight.squeeze(-1))
    rows = fields.reshape(-1, *fields.shape[-2:]).transpose(0, 1)  # (F, rows, K)
    mapped = torch.baddbmm(bias.unsqueeze(1), rows, weight.transpose(1, 2))
    return mapped.transpose(0, 1).view(*fields.shape[:-1], -1)


def join_fields(embedding: PackedEmbedding, group: str, batch: Batch) -> Tensor:
    """A group's embeddings (..., F * E) and `bounded` numbers, if there are any, side by side."""
    embedded = embedding(batch[f"{group}_categorical"], group).flatten(-2)
    numeric = batch.get(f"{group}_numeric")
    return embedded if numeric is None else torch.cat([embedded, bounded(numeric, embedded.dtype)], dim=-1)


def joined_history(embedding: PackedEmbedding, batch: Batch) -> tuple[Tensor, Tensor]:
    """`join_fields` of the user's past items (B, L, ...), and which of them are real (B, L).

    Raises:
        ValueError: If ids or mask are missing.
    """
    if "history_categorical" not in batch or "history_mask" not in batch:
        raise ValueError("this model has history fields: the batch needs history_categorical and history_mask")
    return join_fields(embedding, "history", batch), batch["history_mask"]


def mean_history(history: Tensor, mask: Tensor) -> Tensor:
    """The mean (B, K) of the user's past items (B, L, K) that are real (B, L); zeros without any."""
    total = (history * mask[..., None]).sum(1)
    return total / mask.sum(1).clamp_min(1)[:, None]


class GatedFieldNorm(nn.Module):
    """A gated, normalised transform of every field, with parameters of its own for each field.

    `y_f = LayerNorm_f(x_f) * sigmoid(G_f x_f + b_f)`. The norm puts fields of any scale on a par; the gate sees the raw
    vector, so what the norm takes away, its size, still decides how much of the field passes.

    DeGRe's figure calls such a block "GLN" and does not spell it out; the formula is ours.

    Args:
        num_fields: F.
        field_size: E.

    References:
        DeGRe (arXiv 2605.25749), method figure; gated linear units after Dauphin et al. (2017).
    """

    def __init__(self, num_fields: int, field_size: int) -> None:
        super().__init__()
        self.field_size = field_size
        self.weight = nn.Parameter(torch.empty(num_fields, field_size))
        self.bias = nn.Parameter(torch.empty(num_fields, field_size))
        self.gate_weight = nn.Parameter(torch.empty(num_fields, field_size, field_size))
        self.gate_bias = nn.Parameter(torch.empty(num_fields, field_size))

    def forward(self, fields: Tensor) -> Tensor:
        """Transforms fields (..., F, E) to (..., F, E)."""
        normed = torch.addcmul(self.bias, F.layer_norm(fields, (self.field_size,)), self.weight)
        rows = fields.reshape(-1, *fields.shape[-2:]).transpose(0, 1)  # (F, rows, E)
        gate = torch.baddbmm(self.gate_bias.unsqueeze(1), rows, self.gate_weight).transpose(0, 1)
        return normed * gate.view(fields.shape).sigmoid()


class InterFieldAttention(nn.Module):
    """Every field of an item attends to all fields of the item and of the request, with a residual; one head.

    All items of a batch are one call of (B * N) x F queries. The fields of the request are keys and values only.

    Args:
        field_size: E; keep it small, for the cost grows with F x E^2 per candidate and can exceed the encoder's.
        dropout: Probability of dropping an attention weight while training.
    """

    def __init__(self, field_size: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.scale = field_size**-0.5
        self.dropout = dropout
        self.query = nn.Linear(field_size, field_size)
        self.key_value = nn.Linear(field_size, 2 * field_size)
        self.output = nn.Linear(field_size, field_size)

    def forward(self, candidates: Tensor, request: Tensor) -> Tensor:
        """Lets the fields of each candidate attend.

        Spelled out: fused attention kernels are made for long sequences and handle items one by one; for a dozen fields
        two batched matrix products are faster.

        Args:
            candidates: (B, N, F, E).
            request: (B, R, E); R may be 0.

        Returns:
            (B, N, F, E).
        """
        read = torch.cat([request.unsqueeze(1).expand(-1, candidates.shape[1], -1, -1), candidates], dim=2)
        read = read.flatten(0, 1)
        plain = all(is_plain(module, nn.Linear) for module in (self.query, self.key_value, self.output))
        if plain:
            # With one head, what maps the keys can map the queries, and what maps the values their mixture. The bias of
            # the keys adds as much to all logits of a query.
            to_key, to_value = self.key_value.weight.chunk(2)
            query = F.linear(
                candidates, to_key.T @ self.query.weight * self.scale, self.query.bias @ to_key * self.scale
            )
            key = value = read
        else:  # quantised or adapted
            query, (key, value) = self.query(candidates) * self.scale, self.key_value(read).chunk(2, dim=-1)
        # Keys lie above one another: a softmax over them vectorises across the queries, in compiled graphs, too.
        weights = softmax_of_few(torch.bmm(key, query.flatten(0, 1).transpose(1, 2)).transpose(1, 2))
        if self.training:
            weights = F.dropout(weights, self.dropout)
        mixed = torch.bmm(weights, value)
        if not plain:
            return candidates + self.output(mixed).view(candidates.shape)
        bias = torch.addmv(self.output.bias, self.output.weight, self.key_value.bias.chunk(2)[1])
        return candidates + F.linear(mixed, self.output.weight @ to_value, bias).view(candidates.shape)
