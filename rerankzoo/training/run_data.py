"""What a run's data tell about the model to make: from a data module, or from loaders that were made by one."""

from __future__ import annotations

from typing import Any

import lightning as L
import numpy as np
from torch.utils._pytree import tree_leaves

from rerankzoo.data.loader import RequestLoader, logged_utilities
from rerankzoo.features.schema import SLATE_WEIGHTS


class LoaderData:
    """Takes the place of a data module where a training loader is all there is.

    Args:
        loader: Of the training split.
    """

    def __init__(self, loader: RequestLoader) -> None:
        self.loader = loader
        self.extractor = loader.extractor

    def slate_size(self) -> int:
        """The longest logged slate of the first rows."""
        return self.extractor(self.loader.dataset[: self.loader.batch_size])["slates"].shape[-1]

    def utility_quantile(self, quantile: float) -> float | None:
        """A quantile of the utility of the logged slates; `None` of mined ones."""
        if SLATE_WEIGHTS in self.loader.dataset.column_names:
            return None
        return float(np.quantile(logged_utilities(self.loader.dataset, self.extractor), quantile))


def data_of_run(trainer: L.Trainer) -> Any:
    """What has the extractor of a run's data.

    Args:
        trainer: As its callbacks' `setup` sees it.

    Returns:
        The data module, or a `LoaderData` of the training loader; `None` where neither has an extractor.
    """
    if hasattr(trainer.datamodule, "extractor"):
        return trainer.datamodule
    if trainer.state.fn != "fit":
        return None
    trainer.fit_loop.setup_data()
    loaders = [loader for loader in tree_leaves(trainer.train_dataloader) if isinstance(loader, RequestLoader)]
    return LoaderData(loaders[0]) if loaders else None
