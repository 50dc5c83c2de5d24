"""A callback that logs how well the codebooks of a model are used."""

import keras

from keras_bridle.layers.residual_quantizer import ResidualQuantizer
from keras_bridle.pretraining.code_usage import named_usage


class CodeUsageLogger(keras.callbacks.Callback):
    """Adds usage, perplexity and dead codes of every codebook to the epoch's logs.

    Works in the plain `fit()` of any model with `ResidualQuantizer` layers: they count
    the codes they choose in training, and this callback reads the counts at the end of
    each epoch. Layers that are frozen or not in training count nothing and are left
    out. The numbers are in the `History` and the progress bar; put this callback
    before those that read logs, such as `CSVLogger`.

    The names are `usage_1`, `perplexity_1`, `dead_codes_1`, `usage_2` and so on; in a
    model with several quantizers each starts with its layer's name and `_`.

    Raises:
        ValueError: on `fit()`, if the model has no `ResidualQuantizer`.

    Example:
    ```python
    import keras
    import numpy as np
    from keras_bridle.layers.residual_quantizer import ResidualQuantizer
    from keras_bridle.pretraining.code_usage_logger import CodeUsageLogger

    inputs = keras.Input((8,))
    quantizer = ResidualQuantizer(num_levels=2, codebook_size=16)
    model = keras.Model(inputs, quantizer(keras.layers.Dense(4)(inputs)).quantized)
    model.compile(optimizer="adam", loss="mse")
    history = model.fit(
        np.random.normal(size=(64, 8)),
        np.random.normal(size=(64, 4)),
        callbacks=[CodeUsageLogger()],
        verbose=0,
    )
    print(history.history["perplexity_1"])
    ```
    """

    def on_train_begin(self, logs=None):
        """Checks that there is something to log."""
        if not self._quantizers():
            raise ValueError(
                "CodeUsageLogger needs a model with `ResidualQuantizer` layers. "
                f"Received: {self.model.name}, which has none"
            )

    def on_epoch_begin(self, epoch, logs=None):
        """Starts to count anew."""
        for quantizer in self._quantizers():
            # A subclassed model may be built by its first batch only.
            if quantizer.built:
                quantizer.reset_usage()

    def on_epoch_end(self, epoch, logs=None):
        """Puts the numbers into `logs`."""
        if logs is None:
            return
        quantizers = self._quantizers()
        for quantizer in quantizers:
            if not quantizer.built:
                continue
            counts = keras.ops.convert_to_numpy(quantizer.code_histogram)
            if not counts.any():
                continue
            prefix = f"{quantizer.name}_" if len(quantizers) > 1 else ""
            for name, value in named_usage(counts, prefix).items():
                logs[name] = float(value)

    def _quantizers(self):
        layers = self.model._flatten_layers(include_self=True, recursive=True)
        # A shared layer comes once for each place it is used in.
        found = {
            id(layer): layer for layer in layers if isinstance(layer, ResidualQuantizer)
        }
        return list(found.values())
