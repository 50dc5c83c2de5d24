"""Usage of codebooks: functions, a metric and a callback for `fit()`."""

from typing import Any, NamedTuple

import keras
from keras import ops

from keras_bridle.engine import segment_sum
from keras_bridle.replicas import metric_increment


class CodebookUsage(NamedTuple):
    """Usage of each level's codebook, float32 arrays with one number per level.

    Attributes:
        usage: Share of the codes that occur, 0 to 1.
        perplexity: Exponential of the entropy of the codes, 1 to `codebook_size`: the
            effective number of codes. 0 if nothing was counted.
        dead_codes: Number of codes that do not occur.
    """

    usage: Any
    perplexity: Any
    dead_codes: Any


def usage_of_counts(counts):
    """Computes `CodebookUsage` from how often each code occurs, `(..., size)`."""
    counts = ops.cast(counts, "float32")
    total = ops.sum(counts, axis=-1, keepdims=True)
    share = counts / ops.maximum(total, 1.0)
    entropy = -ops.sum(share * ops.log(ops.where(counts > 0, share, 1.0)), axis=-1)
    used = ops.cast(counts > 0, "float32")
    return CodebookUsage(
        usage=ops.mean(used, axis=-1),
        perplexity=ops.where(total[..., 0] > 0, ops.exp(entropy), 0.0),
        dead_codes=ops.sum(1.0 - used, axis=-1),
    )


def named_usage(counts, prefix=""):
    """Computes usage as a dict of scalars: `usage_1`, `perplexity_1` and so on."""
    usage = usage_of_counts(counts)
    return {
        f"{prefix}{name}_{level + 1}": values[level]
        for level in range(counts.shape[0])
        for name, values in usage._asdict().items()
    }


@keras.saving.register_keras_serializable(package="keras_bridle")
class CodeUsage(keras.metrics.Metric):
    """Usage, perplexity and dead codes of each level since the last reset."""

    def __init__(self, num_levels, codebook_size, name="code_usage", dtype=None):
        super().__init__(name=name, dtype=dtype)
        self.num_levels = num_levels
        self.codebook_size = codebook_size
        # Integers, as float32 stops counting at 2 ** 24.
        self.counts = self.add_variable(
            shape=(num_levels, codebook_size),
            initializer="zeros",
            dtype="int",
            name="counts",
        )

    def update_state(self, codes, mask=None):
        """Counts codes `(..., num_levels)`, except negative and masked ones."""
        codes = ops.convert_to_tensor(codes)
        if mask is not None:
            codes = ops.where(ops.cast(mask, "bool")[..., None], codes, -1)
        size = self.codebook_size + 1
        ids = ops.where(codes < 0, self.codebook_size, ops.cast(codes, "int32"))
        # Give each level's codes their own range.
        ids = ids + size * ops.arange(self.num_levels, dtype="int32")
        ids = ops.reshape(ids, (-1,))
        counts = segment_sum(ops.ones_like(ids), ids, self.num_levels * size)
        counts = ops.reshape(counts, (self.num_levels, size))[:, :-1]
        counts = metric_increment(counts)
        self.counts.assign_add(ops.cast(counts, self.counts.dtype))

    def result(self):
        """Returns the dict of `named_usage`."""
        return named_usage(self.counts)

    def get_config(self):
        """Returns the constructor's arguments."""
        sizes = {"num_levels": self.num_levels, "codebook_size": self.codebook_size}
        return super().get_config() | sizes


class CodeUsageLogger(keras.callbacks.Callback):
    """Adds usage, perplexity and dead codes of every codebook to the epoch's logs.

    For the plain `fit()` of any model with `ResidualQuantizer` layers, which count
    codes in training; frozen ones are ignored. Put it before callbacks that read logs,
    such as `CSVLogger`.

    The names are `usage_1`, `perplexity_1`, `dead_codes_1`, `usage_2` and so on; in a
    model with several quantizers each starts with its layer's name and `_`.

    Raises:
        ValueError: in the first epoch, if the model has no `ResidualQuantizer`.

    Example:
    ```python
    import keras
    import keras_bridle as kb
    import numpy as np

    inputs = keras.Input((8,))
    quantizer = kb.ResidualQuantizer(num_levels=2, codebook_size=16)
    model = keras.Model(inputs, quantizer(keras.layers.Dense(4)(inputs)).quantized)
    model.compile(optimizer="adam", loss="mse")
    history = model.fit(
        np.random.normal(size=(64, 8)),
        np.random.normal(size=(64, 4)),
        callbacks=[kb.CodeUsageLogger()],
        verbose=0,
    )
    print(history.history["perplexity_1"])
    ```
    """

    def on_epoch_begin(self, epoch, logs=None):
        """Resets the counts."""
        for histogram in self._histograms():
            histogram.assign(ops.zeros_like(histogram))

    def on_train_batch_end(self, batch, logs=None):
        """Checks that there is a quantizer, once all layers are built."""
        if batch == 0 and not self._histograms():
            raise ValueError(
                f"{self.model.name} has no `ResidualQuantizer`, whose codes "
                "CodeUsageLogger could count."
            )

    def on_epoch_end(self, epoch, logs=None):
        """Adds the numbers to `logs`."""
        histograms = self._histograms()
        for histogram in histograms:
            counts = ops.convert_to_numpy(histogram)
            if logs is None or not counts.any():
                continue
            layer = histogram.path.split("/")[-2]
            prefix = f"{layer}_" if len(histograms) > 1 else ""
            for name, value in named_usage(counts, prefix).items():
                logs[name] = float(value)

    def _histograms(self):
        """Finds the counting weights of quantizers by name."""
        return [x for x in self.model.variables if x.name == "code_histogram"]
