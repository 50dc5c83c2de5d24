"""Nothing that the package loads can run code: no pickles, in any disguise."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
FORBIDDEN = re.compile(
    r"\b(import|from) (pickle|dill|joblib|cloudpickle|shelve|marshal)\b"
    r"|allow_pickle\s*=\s*True|safe_mode\s*=\s*False|weights_only\s*=\s*False"
    r"|enable_unsafe_deserialization|torch\.load\((?!.*weights_only=True)"
)


def test_no_file_has_one():
    paths = [
        path
        for folder in ("keras_bridle", "recipes", "guides", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
    ]
    assert len(paths) > 50
    # It reads PyTorch's pickles, and lets nothing in that could run.
    paths.remove(ROOT / "keras_bridle" / "conversion" / "published_state.py")
    assert not [path for path in paths if FORBIDDEN.search(path.read_text())]


def test_what_is_found():
    for line in ("import pickle", "torch.load(path)", "np.load(x, allow_pickle=True)"):
        assert FORBIDDEN.search(line)
    assert not FORBIDDEN.search("torch.load(path, weights_only=True)")
