"""What a run's data tell about the model to make: from a data module, or from loaders that were made by one."""

from __future__ import annotations

from typing import Any

import lightning as L
from torch.utils._pytree import tree_leaves

from rerankzoo.data.loader import RequestLoader


def data_of_run(trainer: L.Trainer) -> Any:
    """What has the extractor of a run's data.

    Args:
        trainer: As its callbacks' `setup` sees it.

    Returns:
        The data module or the training loader; `None` where neither has an extractor.
    """
    if hasattr(trainer.datamodule, "extractor"):
        return trainer.datamodule
    if trainer.state.fn != "fit":
        return None
    trainer.fit_loop.setup_data()
    loaders = [loader for loader in tree_leaves(trainer.train_dataloader) if isinstance(loader, RequestLoader)]
    return loaders[0] if loaders else None
