"""Serving: exporting a model with its decoding as one graph."""

from __future__ import annotations

from rerankzoo.serving.export import FeatureOptions, export_model
from rerankzoo.serving.random_inputs import random_batch, random_requests

__all__ = ["FeatureOptions", "export_model", "random_batch", "random_requests"]
