"""Residual quantization, one layer at a time.

A quantizer replaces a vector by the nearest of a few code vectors, which one integer
identifies. A *residual* quantizer does this several times. Level 1 picks the code
vector nearest to the input, level 2 the one nearest to the residual of level 1, and so
on. Four levels of 64 codes distinguish 64^4, nearly 17 million, vectors, with only 256
code vectors to learn.

`kb.ResidualQuantizer` is an ordinary Keras layer. This guide uses it alone, then inside
an autoencoder, on small images of clothes that come with the package. It takes about
a minute on two CPU cores:

    KERAS_BACKEND=jax python guides/residual_quantizer.py
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import matplotlib.pyplot as plt
import numpy as np

import keras_bridle as kb
from keras_bridle.data.samples import load_fashion

EPOCHS = 4
EXAMPLES = 4000
keras.utils.set_random_seed(0)

# ## Vectors, codes and back
#
# Cut each image into patches of 7 x 7 pixels: 16 vectors of size 49.

images = load_fashion("train")[0].astype("float32") / 255
patches = (
    images[: EXAMPLES // 2].reshape(-1, 4, 7, 4, 7).swapaxes(2, 3).reshape(-1, 16, 49)
)
print(patches.shape)

# `adapt()` sets the codebooks by k-means, level after level, each on the residuals of
# the previous levels. The default normalizes vectors to unit length first. Here,
# `normalize=None` keeps the length of a vector, which is the brightness of a patch.

quantizer = kb.ResidualQuantizer(
    num_levels=8, codebook_size=64, normalize=None, seed=0, name="quantizer"
)
quantizer.adapt(patches)
codes = quantizer.encode(patches)
print(codes.shape, codes.dtype)

# The codes of the first levels alone give a coarser approximation. Each level reduces
# the error.

for level in range(1, 9):
    approximation = keras.ops.convert_to_numpy(quantizer.decode(codes[..., :level]))
    error = np.mean((approximation - patches) ** 2) / np.var(patches)
    print(
        f"{level} levels, {6 * level} bits a patch: {error:.1%} of the variance is lost"
    )


def image_of(patches):
    """Puts 16 patches back together."""
    return patches.reshape(4, 4, 7, 7).swapaxes(1, 2).reshape(28, 28)


figure, axes = plt.subplots(4, 5, figsize=(7, 5.8), layout="constrained")
for row, example in zip(axes, (0, 3, 5, 9), strict=True):
    shown = {"original": patches[example]}
    for level in (1, 2, 4, 8):
        approximation = quantizer.decode(codes[example, :, :level])
        shown[f"{level} levels"] = keras.ops.convert_to_numpy(approximation)
    for axis, (title, values) in zip(row, shown.items(), strict=True):
        axis.imshow(image_of(values), cmap="gray", vmin=0, vmax=1)
        axis.set_axis_off()
        if row is axes[0]:
            axis.set_title(title)
figure.savefig("quantized_pictures.png")

# ## In a model
#
# Called with `training=True`, the layer moves its codebooks towards the vectors
# assigned to them, by moving averages, without gradients. It returns a named tuple:
#
# - `quantized`, the sum of the code vectors. Its gradient passes straight through to
#   the input, as if nothing had been rounded.
# - `codes`, integers, one for each level.
# - `loss`, which pulls the input towards its code vectors. Add it to the model's loss.
#
# This autoencoder compresses an image to the codes of a 7 x 7 grid:


class QuantizedAutoencoder(keras.Model):
    """Convolutions down to a grid of vectors, a quantizer, and convolutions back."""

    def __init__(self, quantizer, **kwargs):
        super().__init__(**kwargs)
        conv, up = keras.layers.Conv2D, keras.layers.Conv2DTranspose
        self.encoder = keras.Sequential(
            [
                conv(16, 4, strides=2, padding="same", activation="gelu"),
                conv(32, 4, strides=2, padding="same"),
            ]
        )
        self.quantizer = quantizer
        self.decoder = keras.Sequential(
            [
                up(16, 4, strides=2, padding="same", activation="gelu"),
                up(1, 4, strides=2, padding="same"),
            ]
        )

    def call(self, images, training=False):
        out = self.quantizer(self.encoder(images), training=training)
        if training:
            self.add_loss(out.loss)
        return self.decoder(out.quantized)


# `kb.CodeUsageLogger` shows the share of codes in use, and the perplexity, in the
# progress bar and the history of any model with a quantizer. With `restart_threshold`,
# the layer moves a rarely used code to a vector of the batch.
#
# One level of 256 codes and two levels of 16 both take 8 bits. BRIDLE uses four levels
# of 256.

histories = {}
for num_levels, codebook_size in ((1, 256), (2, 16), (4, 256)):
    name = f"{num_levels} x {codebook_size}"
    model = QuantizedAutoencoder(
        kb.ResidualQuantizer(
            num_levels,
            codebook_size,
            normalize=None,
            decay=0.95,
            restart_threshold=0.1,
            seed=0,
        )
    )
    model.compile(keras.optimizers.Adam(2e-3), loss="mse")
    fitted = model.fit(
        images[:EXAMPLES],
        images[:EXAMPLES],
        batch_size=64,
        epochs=EPOCHS,
        callbacks=[kb.CodeUsageLogger()],
        verbose=0,
    )
    histories[name] = history = fitted.history
    lost = model.evaluate(images[-500:], images[-500:], verbose=0)
    lost = lost / np.var(images[-500:])
    usage = [history[f"usage_{level + 1}"][-1] for level in range(num_levels)]
    bits = num_levels * int(np.log2(codebook_size))
    print(f"{name}, {bits} bits: {lost:.1%} of the variance lost; in use:", end=" ")
    print(", ".join(f"{share:.0%}" for share in usage))

# ## What else it does
#
# - `padding_mask=` excludes padded vectors from statistics and loss; their codes are
#   -1.
# - `quantizer_dropout=True` drops the last levels at random in training, so that
#   coarse codes work on their own.
# - `top_k=3` takes the 3 nearest codes of each level. `sampling_temperature=` samples
#   codes by their distance. `shared_codebooks=True` uses one codebook for all levels.
# - `codebook_update="gradient"` leaves the codebooks to the optimizer.
#
# An example with padding and three codes a level:

soft = kb.ResidualQuantizer(2, 16, top_k=3, seed=0)
vectors = np.random.default_rng(0).normal(size=(2, 5, 8)).astype("float32")
is_real = np.arange(5) < np.array([[5], [3]])
print(keras.ops.convert_to_numpy(soft(vectors, padding_mask=is_real).codes[1, :, 0]))
