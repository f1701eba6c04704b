"""`rerankzoo board`: the page of a board, and a row of one made again."""

from __future__ import annotations

import tempfile
from pathlib import Path

from rerankzoo.atomic_writing import write_text
from rerankzoo.cli.benchmark import Benchmark, fill_board
from rerankzoo.cli.recipes import find_recipe
from rerankzoo.errors import RecipeError
from rerankzoo.evaluation.board import BoardRow, board_page, difference, overview, read_board, summaries
from rerankzoo.evaluation.plots import draw_pareto, draw_worlds, save

_BEGIN, _END = "<!-- board -->", "<!-- /board -->"


def render(
    *,
    results: list[Path],
    page: Path,
    picture: Path | None = None,
    bars: Path | None = None,
    rows: list[str] | None = None,
) -> None:
    """Writes the tables of a board into a page, between two comments that it must have, and draws utility and cost.

    Args:
        results: Files of rows, such as those of the shards of a run.
        page: A Markdown file with the lines `<!-- board -->` and `<!-- /board -->`.
        picture: PNG file for the utility against the time that a request takes.
        bars: PNG file for the utility in every world.
        rows: Only these, as MODEL/DECODING, in one table of all worlds.
    """
    told = read_board(results)
    pointwise = _pointwise(told)
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not (begin and end):
        raise RecipeError(f"{page}: expected the lines {_BEGIN} and {_END}")
    tables = f"{overview(told, [_key(row) for row in rows])}\n" if rows else board_page(told, pointwise)
    write_text(page, f"{before}{begin}\n{tables}{end}{after}")
    print(f"{len(told)} rows; written: {page}")
    worlds = dict.fromkeys(row.world for row in told)
    lines = {world: summaries([row for row in told if row.world == world], pointwise) for world in worlds}
    if picture is not None:
        print(f"written: {save(draw_pareto(lines, 'serving_ms_1'), picture)}")
    if bars is not None:
        print(f"written: {save(draw_worlds(lines), bars, dpi=90)}")


def check(*, results: list[Path], world: str, seed: int, model: str, out: Path | None = None) -> None:
    """Trains and measures a model of a board again, and compares the utility of every request.

    Args:
        results: Files of rows.
        world: Of the rows.
        seed: Of the rows.
        model: Of the rows.
        out: Folder for the run, kept; default: a temporary one.
    """
    places = (world, seed, model)
    told = [row for row in read_board(results) if (row.world, row.seed, row.model) == places]
    if not told:
        raise RecipeError(f"no row of {model!r} in world {world!r}, seed {seed}")
    with tempfile.TemporaryDirectory(prefix="rerankzoo-") as folder:
        again = Path(folder, "again.jsonl")
        asked = Benchmark.from_yaml(find_recipe(told[0].benchmark)).only([model])
        fill_board(asked, told[0].benchmark, world, seed, out or Path(folder), again)
        found = {row.decoding: row for row in read_board([again]) if row.model == model}
    for row in told:
        largest = difference(row, found[row.decoding])
        mean = abs(row.metrics["utility"] - found[row.decoding].metrics["utility"])
        text = (
            "the same" if not largest else f"utility differs by {100 * mean:.2f}, of one request by {100 * largest:.2f}"
        )
        print(f"{model}, {row.decoding}, {world}, seed {seed}: {text} (in % of the optimum)")


def _key(text: str) -> tuple[str, str]:
    model, slash, decoding = text.partition("/")
    if not (model and slash and decoding):
        raise RecipeError(f"rows: expected MODEL/DECODING, got {text!r}")
    return model, decoding


def _pointwise(rows: list[BoardRow]) -> list[str]:
    """The models that only sort, as the rows' benchmark files say."""
    files = dict.fromkeys(row.benchmark for row in rows)
    return [name for file in files for name in Benchmark.from_yaml(find_recipe(file)).pointwise]


ACTIONS = {"render": render, "check": check}
