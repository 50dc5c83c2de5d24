"""Makes the notebooks in guides/ from the scripts beside them.

    python guides/make_notebooks.py          # writes guides/*.ipynb
    python guides/make_notebooks.py --check  # tells whether they are up to date

A script's docstring and its comments between empty lines become text, all else code.
"""

import argparse
import ast
import json
import sys
from pathlib import Path

GUIDES = Path(__file__).parent
SCRIPTS = ("residual_quantizer", "pretraining", "new_modality", "public_encoders")


def main():
    """Writes or checks the notebooks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing")
    args = parser.parse_args()
    stale = []
    for name in SCRIPTS:
        script, path = GUIDES / f"{name}.py", GUIDES / f"{name}.ipynb"
        notebook = as_notebook(script.read_text(encoding="utf-8"))
        if args.check:
            if not path.exists() or path.read_text(encoding="utf-8") != notebook:
                stale.append(path.name)
        else:
            path.write_text(notebook, encoding="utf-8")
    if stale:
        sys.exit(f"Not up to date, run make_notebooks.py: {', '.join(stale)}")


def as_notebook(source):
    """Turns a script into the text of a notebook."""
    cells = [_cell(index, *cell) for index, cell in enumerate(split(source))]
    notebook = {
        "cells": cells,
        "metadata": {
            "kernelspec": {
                "display_name": "Python 3",
                "language": "python",
                "name": "python3",
            },
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def split(source):
    """Splits a script into pairs of `"markdown"` or `"code"` and a text."""
    module = ast.parse(source)
    title, *rest = ast.get_docstring(module).split("\n", 1)
    cells = [("markdown", "\n".join([f"# {title.rstrip('.')}", *rest]))]
    body = source.splitlines()[module.body[0].end_lineno :]
    for block in _blocks(body):
        is_text = all(line.startswith("#") for line in block)
        if is_text:
            cells.append(("markdown", "\n".join(line[2:] for line in block)))
        elif cells[-1][0] == "code":
            cells[-1] = ("code", cells[-1][1] + "\n\n" + "\n".join(block))
        else:
            cells.append(("code", "\n".join(block)))
    return [(kind, text.strip("\n")) for kind, text in cells]


def _blocks(lines):
    """Parts of a script at its top level, with empty lines between them."""
    block = []
    for number, line in enumerate(lines):
        after = next((text for text in lines[number + 1 :] if text.strip()), "")
        if line.strip() or after.startswith((" ", ")", "]", "}")):
            block.append(line)
        elif block:
            yield block
            block = []
    if block:
        yield block


def _cell(index, kind, text):
    cell = {"cell_type": kind, "id": f"cell-{index}", "metadata": {}}
    if kind == "code":
        cell |= {"execution_count": None, "outputs": []}
    return cell | {"source": text.splitlines(keepends=True)}


if __name__ == "__main__":
    main()
