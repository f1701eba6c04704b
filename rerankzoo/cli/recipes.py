"""`rerankzoo recipes list|copy`: the recipes that ship with the package."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

from rerankzoo.atomic_writing import write_atomically
from rerankzoo.errors import did_you_mean, shown
from rerankzoo.shipped import shipped_folder


def recipes_folder() -> Path:
    """Where the recipes are."""
    return shipped_folder("recipes")


def list_recipes() -> list[str]:
    """Names of all recipes relative to the recipes folder, such as `nar4rec/simulator.yaml`."""
    folder = recipes_folder()
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.yaml"))


def describe(recipe: str) -> str:
    """The first comment line of a recipe."""
    first = (recipes_folder() / recipe).read_text(encoding="utf-8").split("\n", 1)[0]
    return first.removeprefix("#").strip()


def find_recipe(name: str) -> Path:
    """A recipe's file: a path as given, or one of the shipped recipes by its name.

    Raises:
        FileNotFoundError: If there is neither.
    """
    for path in (Path(name), recipes_folder() / name, recipes_folder() / name.removeprefix("recipes/")):
        try:
            if path.is_file():
                return path
        except (OSError, ValueError):  # a name that no file can have: too long, with a NUL, of half a character
            continue
    near = did_you_mean(name.removeprefix("recipes/"), list_recipes())
    raise FileNotFoundError(f"no file {shown(name)}, here or among the shipped recipes{near}")


def copy_recipe(recipe: str, target: Path = Path(".")) -> None:
    """Copy a recipe or a folder of recipes, to change them.

    Args:
        recipe: A name from the list, such as nar4rec/simulator.yaml, or a folder's, such as nar4rec.
        target: A file or folder; default: here.

    Raises:
        FileNotFoundError: If there is no such recipe.
        FileExistsError: If a file exists.
    """
    known = list_recipes()
    members = [name for name in known if name.startswith(f"{recipe.rstrip('/')}/")]
    if recipe in known:
        copies = {recipe: target / Path(recipe).name if target.is_dir() else target}
    elif members:
        copies = {name: target / name for name in members}
    else:
        near = did_you_mean(recipe, [*known, *{name.split("/")[0] for name in known}])
        raise FileNotFoundError(f"no recipe {shown(recipe)}{near}; `rerankzoo recipes list` shows all")
    if there := [path for path in copies.values() if path.exists()]:
        raise FileExistsError(f"{there[0]} exists; choose another name")
    for name, path in copies.items():
        if members:
            path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, partial(shutil.copyfile, recipes_folder() / name))
        print(path)


def print_recipes() -> None:
    """List all recipes."""
    names = list_recipes()
    width = max(map(len, names))
    for name in names:
        print(f"{name:<{width}}  {describe(name)}")


ACTIONS = {"list": print_recipes, "copy": copy_recipe}
