"""Pictures of confusion matrices and of features."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from keras_bridle.evaluation.plots import plot_confusion_matrix, plot_embedding


@pytest.fixture
def figures(monkeypatch):
    """The figures that are written."""
    written = []
    save = Figure.savefig

    def keep(self, *args, **kwargs):
        written.append(self)
        save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    return written


def test_confusion_matrix_is_in_shares_of_the_rows(tmp_path, figures):
    confusion = np.array([[8, 2, 0], [1, 3, 0], [0, 0, 0]])
    path = plot_confusion_matrix(
        confusion, tmp_path / "new" / "c.png", ["cat", "dog", "owl"], "Cats"
    )
    assert path.read_bytes().startswith(b"\x89PNG")
    axis = figures[0].axes[0]
    drawn = axis.images[0].get_array()
    np.testing.assert_allclose(drawn[:2], [[0.8, 0.2, 0], [0.25, 0.75, 0]])
    assert drawn.mask[2].all() and not drawn.mask[:2].any()
    assert [text.get_text() for text in axis.texts] == ["8", "2", "1", "3"]
    assert [label.get_text() for label in axis.get_yticklabels()] == [
        "cat",
        "dog",
        "owl",
    ]
    assert axis.get_title() == "Cats"


def test_confusion_of_many_classes_has_no_names(tmp_path, figures):
    plot_confusion_matrix(np.eye(100, dtype=int), tmp_path / "c.png")
    axis = figures[0].axes[0]
    assert not axis.texts
    assert len(axis.get_yticks()) < 20
    assert max(figures[0].get_size_inches()) < 20


def test_names_without_letters_in_the_font_are_numbers(tmp_path, figures):
    plot_confusion_matrix([[1, 0], [0, 1]], tmp_path / "c.png", ["cat", "\u72d7"])
    labels = figures[0].axes[0].get_yticklabels()
    assert [label.get_text() for label in labels] == ["cat", "1"]


def _features(rows=90, classes=3, dim=6):
    labels = np.arange(rows) % classes
    noise = np.random.default_rng(0).normal(size=(rows, dim))
    return 0.1 * noise + np.eye(classes, dim)[labels], labels


def test_pca_parts_what_lies_apart(tmp_path, figures):
    features, labels = _features()
    names = np.array(["ant", "bee", "cat"])[labels]
    # Neither scale nor offset of a column counts.
    plot_embedding(features * [1, 100, 1, 1, 1, 1] + 7, tmp_path / "m.png", names)
    axis = figures[0].axes[0]
    points = [np.asarray(group.get_offsets()) for group in axis.collections]
    assert [len(group) for group in points] == [30, 30, 30]
    centers = np.array([group.mean(axis=0) for group in points])
    spread = max(group.std(axis=0).max() for group in points)
    apart = np.linalg.norm(centers[:, None] - centers[None], axis=-1)
    assert apart[~np.eye(3, dtype=bool)].min() > 2 * spread
    texts = [text.get_text() for text in axis.get_legend().get_texts()]
    assert texts == ["ant", "bee", "cat"]
    assert "% of the variance" in axis.get_xlabel()


def test_many_classes_and_none(tmp_path, figures):
    features, labels = _features(rows=100, classes=25, dim=30)
    plot_embedding(features, tmp_path / "a.png", labels)
    axis = figures[0].axes[0]
    texts = [text.get_text() for text in axis.get_legend().get_texts()]
    assert len(texts) == 21 and texts[0] == "5 others"
    plot_embedding(features, tmp_path / "b.png")
    assert figures[1].axes[0].get_legend() is None


def test_umap_is_asked_for_and_named(tmp_path, monkeypatch, figures):
    monkeypatch.setitem(__import__("sys").modules, "umap", None)
    with pytest.raises(ImportError, match="needs umap-learn"):
        plot_embedding(_features()[0], tmp_path / "m.png", method="umap")

    class Umap:
        class UMAP:
            def __init__(self, random_state, n_jobs):
                assert random_state == 4 and n_jobs == 1

            def fit_transform(self, features):
                np.testing.assert_allclose(features.std(axis=0), 1)
                return features[:, :2]

    monkeypatch.setitem(__import__("sys").modules, "umap", Umap)
    plot_embedding(_features()[0], tmp_path / "m.png", method="umap", seed=4)
    assert not figures[0].axes[0].get_xlabel()


@pytest.mark.slow
def test_umap_itself_keeps_classes_together(tmp_path, figures):
    pytest.importorskip("umap")
    centers = 10 * np.eye(3, 8)
    labels = np.repeat(np.arange(3), 12)
    features = centers[labels] + np.random.default_rng(0).normal(size=(36, 8))
    plot_embedding(features, tmp_path / "m.png", labels, method="umap")
    groups = [dots.get_offsets().data for dots in figures[0].axes[0].collections]
    assert [len(group) for group in groups] == [12, 12, 12]
    middles = np.array([group.mean(axis=0) for group in groups])
    distances = np.linalg.norm(middles - np.roll(middles, 1, axis=0), axis=1)
    assert distances.min() > 2 * max(
        np.linalg.norm(group - group.mean(axis=0), axis=1).mean() for group in groups
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([[1, 2]], "c.png"), r"shape \(classes, classes\)"),
        (([[1, -2], [0, 1]], "c.png"), "negative"),
        (([[1, 2], [0, 1]], "c.png", ["a"]), "name the 2 classes; received 1"),
    ],
)
def test_confusion_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        plot_confusion_matrix(*arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "tsne"}, '"pca" or "umap"'),
        ({"labels": [1, 2]}, "for each of the 90 rows; received 2"),
        ({"features": np.ones((2, 4))}, "3 rows and 2 columns"),
    ],
)
def test_embedding_refusals(tmp_path, options, message):
    arguments = {"features": _features()[0], "path": tmp_path / "m.png", **options}
    with pytest.raises(ValueError, match=message):
        plot_embedding(**arguments)
