"""Groups of slates to learn from: drawn from a generator, proposed by others, changed a little; and their gains.

B requests, N candidates, M positions, S slates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rerankzoo.batch import PADDING, Batch
from rerankzoo.features.schema import FeatureSchema
from rerankzoo.slates import put, uniform_slates

#: Sources of slates that are no checkpoints: a generator's own draws, slates in the upstream order, uniform draws, and
#: changed copies of what the sources before it gave.
OWN, UPSTREAM, UNIFORM, PERTURBED = "own", "upstream", "uniform", "perturbed"


def parse_proposals(text: str, known: bool = False) -> dict[str, int]:
    """Reads where slates come from, such as `"own=12,perturbed=4,upstream=1,outputs/pointwise/best=2"`.

    Args:
        text: Sources with numbers.
        known: Whether there are slates already, of which changed copies can be made.

    Raises:
        ValueError: If it is no list of sources with how many slates each gives.
    """
    sources = {}
    for part in filter(None, text.split(",")):
        name, _, number = part.strip().rpartition("=")
        if not name or not number.isdecimal() or int(number) < 1 or name in sources:
            raise ValueError(f"proposals: expected SOURCE=NUMBER,SOURCE=NUMBER..., got {text!r}")
        sources[name] = int(number)
    if sources.get(UPSTREAM, 1) != 1 or (not known and next(iter(sources), None) == PERTURBED):
        raise ValueError(f"proposals: one upstream order, and no changed slates of none, got {text!r}")
    return sources


def draw_slates(model: Any, batch: Batch, num_slates: int, temperature: float = 1.0) -> Tensor:
    """Draws slates from a generator's own distribution, without dropout and whatever its decoding parameters are.

    Args:
        model: The generator; its mode is restored.
        batch: What is known of the requests (see `rerankzoo.batch.inputs`).
        num_slates: S, drawn independently for each request.
        temperature: Above 0; below 1 sharpens the distribution.

    Returns:
        (B, S, M), -100 pads. Drawn with torch's global random state.
    """
    training = model.training
    config = model.generation_config_class(
        do_sample=True, num_return_sequences=num_slates, temperature=float(temperature)
    )
    model.eval()
    try:
        slates: Tensor = model.generate(generation_config=config, **batch)
    finally:
        model.train(training)
        torch.clear_autocast_cache()  # it holds the weights without their gradients
    return slates if num_slates > 1 else slates.unsqueeze(1)


def propose(
    sources: Mapping[str, int],
    batch: Batch,
    slate_size: int,
    generators: Mapping[str, Any],
    schema: FeatureSchema | None,
    slates: Tensor | None = None,
) -> Tensor:
    """Slates from several sources side by side.

    Args:
        sources: How many of each (see `parse_proposals`).
        batch: What is known of the requests.
        slate_size: M.
        generators: By source. One slate of another generator is its greedy one; of several the rest is drawn.
        schema: Names the upstream score.
        slates: (B, S', M), what is there already; they come first.

    Returns:
        (B, S' + S, M). Slates may be equal (see `distinct`).
    """
    parts = [] if slates is None else [slates]
    for name, number in sources.items():
        if name == PERTURBED:
            known = torch.cat(parts, dim=1)
            copied = torch.arange(number, device=known.device) % known.shape[1]
            parts.append(perturbed_slates(known[:, copied], batch["candidate_mask"]))
        elif name == UNIFORM:
            size = min(slate_size, batch["candidate_mask"].shape[1])
            drawn = uniform_slates(batch["candidate_mask"], size, number)
            parts.append(F.pad(drawn, (0, slate_size - size), value=PADDING))
        elif name == UPSTREAM:
            parts.append(upstream_slates(batch, slate_size, schema))
        elif name == OWN:
            parts.append(draw_slates(generators[name], batch, number))
        else:
            parts.append(generators[name].generate(**batch, num_beams=1, slate_size=slate_size).unsqueeze(1))
            if number > 1:
                parts.append(draw_slates(generators[name], batch, number - 1))
    return torch.cat(parts, dim=1)


def upstream_slates(batch: Batch, slate_size: int, schema: FeatureSchema | None) -> Tensor:
    """The first M candidates (B, 1, M) in the upstream order; -100 pads.

    Raises:
        ValueError: If the schema names no upstream score.
    """
    if schema is None or schema.upstream_score is None:
        raise ValueError(f"proposals: schema {schema and schema.name!r} has no upstream_score")
    mask = batch["candidate_mask"]
    scores = batch["candidate_numeric"][..., schema.position(schema.upstream_score)].float()
    order = scores.masked_fill(~mask, float("-inf")).argsort(dim=-1, descending=True, stable=True)[:, :slate_size]
    order = order.masked_fill(~mask.gather(1, order), PADDING)
    return F.pad(order, (0, slate_size - order.shape[1]), value=PADDING).unsqueeze(1)


def perturbed_slates(slates: Tensor, candidate_mask: Tensor) -> Tensor:
    """Puts another candidate at a position of each slate; if it stands in the slate already, both change places.

    Position and candidate are drawn uniformly, with torch's global random state.

    Args:
        slates: (B, S, M), -100 pads.
        candidate_mask: (B, N), True where a candidate is real.

    Returns:
        (B, S, M); as it was where there is no other candidate.
    """
    draws = torch.rand(slates.shape, device=slates.device).masked_fill(slates < 0, -1.0)
    position = draws.argmax(-1, keepdim=True)  # (B, S, 1)
    old = slates.gather(-1, position)
    number = torch.arange(candidate_mask.shape[1], device=slates.device)
    others = candidate_mask.unsqueeze(1) & (number != old)  # (B, S, N)
    new = torch.rand(others.shape, device=slates.device).masked_fill(~others, -1.0).argmax(-1, keepdim=True)
    return torch.where(others.any(-1, keepdim=True) & (old >= 0), put(slates, position, new), slates)


def distinct(slates: Tensor) -> Tensor:
    """(B, S), True for the slates (B, S, M) that hold anything and do not stand further up in the group."""
    equal = (slates.unsqueeze(2) == slates.unsqueeze(1)).all(-1)  # (B, S, S)
    return ~equal.tril(-1).any(-1) & (slates >= 0).any(-1)


def prefix_gains(value: Callable[[Tensor], Tensor], slates: Tensor) -> Tensor:
    """What each position adds to the value of the slate down to it: `V(l_1..l_t) - V(l_1..l_t-1)`.

    Args:
        value: Values (B, S') of slates (B, S', M), by whatever evaluator.
        slates: (B, S, M), -100 pads.

    Returns:
        (B, S, M); they sum to the slate's value, and are 0 at padding.
    """
    length = slates.shape[-1]
    kept = torch.arange(length, device=slates.device)
    prefixes = slates.unsqueeze(2).masked_fill(kept > kept.unsqueeze(-1), PADDING)  # (B, S, M, M)
    values = value(prefixes.flatten(1, 2)).unflatten(1, slates.shape[1:])
    return torch.cat([values[..., :1], values.diff(dim=-1)], dim=-1).masked_fill(slates < 0, 0.0)


def marginal_gains(value: Callable[[Tensor], Tensor], slates: Tensor) -> Tensor:
    """What each item is worth in its slate, to itself and to the others: `V(l) - V(l without l_t)`.

    Args and shapes are those of `prefix_gains`.

    References:
        GRN (arXiv 2104.00860), self reward plus differential reward.
    """
    length = slates.shape[-1]
    padded = F.pad(slates, (0, 1), value=PADDING)
    place = torch.arange(length, device=slates.device)
    without = padded[..., place + (place >= place.unsqueeze(-1)).long()]  # (B, S, M, M), those below move up
    values = value(torch.cat([slates, without.flatten(1, 2)], dim=1))
    whole, rest = values.split([slates.shape[1], slates.shape[1] * length], dim=1)
    return (whole.unsqueeze(-1) - rest.unflatten(1, slates.shape[1:])).masked_fill(slates < 0, 0.0)
