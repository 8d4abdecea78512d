"""What the site has beside docs/: README.md as its first page, the experiments' plots, API pages of the docstrings."""

import ast
import pathlib
import re
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = pathlib.Path(__file__).parents[2]
# Rooms whose public names stand in their __init__, and rooms that are used file by file.
_BY_NAME = ("losses", "detection")
_BY_FILE = ("models", "data", "evaluation", "training")


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages and pictures that are not in docs/."""
    files.append(File.generated(config, "index.md", content=(ROOT / "README.md").read_text().replace("](docs/", "](")))
    for plot in sorted(ROOT.glob("experiments/*/*.png")):
        files.append(File.generated(config, str(plot.relative_to(ROOT)), abs_src_path=str(plot)))
    for room in (*_BY_NAME, *_BY_FILE, "detector"):
        files.append(File.generated(config, f"api/{room}.md", content=_api_page(room)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Leads links out of docs/ to what the site has; of files that it lacks, the text is left."""
    markdown = markdown.replace("](../experiments/", "](experiments/")
    return re.sub(r"\[([^]]*)\]\(\.\./[^)]*\)", r"\1", markdown)


def _api_page(room: str) -> str:
    if room == "detector":
        return "# focaljax.Detector\n\n::: focaljax.detector.Detector\n"
    folder = ROOT / "focaljax" / room
    names = [f"focaljax.{room}.{name}" for name in _all(folder / "__init__.py")] if room in _BY_NAME else []
    if room in _BY_FILE:
        paths = sorted(path for path in folder.glob("*.py") if path.stem != "__init__")
        names = [f"focaljax.{room}.{path.stem}" for path in paths]
    return "\n\n".join([f"# focaljax.{room}", *(f"::: {name}" for name in names)]) + "\n"


def _all(path: pathlib.Path) -> list[str]:
    """Returns `__all__` of a file without importing it."""
    for statement in ast.parse(path.read_text()).body:
        if isinstance(statement, ast.Assign) and getattr(statement.targets[0], "id", "") == "__all__":
            return list(ast.literal_eval(statement.value))
    raise ValueError(f"{path} has no __all__")
