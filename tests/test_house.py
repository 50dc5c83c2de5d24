"""The rules of the package that a machine can check."""

import ast
import re
import zlib
from pathlib import Path

import pytest

import keras_bridle

pytestmark = pytest.mark.one_backend

ROOT = Path(keras_bridle.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
# Uses of what Keras keeps to itself, by file, each explained where it stands.
PRIVATE_USES = {
    "training/checkpoint.py": {"keras.src.random.seed_generator"},
    "models/classifier.py": {"objects_to_skip"},
    "models/data_sets.py": {"_use_cached_eval_dataset"},
}
# Private names of Keras that were in use once.
NAMES = (
    "_loss_tracker|_maybe_symbolic_build|_distribute_strategy|_flatten_layers|"
    "_all_reduce_sum_gradients|_get_variable_index|_use_cached_eval_dataset|"
    "objects_to_skip|_trainable_variables|_non_trainable_variables"
)
LOWEST_FIRST = (
    ("config", "engine", "replicas", "version"),
    ("quantizer", "layers", "augmentation"),
    ("models",),
    ("data", "modalities", "distribution"),
    ("training",),
    ("evaluation",),
    ("cli",),
)


def code_lines(source):
    """Numbers of the lines that are neither blank, comment, docstring nor import."""
    left_out = set()
    for node in ast.walk(ast.parse(source)):
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if is_text or isinstance(node, (ast.Import, ast.ImportFrom)):
            left_out.update(range(node.lineno, node.end_lineno + 1))
    return [
        number
        for number, line in enumerate(source.splitlines(), start=1)
        if number not in left_out and line.strip() and not line.strip().startswith("#")
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_can_be_held_in_the_head(path):
    assert len(code_lines(path.read_text())) <= 350


def test_the_package_does_not_grow():
    sources = [path.read_text() for path in FILES]
    assert sum(len(code_lines(source)) for source in sources) <= 11_680
    assert sum(len(source.splitlines()) for source in sources) <= 19_790


def test_no_backend_is_imported_but_the_one_in_use():
    for path in FILES:
        for node in ast.parse(path.read_text()).body:
            names = [getattr(node, "module", None) or ""]
            names += [x.name for x in getattr(node, "names", ())]
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                roots = {name.partition(".")[0] for name in names}
                assert not roots & {"tensorflow", "torch", "jax"}, path


def test_the_wheel_is_small():
    files = [*ROOT.rglob("*"), *(ROOT.parent / "recipes").glob("*.py")]
    files = [x for x in files if x.is_file() and x.suffix != ".pyc"]
    assert sum(len(zlib.compress(path.read_bytes())) for path in files) < 10e6


def test_private_names_of_keras_are_listed():
    found = {}
    for path in FILES:
        source = path.read_text()
        uses = set(re.findall(r"keras(?:_hub)?\.src[\w.]*", source))
        uses |= set(re.findall(rf"\b(?:{NAMES})\b", source))
        uses |= set(re.findall(r"(?:keras|keras_hub|ops)(?:\.\w+)*\._[a-z]\w*", source))
        if uses:
            found[path.relative_to(ROOT).as_posix()] = uses
    assert found == PRIVATE_USES
    assert sum(map(len, found.values())) <= 3


def test_arrows_point_downwards():
    rank = {name: i for i, names in enumerate(LOWEST_FIRST) for name in names}
    for path in FILES:
        room = path.relative_to(ROOT).with_suffix("").parts[0]
        if room not in rank:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                package, _, other = node.module.partition(".")
                other = other.split(".")[0]
                if package == "keras_bridle" and other in rank:
                    assert rank[other] <= rank[room], f"{path}: {node.module}"
