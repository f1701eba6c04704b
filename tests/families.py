"""The heads and configs of the package's own families; other tests register models of their own beside them."""

from __future__ import annotations

from typing import Any

from rerankzoo.models.registry import family_names, load_families

HEADS: list[Any] = [head for head in load_families().values() if head.__module__.split(".")[2] in family_names()]
CONFIGS: list[Any] = sorted({head.config_class for head in HEADS}, key=lambda config: config.model_type)
