import numpy as np
import pytest
from matplotlib.image import imread

from keras_bridle.evaluation.plots import (
    as_colors,
    cut_patches,
    fill_up,
    plot_code_patches,
    plot_picture_codes,
)


def pixels(path):
    return imread(path)[..., :3]


def changed_area(before, after):
    rows, columns = np.nonzero((before != after).any(axis=-1))
    return rows.min(), rows.max(), columns.min(), columns.max()


@pytest.fixture
def picture():
    rng = np.random.default_rng(0)
    return {
        "picture": rng.integers(0, 256, (32, 32, 3), "uint8"),
        "visible": np.array([0, 5, 15]),
        "codes": rng.integers(0, 64, (16, 2)),
        "grid": (4, 4),
        "patch_size": (8, 8),
    }


@pytest.fixture
def clip(picture):
    rng = np.random.default_rng(1)
    return picture | {
        "picture": rng.integers(0, 256, (4, 32, 32, 1), "uint8"),
        "codes": rng.integers(0, 64, (32, 2)),
        "grid": (2, 4, 4),
        "patch_size": (2, 8, 8),
    }


def test_picture_and_code_map(tmp_path, picture):
    first = pixels(plot_picture_codes(**picture, path=tmp_path / "x" / "1.png"))
    height, width, _ = first.shape
    # Panels: the picture, what is visible of it, two levels.
    codes = picture["codes"].copy()
    codes[7, 1] = (codes[7, 1] + 7) % 64
    after = pixels(
        plot_picture_codes(**picture | {"codes": codes}, path=tmp_path / "2.png")
    )
    top, bottom, left, right = changed_area(first, after)
    # Patch 7 is at the right end of the second row.
    assert 0.93 * width < left < right
    assert bottom - top < 0.3 * height
    assert top > 0.25 * height

    hidden = picture | {"visible": np.array([0, 5])}
    after = pixels(plot_picture_codes(**hidden, path=tmp_path / "3.png"))
    _, _, left, _ = changed_area(first, after)
    assert left > width / 4


def test_clip_shows_a_frame_of_each_row_of_tubelets(tmp_path, clip):
    first = pixels(plot_picture_codes(**clip, path=tmp_path / "1.png"))
    height, width, _ = first.shape
    frames = clip["picture"].copy()
    frames[3] = 0
    same = pixels(
        plot_picture_codes(**clip | {"picture": frames}, path=tmp_path / "2.png")
    )
    np.testing.assert_array_equal(first, same)
    frames[2] = 0
    after = pixels(
        plot_picture_codes(**clip | {"picture": frames}, path=tmp_path / "3.png")
    )
    _, bottom, left, _ = changed_area(first, after)
    assert left > width / 2
    assert bottom < 0.55 * height


def test_padding_stays_white_and_small_pictures_are_filled_up(tmp_path, picture):
    codes = np.full((16, 1), -1)
    small = picture | {"picture": picture["picture"][:30, :27], "codes": codes}
    image = pixels(plot_picture_codes(**small, path=tmp_path / "1.png", title="a boot"))
    width = image.shape[1]
    right = image[image.shape[0] // 2 :, int(0.75 * width) : int(0.95 * width)]
    assert (right == 1).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"picture": np.zeros((24, 32, 3))}, r"at least \(25, 25\).*\(24, 32, 3\)"),
        ({"picture": np.zeros((32, 32, 2))}, "1 or 3 channels"),
        ({"codes": np.zeros((15, 2), int)}, r"\(16, levels\)"),
        ({"visible": np.array([16])}, "between 0 and 15"),
    ],
)
def test_refusals(tmp_path, picture, change, message):
    with pytest.raises(ValueError, match=message):
        plot_picture_codes(**picture | change, path=tmp_path / "a.png")


def test_contact_sheet(tmp_path):
    rng = np.random.default_rng(0)
    patches = {f"code {n}": rng.integers(0, 256, (5, 8, 8, 3), "uint8") for n in (3, 9)}
    first = pixels(plot_code_patches(patches, tmp_path / "1.png", title="nearest"))
    height, width, _ = first.shape
    changed = {name: x.copy() for name, x in patches.items()}
    changed["code 9"][4] = 0
    after = pixels(plot_code_patches(changed, tmp_path / "2.png", title="nearest"))
    top, _, left, _ = changed_area(first, after)
    assert top > 0.5 * height
    assert left > 0.8 * width
    fewer = patches | {"code 9": patches["code 9"][:2]}
    assert pixels(plot_code_patches(fewer, tmp_path / "3.png")).shape[1] == width
    for wrong in ({}, {1: np.zeros((0, 8, 8, 3))}):
        with pytest.raises(ValueError, match="at least one patch"):
            plot_code_patches(wrong, tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"\(n, height, width, 1 or 3\)"):
        plot_code_patches({1: np.zeros((4, 8, 8))}, tmp_path / "a.png")


def test_patches_are_cut_in_their_order():
    picture = np.arange(5 * 6).reshape(5, 6, 1)
    patches = cut_patches(picture, (2, 2), (3, 3))
    assert patches.shape == (4, 3, 3, 1)
    np.testing.assert_array_equal(patches[1], picture[:3, 3:])
    np.testing.assert_array_equal(patches[2, :2], picture[3:, :3])
    assert (patches[2:, 2] == 0).all()
    clip = np.arange(4 * 4 * 4).reshape(4, 4, 4, 1)
    patches = cut_patches(clip, (2, 2, 2), (2, 2, 2))
    np.testing.assert_array_equal(patches[7], clip[2, 2:, 2:])


def test_colors_and_filling():
    np.testing.assert_allclose(as_colors(np.full((2, 2, 1), 51, "uint8")), 0.2)
    floats = as_colors(np.linspace(-3, 5, 1000).reshape(10, 100, 1))
    assert floats.shape == (10, 100, 3)
    assert (floats.min(), floats.max()) == (0, 1)
    assert as_colors(np.zeros((2, 2, 3))).max() == 0
    assert fill_up(np.ones((5, 9, 1)), (2, 2), (3, 4)).shape == (6, 8, 1)
