"""Monitoring of an encoder's features while it trains."""

import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
from sklearn.neighbors import NearestNeighbors

from keras_bridle.distribution import num_devices
from keras_bridle.evaluation.features import FeatureExtractor

# The number of examples that recipes monitor.
WATCHED = 256
# Warn if the deviation over tokens falls below this share of its initial value.
ALIKE = 0.3


class FeatureMonitor(keras.callbacks.Callback):
    """Monitors an encoder's features in training, and warns if they collapse.

    The loss also falls for an encoder that recognizes an image but not where or when.
    These numbers show it. They are in the logs of each epoch, so in the progress line,
    `history.csv` and TensorBoard:

    - `token_deviation`: the share of the features' root mean square that varies within
      an example, 0 to 1. Near 0, all tokens of an example are alike.
    - `rank`: the effective rank of the examples' features (RankMe), 1 to their size.
    - `knn`: with labels, the share of examples whose nearest neighbors share the label.

    The first call measures the encoder as it is. It prints a warning if later values
    are far lower. Phases that do not train an encoder log nothing.

    Args:
        inputs: array of raw inputs, some hundreds of different kinds.
        labels: optional list or array of their labels, such as the names of the
            files' folders.
        share: float, the largest share of the training time to spend. If an epoch is
            too short, its logs repeat the last values, except in the last epoch of a
            `fit()`.
        neighbors: int, the number of neighbors that vote.
        batch_size: int, examples of a step.

    Example:
    ```python
    import keras_bridle as kb
    import numpy as np
    from keras_bridle.evaluation.monitor import FeatureMonitor

    images = np.random.default_rng(0).integers(0, 256, (32, 32, 32, 3), "uint8")
    backbone = kb.BridleBackbone.from_preset("bridle_image_tiny", load_weights=False)
    pretraining = kb.InterleavedPretraining(backbone, codebook_size=8)
    history = pretraining.fit(
        images,
        rounds=0,
        cold_start_epochs=1,
        batch_size=16,
        callbacks=[FeatureMonitor(images)],
        verbose=0,
    )
    print(history["0_cold_start"]["token_deviation"])
    ```

    Reference:
        [RankMe](https://arxiv.org/abs/2210.02885)
    """

    def __init__(self, inputs, labels=None, share=0.02, neighbors=5, batch_size=32):
        super().__init__()
        self.inputs = inputs
        self.labels: Any = labels
        if labels is not None:
            self.labels = np.unique(labels, return_inverse=True)[1]
        self.share = share
        self.neighbors = neighbors
        self.batch_size = batch_size
        self.before: Any = None
        self._extract: Any = None

    def on_train_begin(self, logs=None):
        """Measures the encoder before its first phase."""
        backbone = getattr(self.model, "backbone", None)
        trained = getattr(self.model, "trained_parts", ("backbone",))
        self._is_on = backbone is not None and "backbone" in trained
        if not self._is_on:
            return
        if self._extract is None or self._extract.backbone is not backbone:
            self._extract = FeatureExtractor(backbone, per="patch")
            self.before = self._measured()
        self._warned = False
        self._spent, self._start = 0.0, time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        """Adds the numbers to the logs."""
        if not self._is_on:
            return
        budget = self.share * (time.perf_counter() - self._start)
        # Workers must agree, so they do not go by their own clocks.
        is_due = num_devices() == 1 and self._spent + self._cost <= budget
        if is_due or epoch + 1 == self.params["epochs"]:
            self._measured()
            self._spent += self._cost
            self._warn()
        if logs is not None:
            logs.update(self.last)

    def _measured(self):
        start = time.perf_counter()
        self.last = self.measure()
        self._cost = time.perf_counter() - start
        return self.last

    def measure(self):
        """Returns a dict of the numbers."""
        features = self._extract(self.inputs, self.batch_size)
        is_real = features.is_real[..., None].astype("float32")
        pooled = features.mean()
        within = np.square((features.patches - pooled[:, None]) * is_real).sum()
        total = np.square(features.patches * is_real).sum()
        values = np.linalg.svd(pooled, compute_uv=False)
        shares = values / max(values.sum(), 1e-12) + 1e-12
        found = {
            "token_deviation": float(np.sqrt(within / max(total, 1e-12))),
            "rank": float(np.exp(-(shares * np.log(shares)).sum())),
        }
        if self.labels is not None:
            count = min(self.neighbors, len(pooled) - 1)
            # Without arguments, no example is its own neighbor.
            search = NearestNeighbors(n_neighbors=count, metric="cosine").fit(pooled)
            labels = self.labels[search.kneighbors(return_distance=False)]
            votes = np.eye(self.labels.max() + 1)[labels].sum(axis=1)
            found["knn"] = float(np.mean(votes.argmax(axis=1) == self.labels))
        return found

    def _warn(self):
        now, before = self.last["token_deviation"], self.before["token_deviation"]
        if now < ALIKE * before and not self._warned:
            self._warned = True
            print(
                f"The tokens of an example are nearly alike: they deviate by {now:.2f} "
                f"({before:.2f} before training). The encoder hardly knows what is "
                "where or when. More steps or a lower mask ratio may help."
            )


def watch(inputs, labels):
    """Makes a monitor of random labeled examples."""
    chosen = np.random.default_rng(0).permutation(len(inputs))[:WATCHED]
    labels = np.asarray(labels)[chosen]
    return FeatureMonitor(inputs[chosen], labels if len(set(labels)) > 1 else None)


def watch_files(modality, files, reading, report):
    """Makes a monitor of random files, labeled by their folders."""
    dataset = modality.dataset(
        files.numbered(),
        reading,
        batch_size=min(WATCHED, len(files)),
        shuffle=True,
        crop="center",
        report=report,
    )
    inputs, numbers = dataset[0]
    return watch(inputs, [Path(files.files[number]).parent.name for number in numbers])
