"""Probes that are small networks, trained by `fit()` on frozen features."""

import keras
import numpy as np

from keras_bridle.evaluation.attentive_pooling import AttentivePooling


def dense_scores(
    train_features,
    train_hot,
    test_features,
    multi_label=False,
    epochs=100,
    batch_size=64,
    learning_rate=3e-3,
    weight_decay=0.0,
    seed=0,
):
    """Trains one dense layer on normalized features, as published for linear probes.

    The normalization is a batch normalization without scale and offset.

    Args:
        train_features: float array of shape `(train_rows, dim)`.
        train_hot: array of zeros and ones of shape `(train_rows, classes)`.
        test_features: float array of shape `(test_rows, dim)`.
        multi_label: bool, whether a row may have several classes, or none.
        epochs: int. The learning rate falls to 0 over them, by a cosine.
        batch_size: int.
        learning_rate: float, of AdamW.
        weight_decay: float, likewise.
        seed: int, of the order of the rows.

    Returns:
        Float array of shape `(test_rows, classes)`, logits.

    Reference:
        [He et al., 2022](https://arxiv.org/abs/2111.06377), appendix A.1
    """
    inputs = keras.Input(train_features.shape[1:])
    normalized = keras.layers.BatchNormalization(
        momentum=0.9, epsilon=1e-6, center=False, scale=False, dtype="float32"
    )(inputs)
    model = keras.Model(inputs, _head(train_hot.shape[1])(normalized))
    _fit(
        model,
        [train_features],
        train_hot,
        multi_label,
        epochs,
        batch_size,
        learning_rate,
        weight_decay,
        seed,
    )
    return model.predict(test_features, batch_size=batch_size, verbose=0)


def attentive_scores(
    train_features,
    train_hot,
    test_features,
    multi_label=False,
    num_heads=None,
    epochs=40,
    batch_size=64,
    learning_rate=1e-3,
    weight_decay=0.01,
    seed=0,
):
    """Trains `AttentivePooling`, a normalization and a dense layer on patches.

    Args:
        train_features: `PatchFeatures` of the training rows.
        train_hot: array of zeros and ones of shape `(train_rows, classes)`.
        test_features: `PatchFeatures` of the test rows.
        multi_label: bool, whether a row may have several classes, or none.
        num_heads: optional int; by default one for each 64 numbers of a patch, and
            at least one.
        epochs: int. The learning rate falls to 0 over them, by a cosine.
        batch_size: int.
        learning_rate: float, of AdamW.
        weight_decay: float, likewise.
        seed: int, of the weights and of the order of the rows.

    Returns:
        Float array of shape `(test_rows, classes)`, logits.
    """
    shape = train_features.patches.shape[1:]
    patches = keras.Input(shape, name="patches")
    is_real = keras.Input(shape[:1], dtype="bool", name="is_real")
    if num_heads is None:
        num_heads = shape[1] // 64 if shape[1] % 64 == 0 else 1
    pooled = AttentivePooling(num_heads, seed=seed, dtype="float32")(patches, is_real)
    pooled = keras.layers.LayerNormalization(epsilon=1e-6, dtype="float32")(pooled)
    model = keras.Model([patches, is_real], _head(train_hot.shape[1])(pooled))
    _fit(
        model,
        list(train_features),
        train_hot,
        multi_label,
        epochs,
        batch_size,
        learning_rate,
        weight_decay,
        seed,
    )
    return model.predict(list(test_features), batch_size=batch_size, verbose=0)


def _head(classes):
    # From zero: all classes are alike before the first step, whatever the seed.
    return keras.layers.Dense(classes, kernel_initializer="zeros", dtype="float32")


def _fit(
    model,
    inputs,
    hot,
    multi_label,
    epochs,
    batch_size,
    learning_rate,
    weight_decay,
    seed,
):
    batches = _Batches(inputs, hot.astype("float32"), batch_size, seed)
    losses = keras.losses
    loss = losses.BinaryCrossentropy if multi_label else losses.CategoricalCrossentropy
    model.compile(
        keras.optimizers.AdamW(
            keras.optimizers.schedules.CosineDecay(
                learning_rate, max(1, epochs * len(batches))
            ),
            weight_decay=weight_decay,
        ),
        loss(from_logits=True),
    )
    model.fit(batches, epochs=epochs, verbose=0, shuffle=False)


class _Batches(keras.utils.PyDataset):
    """Full batches in an order drawn anew for each epoch."""

    def __init__(self, inputs, targets, batch_size, seed):
        super().__init__()
        self.arrays = [*inputs, targets]
        # A small rest would distort the statistics of the normalization.
        self.batch_size = min(batch_size, len(targets))
        self.generator = np.random.default_rng(seed)
        self.on_epoch_end()

    def __len__(self):
        return len(self.arrays[-1]) // self.batch_size

    def __getitem__(self, index):
        start = index * self.batch_size
        rows = self.order[start : start + self.batch_size]
        *inputs, targets = (array[rows] for array in self.arrays)
        inputs = [x if x.dtype == bool else x.astype("float32") for x in inputs]
        return inputs[0] if len(inputs) == 1 else tuple(inputs), targets

    def on_epoch_end(self):
        self.order = self.generator.permutation(len(self.arrays[-1]))
