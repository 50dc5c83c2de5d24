"""Shows the section "Call arguments" of docstrings, which only Keras has, as a list."""

import re

import griffe

_SECTION = re.compile(r"^( *)Call arguments:\n((?:\1 +.*\n?|\n)+)", re.MULTILINE)


class CallArguments(griffe.Extension):
    """Makes Markdown of the section before the docstring is parsed."""

    def on_object(self, *, obj, **kwargs):
        """Called for each class and function."""
        if obj.docstring is not None:
            obj.docstring.value = _SECTION.sub(_as_list, obj.docstring.value)


def _as_list(match):
    """Its lines belong to an argument unless they begin one: `name: what it is`."""
    indent, lines = match[1] + 4 * " ", match[2].splitlines()
    items = [
        re.sub(rf"^{indent}(\S+?): ", rf"{match[1]}- **`\1`**: ", line)
        for line in lines
    ]
    return "\n".join([f"{match[1]}**Call arguments**", "", *items, ""])
