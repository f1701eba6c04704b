"""`rerankzoo demo`: a page to play with a model."""

from __future__ import annotations

from transformers.utils.logging import disable_progress_bar

from rerankzoo.errors import RecipeError


def demo(
    model: str, *, data: str | None = None, evaluator: str | None = None, host: str = "127.0.0.1", port: int = 7860
) -> None:
    """Shows a page with a request's upstream and reranked slates side by side.

    With controls for decoding and constraints, and the evaluator's value of every prefix; what if an item stood
    elsewhere?

    Args:
        model: Folder or Hub id of a generator with its extractor.
        data: Data folder, whose test requests are shown; default: those beside the model, or random ones.
        evaluator: Folder or Hub id of an evaluator; default: the one in the model's folder.
        host: Address to listen at.
        port: To listen at.
    """
    try:
        from rerankzoo.serving.demo import Playground, make_page
    except ImportError as error:
        raise RecipeError(f"{error.name} is missing: pip install 'rerankzoo[demo]'") from error
    disable_progress_bar()
    page = make_page(Playground.load(model, data, evaluator))
    page.launch(server_name=host, server_port=port)
