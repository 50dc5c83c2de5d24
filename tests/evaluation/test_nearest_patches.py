import numpy as np
import pytest

from keras_bridle.evaluation.features import nearest_patches


def test_against_a_plain_search():
    rng = np.random.default_rng(0)
    codes = rng.integers(-1, 6, (30, 8))
    distances = rng.random((30, 8))
    found = nearest_patches(codes, distances, num_codes=6, num_patches=5)
    counts = np.bincount(codes[codes >= 0])
    assert list(found) == sorted(range(6), key=lambda code: (-counts[code], code))
    for code, places in found.items():
        best = {}
        for example, patch in zip(*np.nonzero(codes == code), strict=True):
            pair = (distances[example, patch], example, patch)
            best[example] = min(pair, best.get(example, pair))
        expected = [list(pair[1:]) for pair in sorted(best.values())[:5]]
        assert places.tolist() == expected


def test_codes_are_spread_over_their_frequencies():
    codes = np.repeat(np.arange(9), np.arange(9, 0, -1))[None]
    found = nearest_patches(codes, np.zeros(codes.shape), num_codes=3)
    assert list(found) == [0, 4, 8]
    # One of each example, and no more than there are.
    assert all(places.shape == (1, 2) for places in found.values())
    assert found[8].tolist() == [[0, 44]]


@pytest.mark.parametrize(
    ("codes", "distances", "message"),
    [
        (np.zeros((2, 3), int), np.zeros((2, 4)), r"\(2, 3\) and \(2, 4\)"),
        (np.zeros(3, int), np.zeros(3), "shape"),
        (np.full((2, 3), -1), np.zeros((2, 3)), "at least one"),
    ],
)
def test_refusals(codes, distances, message):
    with pytest.raises(ValueError, match=message):
        nearest_patches(codes, distances)
