"""What ships with the package beside its code: recipes, and checkpoints to try."""

from __future__ import annotations

from pathlib import Path

from rerankzoo.errors import did_you_mean, shown


def shipped_folder(name: str) -> Path:
    """Where a folder is that ships with the package: inside an installed one, or beside the package in a checkout."""
    package = Path(__file__).parent
    inside = package / name
    return inside if inside.is_dir() else package.parent / name


def example(name: str = "degre-simulator") -> Path:
    """The folder of a checkpoint that ships with the package, to be loaded, served or pushed like any other.

    It was trained on simulated logs, for trying things: model, feature extractor, evaluator, model card, and the file
    `requests.json` with a few raw requests.

    Args:
        name: Such as `"degre-simulator"` or `"goalrank-simulator"`; the error of another one lists all.

    Raises:
        FileNotFoundError: If there is no such checkpoint.

    Example:
        >>> from rerankzoo import RerankingPipeline, example
        >>> RerankingPipeline.from_pretrained(example("degre-simulator")).extractor.schema.name
        'simulator'
    """
    known = sorted(path.parent.name for path in shipped_folder("model_cards").glob("*/model.safetensors"))
    if name not in known:
        raise FileNotFoundError(f"no example {shown(name)}{did_you_mean(name, known)}; there are {', '.join(known)}")
    return shipped_folder("model_cards") / name
