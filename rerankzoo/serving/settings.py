"""How a model is served."""

from __future__ import annotations

from dataclasses import dataclass

from rerankzoo.backends import Backend


@dataclass(frozen=True)
class ServiceSettings:
    """How a model is served.

    Args:
        model: Folder or Hub id of a generator with its extractor; an exported graph's folder for other backends.
        evaluator: Folder or Hub id of an evaluator, or of a generator with one beside it.
        backend: What decodes.
        reference: Data folder of the training log, with whose scores those of requests are compared.
        max_batch: Requests answered together.
        max_candidates: Of a request.
        max_body: Bytes of a call.
        timeout: Seconds that a call may take, waiting included.
        reload_seconds: How often the model's folder is looked at for a new checkpoint; 0: never.
    """

    model: str
    evaluator: str | None = None
    backend: Backend = "eager"
    reference: str | None = None
    max_batch: int = 32
    max_candidates: int = 1_000
    max_body: int = 16_000_000
    timeout: float = 5.0
    reload_seconds: float = 2.0
