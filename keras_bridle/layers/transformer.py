"""Transformer blocks, global and windowed."""

import keras
import numpy as np
from keras import ops

from keras_bridle.engine import attention


@keras.saving.register_keras_serializable(package="keras_bridle")
class TransformerBlock(keras.layers.Layer):
    """Self-attention among all tokens, then an MLP, each with a norm in front.

    Args:
        num_heads: int, attention heads; must divide the tokens' size.
        mlp_dim: int, width of the MLP's hidden layer.
        layer_norm_epsilon: float, added to the variance in the norms.
        drop_path_rate: float in [0, 1), how likely an example skips the attention, and
            likewise the MLP, in training: stochastic depth. What is not skipped is
            scaled up, so that its mean stays.
        **kwargs: keyword arguments of `keras.layers.Layer`.

    Call arguments:
        tokens: float tensor of shape `(batch, length, dim)`.
        padding_mask: optional bool tensor of shape `(batch, length)`, `True` at real
            tokens. No token attends to a padded one.
        training: bool, whether examples skip at random.

    Returns:
        Tensor like `tokens`.

    Raises:
        ValueError: if `num_heads` does not divide the tokens' size, or a rate is out of
            range.

    Example:
    ```python
    import numpy as np
    from keras_bridle.layers.transformer import TransformerBlock

    block = TransformerBlock(num_heads=4, mlp_dim=128)
    print(block(np.zeros((2, 9, 32), "float32")).shape)  # (2, 9, 32)
    ```

    Reference:
        - [Dosovitskiy et al., 2020](https://arxiv.org/abs/2010.11929)
        - [Huang et al., 2016](https://arxiv.org/abs/1603.09382), stochastic depth
    """

    def __init__(
        self,
        num_heads,
        mlp_dim,
        layer_norm_epsilon=1e-6,
        drop_path_rate=0.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_drop_path_rate(drop_path_rate)
        self.num_heads = num_heads
        self.mlp_dim = mlp_dim
        self.layer_norm_epsilon = layer_norm_epsilon
        self.drop_path_rate = drop_path_rate
        # It has no weights, so files fit whether it is there or not.
        self.drop_path = None
        if drop_path_rate:
            self.drop_path = keras.layers.Dropout(
                drop_path_rate,
                noise_shape=(None, 1, 1),
                dtype=self.dtype_policy,
                name="drop_path",
            )

    def build(self, tokens_shape):
        dim = tokens_shape[-1]
        check_heads(self.num_heads, dim)
        self.attention_norm = self._norm("attention_norm")
        self.qkv = self._dense(3 * dim, "qkv")
        self.attention_output = self._dense(dim, "attention_output")
        self.mlp_norm = self._norm("mlp_norm")
        self.mlp_hidden = self._dense(self.mlp_dim, "mlp_hidden")
        self.mlp_output = self._dense(dim, "mlp_output")
        token_layers = (
            self.attention_norm,
            self.qkv,
            self.attention_output,
            self.mlp_norm,
            self.mlp_hidden,
        )
        for layer in token_layers:
            layer.build((None, None, dim))
        self.mlp_output.build((None, None, self.mlp_dim))

    def _norm(self, name):
        return keras.layers.LayerNormalization(
            epsilon=self.layer_norm_epsilon, dtype=self.dtype_policy, name=name
        )

    def _dense(self, units, name):
        return keras.layers.Dense(units, dtype=self.dtype_policy, name=name)

    def call(self, tokens, padding_mask=None, training=None):
        attended = self._attend(self.attention_norm(tokens), padding_mask)
        tokens = tokens + self._dropped(attended, training)
        hidden = self.mlp_hidden(self.mlp_norm(tokens))
        hidden = self.mlp_output(ops.gelu(hidden, approximate=False))
        return tokens + self._dropped(hidden, training)

    def _dropped(self, branch, training):
        if self.drop_path is None:
            return branch
        return self.drop_path(branch, training=training)

    def _attend(self, tokens, padding_mask):
        batch, length, dim = ops.shape(tokens)
        heads = (batch, length, 3, self.num_heads, dim // self.num_heads)
        query, key, value = ops.unstack(ops.reshape(self.qkv(tokens), heads), axis=2)
        mask = None
        if padding_mask is not None:
            mask = ops.cast(padding_mask, "bool")[:, None, None, :]
            mask = ops.broadcast_to(mask, (batch, 1, length, length))
        attended = attention(query, key, value, mask)
        return self.attention_output(ops.reshape(attended, (batch, length, dim)))

    def compute_output_shape(self, tokens_shape):
        return tuple(tokens_shape)

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "mlp_dim": self.mlp_dim,
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "drop_path_rate": self.drop_path_rate,
        }


def check_drop_path_rate(drop_path_rate):
    """Raises a `ValueError` for a rate that drops everything, or is none."""
    if not 0.0 <= drop_path_rate < 1.0:
        raise ValueError(
            "`drop_path_rate` must lie in [0, 1). "
            f"Received: drop_path_rate={drop_path_rate}"
        )


def check_heads(num_heads, dim):
    """Raises a `ValueError` if attention heads do not divide the tokens' size."""
    if dim % num_heads:
        raise ValueError(
            "`num_heads` must divide the tokens' size. "
            f"Received: num_heads={num_heads}, tokens of size {dim}"
        )


# Attention logits of pairs that must not see each other are lowered by this much.
_BLOCKED = -100.0


@keras.saving.register_keras_serializable(package="keras_bridle")
class WindowTransformerBlock(keras.layers.Layer):
    """Cosine attention within windows of the grid, then an MLP, norms behind both.

    Blocks are used in turn with and without a shift, so that neighbors across a
    window's border meet in every other block. A side of the grid that is no longer than
    the window is not shifted and the window shrinks to it.

    Args:
        num_heads: int, attention heads; must divide the tokens' size.
        mlp_dim: int, width of the MLP's hidden layer.
        window_size: tuple of 2 ints, rows and columns of a window, in patches.
        shift: tuple of 2 ints, by how many rows and columns windows are shifted.
        layer_norm_epsilon: float, added to the variance in the norms.
        bias_dim: int, width of the small MLP that turns the offset between two patches
            into a bias of their attention.
        **kwargs: keyword arguments of `keras.layers.Layer`.

    Call arguments:
        tokens: float tensor of shape `(batch, rows * columns, dim)`.
        grid: tuple of 2 ints, `(rows, columns)`.
        padding_mask: optional bool tensor of shape `(batch, rows * columns)`, `True` at
            real tokens. Tokens do not attend to padded ones.

    Returns:
        Tensor like `tokens`.

    Raises:
        ValueError: if heads do not divide the tokens' size or windows not the grid.

    Example:
    ```python
    import numpy as np
    from keras_bridle.layers.transformer import WindowTransformerBlock

    block = WindowTransformerBlock(num_heads=4, mlp_dim=64, shift=(2, 0))
    print(block(np.zeros((2, 64, 32), "float32"), grid=(8, 8)).shape)  # (2, 64, 32)
    ```

    Reference:
        - [Liu et al., 2021](https://arxiv.org/abs/2111.09883), Swin Transformer V2
    """

    def __init__(
        self,
        num_heads,
        mlp_dim,
        window_size=(4, 4),
        shift=(0, 0),
        layer_norm_epsilon=1e-5,
        bias_dim=384,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.mlp_dim = mlp_dim
        self.window_size = tuple(window_size)
        self.shift = tuple(shift)
        self.layer_norm_epsilon = layer_norm_epsilon
        self.bias_dim = bias_dim

    def build(self, tokens_shape):
        dim = tokens_shape[-1]
        check_heads(self.num_heads, dim)
        self.temperature = self.add_weight(
            shape=(self.num_heads,),
            initializer="ones",
            autocast=False,
            dtype="float32",
            name="temperature",
        )
        widths = {
            "qkv": (dim, 3 * dim),
            "attention_output": (dim, dim),
            "bias_hidden": (2, self.bias_dim),
            "bias_output": (self.bias_dim, self.num_heads),
            "mlp_hidden": (dim, self.mlp_dim),
            "mlp_output": (self.mlp_dim, dim),
        }
        for name, (width_in, width_out) in widths.items():
            # The bias of the attention is a part of its logits: float32 throughout.
            dtype = "float32" if name.startswith("bias") else self.dtype_policy
            layer = keras.layers.Dense(width_out, dtype=dtype, name=name)
            layer.build((None, width_in))
            setattr(self, name, layer)
        for name in ("attention_norm", "mlp_norm"):
            norm = keras.layers.LayerNormalization(
                epsilon=self.layer_norm_epsilon, dtype=self.dtype_policy, name=name
            )
            norm.build((None, None, dim))
            setattr(self, name, norm)

    def call(self, tokens, grid, padding_mask=None):
        grid = tuple(grid)
        window, shift = self.effective_window(grid)
        attended = self._attend(tokens, grid, window, shift, padding_mask)
        tokens = tokens + self.attention_norm(attended)
        hidden = ops.gelu(self.mlp_hidden(tokens), approximate=False)
        return tokens + self.mlp_norm(self.mlp_output(hidden))

    def effective_window(self, grid):
        """Tells the window and the shift that a grid really gets.

        Args:
            grid: tuple of 2 ints, `(rows, columns)`.

        Returns:
            Tuple of two tuples of 2 ints: window and shift.
        """
        window = tuple(min(w, g) for w, g in zip(self.window_size, grid, strict=True))
        shift = tuple(
            0 if g <= w else s
            for w, s, g in zip(self.window_size, self.shift, grid, strict=True)
        )
        if any(g % w for w, g in zip(window, grid, strict=True)):
            raise ValueError(
                "`window_size` must divide the grid of patches, side by side, where a "
                f"side is longer. Received: window_size={self.window_size}, grid={grid}"
            )
        return window, shift

    def _attend(self, tokens, grid, window, shift, padding_mask):
        batch, _, dim = ops.shape(tokens)
        area = window[0] * window[1]
        windows = _to_windows(ops.reshape(tokens, (batch, *grid, dim)), window, shift)
        qkv = ops.reshape(
            self.qkv(windows), (-1, area, 3, self.num_heads, dim // self.num_heads)
        )
        query, key, value = ops.unstack(ops.transpose(qkv, (2, 0, 3, 1, 4)), axis=0)
        logits = self._cosine_logits(query, key) + self.relative_bias(window)
        # (batch, windows, heads, area, area): what varies by window is added there.
        num_windows = grid[0] * grid[1] // area
        logits = ops.reshape(logits, (batch, num_windows, self.num_heads, area, area))
        if any(shift):
            regions = ops.convert_to_tensor(_region_mask(grid, window, shift))
            logits = logits + regions[None, :, None]
        if padding_mask is not None:
            real = ops.reshape(ops.cast(padding_mask, "float32"), (batch, *grid, 1))
            real = ops.reshape(
                _to_windows(real, window, shift), (batch, num_windows, 1, 1, area)
            )
            logits = logits + (1.0 - real) * _BLOCKED
        weights = ops.cast(ops.softmax(logits, axis=-1), value.dtype)
        weights = ops.reshape(weights, (-1, self.num_heads, area, area))
        attended = ops.transpose(ops.matmul(weights, value), (0, 2, 1, 3))
        attended = self.attention_output(ops.reshape(attended, (-1, area, dim)))
        restored = _from_windows(attended, grid, window, shift)
        return ops.reshape(restored, (batch, grid[0] * grid[1], dim))

    def _cosine_logits(self, query, key):
        query = ops.cast(query, "float32")
        key = ops.cast(key, "float32")
        products = ops.matmul(query, ops.swapaxes(key, -1, -2))
        norms = _norm(query) * ops.swapaxes(_norm(key), -1, -2)
        temperature = ops.maximum(ops.convert_to_tensor(self.temperature), 0.01)
        return products / ops.maximum(norms, 1e-6) / temperature[:, None, None]

    def relative_bias(self, window):
        """Computes the attention bias between the patches of a window.

        Args:
            window: tuple of 2 ints.

        Returns:
            float32 tensor of shape `(1, heads, area, area)`.
        """
        area = window[0] * window[1]
        hidden = ops.relu(self.bias_hidden(_log_offsets(window)))
        bias = ops.reshape(self.bias_output(hidden), (area, area, self.num_heads))
        return ops.transpose(bias, (2, 0, 1))[None]

    def compute_output_shape(self, tokens_shape):
        return tuple(tokens_shape)

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "mlp_dim": self.mlp_dim,
            "window_size": self.window_size,
            "shift": self.shift,
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "bias_dim": self.bias_dim,
        }


def _norm(vectors):
    # The derivative of a square root at zero is infinite: keep away from it.
    squares = ops.sum(ops.square(vectors), axis=-1, keepdims=True)
    return ops.sqrt(ops.maximum(squares, 1e-24))


def _to_windows(cells, window, shift):
    """`(batch, rows, columns, dim)` -> `(batch * windows, area, dim)`, shifted."""
    batch, rows, columns, dim = ops.shape(cells)
    if any(shift):
        cells = ops.roll(cells, (-shift[0], -shift[1]), axis=(1, 2))
    high, wide = window
    cells = ops.reshape(cells, (batch, rows // high, high, columns // wide, wide, dim))
    cells = ops.transpose(cells, (0, 1, 3, 2, 4, 5))
    return ops.reshape(cells, (-1, high * wide, dim))


def _from_windows(windows, grid, window, shift):
    """`(batch * windows, area, dim)` -> `(batch, rows, columns, dim)`, shifted back."""
    high, wide = window
    rows, columns = grid
    dim = windows.shape[-1]
    cells = ops.reshape(windows, (-1, rows // high, columns // wide, high, wide, dim))
    cells = ops.transpose(cells, (0, 1, 3, 2, 4, 5))
    cells = ops.reshape(cells, (-1, rows, columns, dim))
    return ops.roll(cells, shift, axis=(1, 2)) if any(shift) else cells


def _log_offsets(window):
    """Signed logarithms of the offsets between a window's patches, query minus key."""
    rows, columns = np.meshgrid(*(np.arange(side) for side in window), indexing="ij")
    places = np.stack([rows.ravel(), columns.ravel()], axis=1).astype("float64")
    offsets = places[:, None] - places[None]
    offsets = np.sign(offsets) * np.log1p(np.abs(offsets))
    return offsets.reshape(-1, 2).astype("float32")


def _region_mask(grid, window, shift):
    """Blocks pairs that only met because the shift rolled them around the border."""
    region = np.zeros(grid, "int32")
    for axis, (length, side, by) in enumerate(zip(grid, window, shift, strict=True)):
        if by:
            place = np.arange(length)
            part = (place >= length - side).astype(int) + (place >= length - by)
            region = region * 3 + (part[:, None] if axis == 0 else part[None])
    high, wide = window
    region = region.reshape(grid[0] // high, high, grid[1] // wide, wide)
    region = region.transpose(0, 2, 1, 3).reshape(-1, high * wide)
    apart = region[:, :, None] != region[:, None]
    return (apart * _BLOCKED).astype("float32")


def check_attention(attention):
    """Raises a `ValueError` for an unknown kind of attention."""
    if attention not in ("global", "window"):
        raise ValueError(
            "`attention` must be 'global' or 'window'. "
            f"Received: attention={attention!r}"
        )


def attention_blocks(model):
    """Makes the blocks that a model's own settings describe.

    Args:
        model: a model with the attributes `attention`, `num_layers`, `num_heads`,
            `hidden_dim`, `mlp_dim`, `window_size`, `window_shift` and
            `layer_norm_epsilon`.

    Returns:
        A list of layers. Windows are shifted in every other block.
    """
    check_heads(model.num_heads, model.hidden_dim)
    blocks = []
    for index in range(model.num_layers):
        common = {
            "num_heads": model.num_heads,
            "mlp_dim": model.mlp_dim,
            "dtype": model.dtype_policy,
            "name": f"transformer_block_{index}",
        }
        if model.attention == "window":
            shift = model.window_shift if index % 2 else (0, 0)
            block = WindowTransformerBlock(
                window_size=model.window_size, shift=shift, **common
            )
        else:
            block = TransformerBlock(
                layer_norm_epsilon=model.layer_norm_epsilon, **common
            )
        blocks.append(block)
    return blocks


def run_blocks(blocks, tokens, grid, padding_mask):
    """Runs tokens through blocks of either kind."""
    for block in blocks:
        if isinstance(block, WindowTransformerBlock):
            tokens = block(tokens, grid=grid, padding_mask=padding_mask)
        else:
            tokens = block(tokens, padding_mask=padding_mask)
    return tokens
