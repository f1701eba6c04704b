"""Training that follows the size of the log."""

from __future__ import annotations

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch.utils._pytree import tree_leaves

from rerankzoo.data.loader import RequestLoader

#: Ten passes over this many requests; over others, so many times more as they are fewer, to the power of a third.
_REQUESTS, _EPOCHS = 40_000, 10
_FEWEST, _MOST = 4, 40


def fitting_epochs(num_requests: int) -> int:
    """Passes over a log that suit its size: 10 over 40,000 requests, 20 over 5,000, between 4 and 40.

    Small logs need more passes for as many steps, and large ones fewer; the power between was chosen on simulated logs.
    It is a most: early stopping ends a training that has learned what it can.
    """
    return min(max(round(_EPOCHS * (_REQUESTS / max(num_requests, 1)) ** (1 / 3)), _FEWEST), _MOST)


class EpochsByLog(Callback):
    """Trains for as many epochs as suit the number of training requests (see `fitting_epochs`).

    The command line adds it to runs for which neither epochs, nor steps, nor a time were given.
    """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Sets the number of epochs, and says it.

        Raises:
            ValueError: If the training loader is none of ours, of which nobody knows the requests.
        """
        if stage != "fit" or trainer.fast_dev_run:
            return
        trainer.fit_loop.setup_data()
        loaders = [loader for loader in tree_leaves(trainer.train_dataloader) if isinstance(loader, RequestLoader)]
        if not loaders:
            raise ValueError("max_epochs is not given, and the training loader does not tell how many requests it has")
        requests, batch = len(loaders[0].dataset), loaders[0].batch_size * loaders[0].world_size
        trainer.fit_loop.max_epochs = fitting_epochs(requests)
        if trainer.is_global_zero:
            print(
                f"{requests:,} training requests: batches of {batch:,}, {trainer.max_epochs} epochs at most", flush=True
            )
