"""The mean of a loss over the requests of all processes, on which they have to agree."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def real_requests(batch: Mapping[str, Tensor]) -> Tensor:
    """(B,), True where a request is one of the data's and not blank, only there to keep a process busy."""
    index = batch.get("request_index")
    return torch.ones_like(batch["candidate_mask"][:, 0]) if index is None else index >= 0


def mean_over_processes(means: Tensor, batch: Mapping[str, Tensor], world_size: int) -> tuple[Tensor, Tensor]:
    """Means over the requests of all processes.

    One call for all values, for each is a round trip through the network. Every process has to make it.

    Args:
        means: (K,), means over the rows of this process's batch, in which blank requests are 0.
        batch: That batch.
        world_size: Number of processes.

    Returns:
        The means (K,) over all requests, the same in every process; and the factor that makes this process's mean its
        part of them: the mean of means x factor over the processes, which is what distributed training makes of
        gradients, is the mean over all requests.
    """
    real = real_requests(batch)
    rows = len(real)
    sums = torch.cat([means * rows, real.sum().to(means).view(1)])
    torch.distributed.all_reduce(sums)
    return sums[:-1] / sums[-1], rows * world_size / sums[-1]
