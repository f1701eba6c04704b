"""Loading what a command is given, onto the device it is to run on."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModel

import rerankzoo  # noqa: F401  (tells transformers' auto classes about our models)
from rerankzoo.errors import RecipeError
from rerankzoo.features.extractor import RerankingFeatureExtractor
from rerankzoo.hub_errors import one_line_errors
from rerankzoo.models.auto import AutoModelForReranking, evaluator_subfolder


def choose_device(name: str = "auto") -> torch.device:
    """The device of a name; `"auto"`: the accelerator where there is one.

    Raises:
        RecipeError: If there is no such device here.
    """
    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n", 1)[0]
        raise RecipeError(f"expected a device such as cpu, cuda or cuda:1, got {name!r}: {reason}") from error
    return device


def load_generator(path: str, device: str = "auto") -> tuple[Any, RerankingFeatureExtractor]:
    """A model that generates slates, with its extractor.

    Raises:
        HubError: If there is none.
    """
    with one_line_errors(path):
        model = AutoModelForReranking.from_pretrained(path).to(choose_device(device))
        return model, RerankingFeatureExtractor.from_pretrained(path)


def load(path: str, device: str = "auto") -> tuple[Any, RerankingFeatureExtractor]:
    """A model of any kind, with its extractor.

    Raises:
        HubError: If there is none.
    """
    with one_line_errors(path):
        model = AutoModel.from_pretrained(path).to(choose_device(device))
        return model, RerankingFeatureExtractor.from_pretrained(path)


def load_evaluator(path: str, device: str = "auto") -> tuple[Any, RerankingFeatureExtractor]:
    """An evaluator, or the one beside a generator, with its extractor.

    Raises:
        HubError: If there is none.
    """
    place = evaluator_subfolder(path)
    with one_line_errors(path, subfolder=place):
        model = AutoModel.from_pretrained(path, subfolder=place).to(choose_device(device))
        return model, RerankingFeatureExtractor.from_pretrained(path, subfolder=place)
