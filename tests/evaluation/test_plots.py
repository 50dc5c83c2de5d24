import struct

import matplotlib
import numpy as np
import pytest
from matplotlib.image import imread

from keras_bridle.evaluation.plots import (
    plot_code_usage,
    plot_history,
    plot_masked_codes,
)


def _pixels(path):
    """Returns the picture as RGB after checking that it is a PNG of the stated size."""
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    image = imread(path)[..., :3]
    assert struct.unpack(">II", content[16:24]) == (image.shape[1], image.shape[0])
    return image


def _history(epochs, factor=1.0):
    epochs = np.arange(epochs)
    return {
        "loss": list(factor * np.exp(-epochs / 5)),
        "code_accuracy_1": list(1 - 0.9 ** (1 + epochs)),
        "code_accuracy_2": list(1 - 0.95 ** (1 + epochs)),
    }


def _write_csv(path, columns):
    rows = zip(*columns.values(), strict=True)
    lines = [",".join(columns)] + [",".join(map(str, row)) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_history_grows_with_phases_and_rows(tmp_path):
    one = _pixels(plot_history({"a": {"loss": [2, 1]}}, tmp_path / "x" / "1.png"))
    two = _pixels(plot_history({"a": _history(9)}, tmp_path / "2.png"))
    three = {
        "a": _history(9),
        "b": {"loss": [1, 0.5], "cosine": [0, 1]},
        "c": _history(4),
    }
    wide = _pixels(plot_history(three, tmp_path / "3.png", dpi=60))
    assert one.shape == (360, 540, 3)
    assert two.shape == (672, 540, 3)
    assert wide.shape == (336, 612, 3)


def test_history_draws_what_it_is_given(tmp_path):
    first = _pixels(plot_history({"a": _history(9)}, tmp_path / "1.png"))
    again = _pixels(plot_history({"a": _history(9)}, tmp_path / "2.png"))
    np.testing.assert_array_equal(first, again)
    changed = _history(9)
    changed["loss"][4] += 0.3
    loss = _pixels(plot_history({"a": changed}, tmp_path / "3.png"))
    rows = np.flatnonzero((loss != first).any(axis=(1, 2)))
    assert rows.size
    assert rows.max() < 340  # the upper panel only
    changed = _history(9)
    changed["code_accuracy_2"][4] += 0.1
    accuracy = _pixels(plot_history({"a": changed}, tmp_path / "4.png"))
    rows = np.flatnonzero((accuracy != first).any(axis=(1, 2)))
    assert rows.size
    assert rows.min() > 330


def test_history_from_csv(tmp_path):
    first, second = _history(5), _history(7, factor=2.0)
    expected = _pixels(plot_history({"a": first, "b": second}, tmp_path / "1.png"))
    paths = {
        "a": _write_csv(tmp_path / "a.csv", first),
        "b": str(_write_csv(tmp_path / "b.csv", second)),
    }
    np.testing.assert_array_equal(
        _pixels(plot_history(paths, tmp_path / "2.png")), expected
    )
    together = {"phase": ["a"] * 5 + ["b"] * 7}
    together |= {key: first[key] + second[key] for key in first}
    path = _write_csv(tmp_path / "all.csv", together)
    np.testing.assert_array_equal(
        _pixels(plot_history(path, tmp_path / "3.png")), expected
    )


def test_history_with_gaps(tmp_path):
    path = tmp_path / "gaps.csv"
    path.write_text("epoch,loss,val_loss,usage_1\n0,3,,0.9\n1,2,2.5,\n2,1,,1.0\n")
    gaps = _pixels(plot_history(path, tmp_path / "1.png"))
    path.write_text("epoch,loss,val_loss,usage_1\n0,3,,0.9\n1,2,2.9,\n2,1,,1.0\n")
    assert (gaps != _pixels(plot_history(path, tmp_path / "2.png"))).any()


def test_history_refusals(tmp_path):
    with pytest.raises(ValueError, match="at least one phase"):
        plot_history({}, tmp_path / "a.png")
    for columns in ({"accuracy": [1.0]}, {"loss": []}, {"loss": [float("nan")]}):
        with pytest.raises(ValueError, match="phase 'b' must have a finite"):
            plot_history({"b": columns}, tmp_path / "a.png")
    with pytest.raises(FileNotFoundError, match=r"none\.csv"):
        plot_history(tmp_path / "none.csv", tmp_path / "a.png")


def test_code_usage(tmp_path):
    counts = np.random.default_rng(0).integers(0, 50, (4, 64))
    first = _pixels(plot_code_usage(counts, tmp_path / "1.png"))
    assert first.shape == (360, 1488, 3)
    # Codes have no order: which one is frequent does not show.
    shuffled = np.random.default_rng(1).permuted(counts, axis=1)
    same = _pixels(plot_code_usage(shuffled, tmp_path / "2.png"))
    np.testing.assert_array_equal(first, same)
    counts[3, :32] = 0
    changed = _pixels(plot_code_usage(counts, tmp_path / "3.png"))
    columns = np.flatnonzero((changed != first).any(axis=(0, 2)))
    assert columns.size
    assert columns.min() > 0.7 * 1488  # the last panel only
    six = _pixels(plot_code_usage(np.ones((6, 8), int), tmp_path / "4.png", dpi=50))
    assert six.shape == (280, 620, 3)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (np.ones(8), "shape"),
        (np.array([[1, 2], [0, 0]]), "all codes of a level"),
        (np.array([[1, -2], [1, 1]]), "negative"),
    ],
)
def test_code_usage_refusals(tmp_path, counts, message):
    with pytest.raises(ValueError, match=message):
        plot_code_usage(counts, tmp_path / "a.png")


@pytest.fixture
def clip():
    rng = np.random.default_rng(0)
    return {
        "spectrogram": rng.normal(size=(48, 128)),
        "visible": np.array([0, 9, 23]),
        "codes": rng.integers(0, 256, (24, 4)),
        "grid": (3, 8),
        "patch_size": (16, 16),
    }


def _changed_area(before, after):
    rows, columns = np.nonzero((before != after).any(axis=-1))
    return rows.min(), rows.max(), columns.min(), columns.max()


def test_masked_codes_short_clip(tmp_path, clip):
    first = _pixels(plot_masked_codes(**clip, path=tmp_path / "1.png"))
    height, width, _ = first.shape
    assert (height, width) == (678, 759)

    # Patch 9 is the second in time, the second in mel: below, in the middle.
    codes = clip["codes"].copy()
    codes[9, 3] = (codes[9, 3] + 7) % 256
    after = _pixels(
        plot_masked_codes(**clip | {"codes": codes}, path=tmp_path / "2.png")
    )
    top, bottom, left, right = _changed_area(first, after)
    assert 0.8 * height < top < bottom < 0.92 * height
    assert bottom - top < 30
    assert 0.65 * width < left < right < 0.88 * width

    # Hiding the last patch changes the second picture and the codes' paleness.
    hidden = clip | {"visible": np.array([0, 9])}
    after = _pixels(plot_masked_codes(**hidden, path=tmp_path / "3.png"))
    assert (first[:226, width // 2 :] != after[:226, width // 2 :]).any()
    np.testing.assert_array_equal(first[:226, : width // 2], after[:226, : width // 2])
    assert (first[226:] != after[226:]).any()


def test_masked_codes_long_clip_is_one_column(tmp_path):
    rng = np.random.default_rng(0)
    path = plot_masked_codes(
        rng.normal(size=(1030, 128)),  # the last frames fill no patch
        rng.permutation(512)[:100],
        rng.integers(0, 1024, (512, 2)),
        (64, 8),
        (16, 16),
        tmp_path / "long.png",
        title="birds.flac",
        dpi=50,
    )
    height, width, _ = _pixels(path).shape
    assert (height, width) == (365, 455)


def test_masked_codes_everything_hidden(tmp_path, clip):
    for visible in (np.zeros(0, int), np.arange(24)):
        _pixels(
            plot_masked_codes(**clip | {"visible": visible}, path=tmp_path / "a.png")
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spectrogram": np.zeros((47, 128))}, r"at least \(48, 128\).*\(47, 128\)"),
        ({"codes": np.zeros((23, 4), int)}, r"\(24, levels\)"),
        ({"visible": np.array([24])}, "between 0 and 23; received 24"),
        ({"visible": np.array([True] * 24)}, "patch indices"),
    ],
)
def test_masked_codes_refusals(tmp_path, clip, change, message):
    with pytest.raises(ValueError, match=message):
        plot_masked_codes(**clip | change, path=tmp_path / "a.png")


def test_no_global_state_is_touched(tmp_path, clip):
    before = matplotlib.get_backend(), dict(matplotlib.rcParams)
    plot_masked_codes(**clip, path=tmp_path / "a.png")
    plot_history({"a": _history(3)}, tmp_path / "b.png")
    assert (matplotlib.get_backend(), dict(matplotlib.rcParams)) == before
    import matplotlib.pyplot as plt

    assert plt.get_fignums() == []
