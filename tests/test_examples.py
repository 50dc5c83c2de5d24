"""Runs the example of every public docstring, each by itself in an empty folder."""

import importlib
import inspect
import pkgutil
import re
import textwrap

import pytest

import keras_bridle

BLOCK = re.compile(r"^[ \t]*```python\n(.*?)^[ \t]*```", re.MULTILINE | re.DOTALL)


def modules():
    found = [keras_bridle]
    for info in pkgutil.walk_packages(keras_bridle.__path__, "keras_bridle."):
        found.append(importlib.import_module(info.name))
    return found


def documented(owner, module):
    """Public classes and functions of a module, and their methods, with their names."""
    for name, value in vars(owner).items():
        if name.startswith("_"):
            continue
        value = inspect.unwrap(getattr(value, "__func__", value))
        is_class = inspect.isclass(value)
        if not is_class and not inspect.isfunction(value):
            continue
        if value.__module__ != module.__name__:
            continue
        yield f"{module.__name__}.{value.__qualname__}", value
        if is_class and owner is module:
            yield from documented(value, module)


def examples():
    found = []
    for module in modules():
        for name, value in [(module.__name__, module), *documented(module, module)]:
            blocks = BLOCK.findall(inspect.cleandoc(value.__doc__ or ""))
            for index, block in enumerate(blocks):
                case = f"{name.removeprefix('keras_bridle.')}-{index}"
                found.append(pytest.param(textwrap.dedent(block), id=case))
    return found


def public_objects():
    return {name: getattr(keras_bridle, name) for name in keras_bridle.__all__}


@pytest.mark.parametrize("code", examples())
def test_example(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "example", "exec"), {"__name__": "example"})


def test_there_are_examples():
    assert len(examples()) > 30


@pytest.mark.parametrize("name", public_objects())
def test_public_object_has_an_example(name):
    value = public_objects()[name]
    is_record = inspect.isclass(value) and issubclass(value, tuple)
    if not callable(value) or is_record:
        pytest.skip("no class or function, or a mere record")
    assert BLOCK.search(inspect.cleandoc(value.__doc__ or "")), name
