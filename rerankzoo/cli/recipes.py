"""`rerankzoo recipes list|copy`: the recipes that ship with the package."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

import rerankzoo
from rerankzoo.atomic_writing import write_atomically


def recipes_folder() -> Path:
    """Where the recipes are: inside an installed package, or beside the package in a checkout."""
    package = Path(rerankzoo.__file__).parent
    inside, beside = package / "recipes", package.parent / "recipes"
    return inside if inside.is_dir() else beside


def list_recipes() -> list[str]:
    """Names of all recipes relative to the recipes folder, such as `nar4rec/simulator.yaml`."""
    folder = recipes_folder()
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.yaml"))


def describe(recipe: str) -> str:
    """The first comment line of a recipe."""
    first = (recipes_folder() / recipe).read_text(encoding="utf-8").split("\n", 1)[0]
    return first.removeprefix("#").strip()


def copy_recipe(recipe: str, target: Path) -> Path:
    """Copies a recipe to a file or into a folder.

    Args:
        recipe: A name from `list_recipes`.
        target: A file to make, or a folder.

    Returns:
        The file made.

    Raises:
        FileNotFoundError: If there is no such recipe.
        FileExistsError: If the file exists.
    """
    if recipe not in list_recipes():
        raise FileNotFoundError(f"no recipe {recipe!r}; there are {list_recipes()}")
    path = target / Path(recipe).name if target.is_dir() else target
    if path.exists():
        raise FileExistsError(f"{path} exists; choose another name")
    write_atomically(path, lambda fresh: shutil.copyfile(recipes_folder() / recipe, fresh))
    return path


def main(arguments: Sequence[str]) -> None:
    """Runs the command.

    Args:
        arguments: `["recipes", "list"]` or `["recipes", "copy", NAME, TARGET]`.
    """
    parser = argparse.ArgumentParser(prog="rerankzoo recipes", description="The recipes that ship with rerankzoo.")
    commands = parser.add_subparsers(dest="action", required=True)
    commands.add_parser("list", help="list all recipes")
    copy = commands.add_parser("copy", help="copy a recipe, to change it")
    copy.add_argument("recipe", help="a name from the list, such as nar4rec/simulator.yaml")
    copy.add_argument("target", type=Path, nargs="?", default=Path("."), help="a file or folder (default: here)")
    options = parser.parse_args(list(arguments[1:]))
    if options.action == "copy":
        print(copy_recipe(options.recipe, options.target))
        return
    width = max(map(len, list_recipes()))
    for recipe in list_recipes():
        print(f"{recipe:<{width}}  {describe(recipe)}")
