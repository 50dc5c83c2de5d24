import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from keras_bridle.evaluation.metrics import code_usage
from keras_bridle.evaluation.plots import (
    cut_patches,
    nearest_patches,
    plot_code_patches,
    plot_code_usage,
    plot_codes,
    plot_confusion_matrix,
    plot_embedding,
    plot_history,
)

pytestmark = pytest.mark.one_backend


@pytest.fixture
def figures(monkeypatch):
    """The figures that are written."""
    written = []
    save = Figure.savefig

    def keep(self, path):
        written.append(self)
        save(self, path)
        assert imread(path)[..., :3].std() > 0.02

    monkeypatch.setattr(Figure, "savefig", keep)
    return written


def _curves(axis):
    return {line.get_label(): line.get_ydata().tolist() for line in axis.lines}


def test_history(tmp_path, figures):
    path = tmp_path / "phase.csv"
    path.write_text(
        "epoch,note,loss,val_loss,code_accuracy_1,code_accuracy_2\n"
        "0,a,3,,0.1,0.2\n1,b,2,2.5,0.3,0.4\n2,c,1,,0.5,0.6\n"
    )
    phases = {
        "cold start": path,
        "tokenizer": {"loss": [1, 0.5], "cosine": [0, 1]},
        "bare": {"loss": [1.0]},
    }
    plot_history(phases, tmp_path / "new" / "history.png")
    axes = np.array(figures[0].axes).reshape(2, 3)
    assert _curves(axes[0, 0]) == {"training": [3, 2, 1], "validation": [2.5]}
    assert axes[0, 0].lines[1].get_xdata().tolist() == [2]
    levels = {"level 1": [0.1, 0.3, 0.5], "level 2": [0.2, 0.4, 0.6]}
    assert _curves(axes[1, 0]) == levels
    assert axes[1, 1].get_ylabel() == "cosine" and not axes[1, 2].get_visible()


def test_code_usage(tmp_path, figures):
    usage = code_usage(np.random.default_rng(0).integers(0, 40, (500, 6)), 64)
    plot_code_usage(usage, tmp_path / "usage.png")
    axes = figures[0].axes
    assert [axis.get_visible() for axis in axes] == 6 * [True] + 2 * [False]
    heights = axes[2].patches[0].get_data().values
    shares = usage.counts[2] / usage.counts[2].mean()
    assert heights.max() == pytest.approx(shares.max())


def test_codes_of_a_spectrogram(tmp_path, figures):
    rng = np.random.default_rng(0)
    codes, spectrogram = rng.integers(0, 64, (24, 4)), rng.normal(size=(50, 128))
    codes[-8:] = -1
    plot_codes(spectrogram, [0, 9], codes, (3, 8), (16, 16), tmp_path / "codes.png")
    axes = figures[0].axes
    assert len(axes) == 6 and "2 of 24" in axes[1].get_title("left")
    whole, seen = (axis.images[0].get_array() for axis in axes[:2])
    assert whole.shape == (128, 48, 3)
    # Patch 9 is the second in time and the second in frequency.
    assert (seen == 0.8).all(axis=-1).mean() == pytest.approx(22 / 24)
    np.testing.assert_array_equal(seen[16:32, 16:32], whole[16:32, 16:32])
    numbers = [int(text.get_text()) for text in axes[5].texts]
    assert numbers[:2] == [codes[0, 3], codes[8, 3]] and len(numbers) == 16
    level = axes[5].images[0].get_array()
    assert level.shape == (8, 3, 3) and (level[:, 2] == 1).all()
    assert axes[4].get_xlim() == (0, 0.48)


def test_codes_and_patches_of_images_and_clips(tmp_path, figures):
    rng = np.random.default_rng(0)
    codes, path = rng.integers(0, 64, (40, 2)), tmp_path / "codes.png"
    image = rng.integers(0, 256, (28, 28, 1), "uint8")
    plot_codes(image, np.arange(16), codes[:16], (4, 4), (7, 7), path)
    seen = figures[0].axes[1].images[0].get_array()
    np.testing.assert_allclose(seen[..., 0], image[..., 0] / 255)
    clip = rng.normal(size=(20, 16, 16, 3))
    plot_codes(clip, [5], codes, (10, 2, 2), (2, 8, 8), path)
    assert len(figures[1].axes) == 4 * 8
    with pytest.raises(ValueError, match="codes"):
        plot_codes(image, [0], codes[:15], (4, 4), (7, 7), path)
    clip = np.arange(4 * 4 * 6).reshape(4, 4, 6, 1)
    cut = cut_patches(clip, (2, 2, 4), (2, 2, 2))
    assert cut.shape == (16, 2, 2, 1) and not cut[3].any()  # beyond the clip
    np.testing.assert_array_equal(cut[1, ..., 0], clip[0, :2, 2:4, 0])
    np.testing.assert_array_equal(cut[8, ..., 0], clip[2, :2, :2, 0])
    plot_code_patches({"code 3": cut[:5], "code 7": cut[5:7]}, path)
    axis = figures[2].axes[0]
    assert [image.get_extent()[0] for image in axis.images] == [0, 1, 2, 3, 4, 0, 1]


def test_nearest_patches():
    codes = np.array([[0, 0, 1], [1, 0, 0], [-1, -1, 0]])
    distances = np.array([[0.3, 0.1, 0.2], [0.4, 0.5, 0.6], [0.0, 0.0, 0.3]])
    found = nearest_patches(codes, distances)
    assert {code: rows.tolist() for code, rows in found.items()} == {
        0: [[0, 1], [2, 2], [1, 1]],
        1: [[0, 2], [1, 0]],
    }
    few = nearest_patches(codes, distances, num_codes=1, num_patches=2)
    assert few[0].tolist() == [[0, 1], [2, 2]]


def test_confusion_matrix(tmp_path, figures):
    confusion = np.array([[8, 2, 0], [1, 3, 0], [0, 0, 0]])
    path = tmp_path / "c.png"
    plot_confusion_matrix(confusion, path, ["cat", "dog", "owl"])
    axis = figures[0].axes[0]
    drawn = axis.images[0].get_array()
    np.testing.assert_allclose(drawn, [[0.8, 0.2, 0], [0.25, 0.75, 0], 3 * [0]])
    texts = [text.get_text() for text in axis.texts]
    assert texts == ["80%", "20%", "0%", "25%", "75%", "0%", *3 * ["0%"]]
    labels = [label.get_text() for label in axis.get_yticklabels()]
    assert labels == ["cat", "dog", "owl"]
    plot_confusion_matrix(np.eye(100, dtype=int), path)
    axis = figures[1].axes[0]
    assert not axis.texts and not len(axis.get_yticks())
    assert max(figures[1].get_size_inches()) < 20


def test_embedding(tmp_path, figures):
    labels = np.arange(150) % 25
    noise = np.random.default_rng(0).normal(size=(150, 30))
    features = 0.1 * noise + np.eye(25, 30)[labels]
    path = tmp_path / "map.png"
    plot_embedding(features, path, title="plain")
    plot_embedding(features, path, np.array([f"name {i}" for i in labels]))
    plain, colored = (figure.axes[0] for figure in figures)
    assert plain.get_legend() is None and plain.get_title() == "plain"
    texts = [text.get_text() for text in colored.get_legend().get_texts()]
    assert texts[0] == "5 others" and len(texts) == 21
    assert sum(len(group.get_offsets()) for group in colored.collections) == 150
