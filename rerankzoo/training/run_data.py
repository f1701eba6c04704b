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
        The data module or, where a trainer is given loaders only, the training loader; `None` where neither has an
        extractor.
    """
    data = trainer.datamodule if hasattr(trainer.datamodule, "extractor") else None
    if trainer.state.fn == "fit":
        trainer.fit_loop.setup_data()
        for loader in tree_leaves(trainer.train_dataloader):
            # The trainer may still have the data module of an earlier call.
            if isinstance(loader, RequestLoader) and (data is None or data.extractor is not loader.extractor):
                return loader
    return data
