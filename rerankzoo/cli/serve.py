"""`rerankzoo serve`: a model behind an HTTP port."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict
from typing import Any

from jsonargparse.typing import PositiveInt
from transformers.utils.logging import disable_progress_bar

from rerankzoo.cli.options import takes
from rerankzoo.errors import RecipeError
from rerankzoo.serving.settings import ServiceSettings


@takes(ServiceSettings)
def serve(model: str, *, host: str = "127.0.0.1", port: int = 8000, workers: PositiveInt = 1, **settings: Any) -> None:
    """Answers requests over HTTP: POST /rerank, GET /health, /metrics and /docs.

    Calls that arrive while a batch is computed are answered together in the next one. SIGTERM ends it once all calls
    are answered.

    Args:
        model: Folder or Hub id of a generator with its extractor; with --backend onnx or aoti, an exported graph's.
        host: Address to listen at; 0.0.0.0: all. There is no authentication: put what has it in front.
        port: To listen at; 0: any free one.
        workers: Processes, each with a model of its own.
        **settings: Of `ServiceSettings`.
    """
    try:
        import uvicorn

        from rerankzoo.serving.service import SETTINGS_VARIABLE, Service, create_app
    except ImportError as error:
        raise RecipeError(f"{error.name} is missing: pip install 'rerankzoo[serve]'") from error
    disable_progress_bar()
    chosen = ServiceSettings(model, **settings)
    service = Service(chosen)  # whatever is wrong with the model is told before anything is served
    listen: dict[str, Any] = {"host": host, "port": port, "log_level": "warning", "access_log": False}
    print(f"serving {model} at http://{host}:{port}, described at /docs", flush=True)
    if workers == 1:
        uvicorn.run(create_app(service), **listen)
        return
    with tempfile.TemporaryDirectory(prefix="rerankzoo-") as folder:
        os.environ |= {SETTINGS_VARIABLE: json.dumps(asdict(chosen)), "PROMETHEUS_MULTIPROC_DIR": folder}
        uvicorn.run("rerankzoo.serving.service:app_of_environment", factory=True, workers=workers, **listen)
