"""Pages of the site that are made from files elsewhere in the repository."""

import importlib.util
import inspect
import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

import keras_bridle

ROOT = Path(__file__).parents[1]
# Of a file of the repository, the page that shows it.
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "recipes/README.md": "recipes.md",
    "benchmarks/README.md": "benchmarks.md",
}
_LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)(#[^)]*)?\)")
_COLAB = "https://colab.research.google.com/github"


def on_files(files, config):
    """Adds the pages that are made."""
    pages = {page: (ROOT / path).read_text("utf-8") for path, page in PAGES.items()}
    sources = {page: path for path, page in PAGES.items()}
    guides = _guides(config)
    pages |= {page: text for page, (text, _) in guides.items()}
    sources |= {page: path for page, (_, path) in guides.items()}
    pages["api.md"] = _api()
    config.extra["sources"] = sources
    for page, text in pages.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown, page, config, files):
    """Points links between files of the repository at pages, or at the repository."""
    here = page.file.src_uri
    source = config.extra["sources"].get(here, f"docs/{here}")
    shown = {path: page for page, path in config.extra["sources"].items()}

    def pointed(match):
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[1]))
        known = shown.get(target.replace(".ipynb", ".py"), shown.get(target))
        if known is None and target.startswith("docs/"):
            known = target.removeprefix("docs/")
        if known is None:
            return f"]({config.repo_url}/blob/main/{target}{match[2] or ''})"
        relative = posixpath.relpath(known, posixpath.dirname(here) or ".")
        return f"]({relative}{match[2] or ''})"

    return _LINK.sub(pointed, markdown)


def _guides(config):
    """The guides as text, a dict from page to it and the script it is made from."""
    path = ROOT / "guides" / "make_notebooks.py"
    spec = importlib.util.spec_from_file_location("make_notebooks", path)
    notebooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(notebooks)
    found, name = {}, config.repo_url.removeprefix("https://github.com/")
    for script in notebooks.SCRIPTS:
        source = (ROOT / "guides" / f"{script}.py").read_text("utf-8")
        colab = f"{_COLAB}/{name}/blob/main/guides/{script}.ipynb"
        cells = [
            text if kind == "markdown" else f"```python\n{text}\n```"
            for kind, text in notebooks.split(source)
        ]
        cells.insert(1, f"[Open in Colab]({colab})")
        found[f"guides/{script}.md"] = "\n\n".join(cells), f"guides/{script}.py"
    return found


def _api():
    """All public names, by the room that they are in."""
    rooms = {}
    for name in keras_bridle.__all__:
        thing = getattr(keras_bridle, name)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            room = thing.__module__.split(".")[1]
            rooms.setdefault(room.replace("_", " ").capitalize(), []).append(name)
    lines = ["# API", "", "All of these are names of `keras_bridle`.", ""]
    for room in sorted(rooms):
        lines += [f"## {room}", ""]
        lines += [f"::: keras_bridle.{name}\n" for name in rooms[room]]
    return "\n".join(lines)
