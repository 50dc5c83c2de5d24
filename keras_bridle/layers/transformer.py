"""Transformer blocks, global and windowed."""

import keras
import numpy as np
from keras import ops

from keras_bridle.engine import attention, by_rows, residual_sum
from keras_bridle.layers.base import ConfiguredLayer, check


class _Block(ConfiguredLayer):
    """Base of the blocks: norms, dense layers and the MLP."""

    def _add(self, name, size, units=None, dtype=None):
        """Adds a built norm, or a dense layer if `units` is given."""
        dtype = dtype or self.dtype_policy
        if units is None:
            layer = keras.layers.LayerNormalization(
                epsilon=self.layer_norm_epsilon, dtype=dtype, name=name
            )
        else:
            layer = keras.layers.Dense(units, dtype=dtype, name=name)
        # In Keras 3.16, norms accept only the rank that they were built for.
        layer.build((None, None, size))
        setattr(self, name, layer)

    def _mlp(self, tokens):
        hidden = by_rows(self.mlp_hidden, tokens)
        return by_rows(self.mlp_output, ops.gelu(hidden, approximate=False))


@keras.saving.register_keras_serializable(package="keras_bridle")
class TransformerBlock(_Block):
    """A pre-norm block: self-attention among all tokens, then an MLP.

    Args:
        num_heads: int, attention heads; must divide the tokens' size.
        mlp_dim: int, width of the MLP's hidden layer.
        layer_norm_epsilon: float, added to the variance in the norms.
        drop_path_rate: float in [0, 1), the probability in training that an example
            skips the attention, and likewise the MLP (stochastic depth).
        layer_scale: optional float, the initial value of learned scales of the outputs
            of attention and MLP, one for each channel.
        **kwargs: keyword arguments of `keras.layers.Layer`.

    Call arguments:
        tokens: float tensor of shape `(batch, length, dim)`.
        padding_mask: optional bool tensor of shape `(batch, length)`, `True` at real
            tokens. No token attends to a padded one.
        training: bool, whether examples skip at random.
        bias: optional tensor that broadcasts to `(batch, num_heads, length, length)`,
            added to the attention logits, such as a `RelativePositionBias`.

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
        - [Touvron et al., 2021](https://arxiv.org/abs/2103.17239), layer scale
    """

    def __init__(
        self,
        num_heads,
        mlp_dim,
        layer_norm_epsilon=1e-6,
        drop_path_rate=0.0,
        layer_scale=None,
        **kwargs,
    ):
        super().__init__(locals())
        check(
            0.0 <= drop_path_rate < 1.0, "drop_path_rate", "in [0, 1)", drop_path_rate
        )
        self.attention_scale = self.mlp_scale = None
        # It has no weights, so saved weights load with or without it.
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
        self._add("attention_norm", dim)
        self._add("qkv", dim, 3 * dim)
        self._add("attention_output", dim, dim)
        self._add("mlp_norm", dim)
        self._add("mlp_hidden", dim, self.mlp_dim)
        self._add("mlp_output", self.mlp_dim, dim)
        if self.layer_scale is not None:
            for name in ("attention_scale", "mlp_scale"):
                initial = keras.initializers.Constant(self.layer_scale)
                setattr(self, name, self.add_weight((dim,), initial, name=name))

    def call(self, tokens, padding_mask=None, training=None, bias=None):
        attended = self._attend(self.attention_norm(tokens), padding_mask, bias)
        attended = self._scaled(attended, self.attention_scale, training)
        tokens = residual_sum(tokens, attended)
        mixed = self._mlp(self.mlp_norm(tokens))
        return residual_sum(tokens, self._scaled(mixed, self.mlp_scale, training))

    def _scaled(self, branch, scale, training):
        """Scales a branch, and drops it at random in training."""
        branch = branch if scale is None else branch * scale
        if self.drop_path is None:
            return branch
        return self.drop_path(branch, training=training)

    def _attend(self, tokens, padding_mask, bias=None):
        batch, length, dim = ops.shape(tokens)
        heads = (batch, length, 3, self.num_heads, dim // self.num_heads)
        qkv = ops.reshape(by_rows(self.qkv, tokens), heads)
        query, key, value = ops.unstack(qkv, axis=2)
        mask = None
        if padding_mask is not None:
            mask = ops.cast(padding_mask, "bool")[:, None, None, :]
            mask = ops.broadcast_to(mask, (batch, 1, length, length))
        if bias is not None:
            bias = self._bias_for(query, bias)
        attended = attention(query, key, value, mask, bias)
        attended = ops.reshape(attended, (batch, length, dim))
        return by_rows(self.attention_output, attended)

    def _bias_for(self, query, bias):
        """Returns the bias of the logits; subclasses change it by queries."""
        return bias


def check_heads(num_heads, dim):
    """Raises a `ValueError` if the number of heads does not divide the width."""
    expected = f"a divisor of the tokens' size, {dim}"
    check(dim % num_heads == 0, "num_heads", expected, num_heads)


# Added to attention logits of pairs that must not see each other.
_BLOCKED = -100.0


@keras.saving.register_keras_serializable(package="keras_bridle")
class WindowTransformerBlock(_Block):
    """A post-norm block: cosine attention within windows of the grid, then an MLP.

    Every other block is shifted, so that patches on both sides of a border meet there.
    Along a side of the grid no longer than the window, the window shrinks to the side
    and is not shifted. Everything else is as in `TransformerBlock`.

    Args:
        num_heads: int, attention heads; must divide the tokens' size.
        mlp_dim: int, width of the MLP's hidden layer.
        window_size: tuple of 2 ints, rows and columns of a window, in patches.
        shift: tuple of 2 ints, the rows and columns that windows are shifted by.
        layer_norm_epsilon: float, added to the variance in the norms.
        bias_dim: int, width of the small MLP from the offset between two patches to
            their attention bias.

    Call arguments:
        grid: tuple of 2 ints, `(rows, columns)`.

    Raises:
        ValueError: if heads do not divide the tokens' size, or windows the grid.

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
        super().__init__(locals())

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
        self._add("qkv", dim, 3 * dim)
        self._add("attention_output", dim, dim)
        # The bias is a part of the attention logits, which are float32.
        self._add("bias_hidden", 2, self.bias_dim, "float32")
        self._add("bias_output", self.bias_dim, self.num_heads, "float32")
        self._add("mlp_hidden", dim, self.mlp_dim)
        self._add("mlp_output", self.mlp_dim, dim)
        self._add("attention_norm", dim)
        self._add("mlp_norm", dim)

    def call(self, tokens, grid, padding_mask=None):
        attended = self._attend(tokens, tuple(grid), padding_mask)
        tokens = residual_sum(tokens, self.attention_norm(attended))
        return residual_sum(tokens, self.mlp_norm(self._mlp(tokens)))

    def effective_window(self, grid):
        """Returns the window and the shift for a grid, which may be smaller."""
        window, shift = [], []
        for side, size, by in zip(grid, self.window_size, self.shift, strict=True):
            window.append(min(size, side))
            shift.append(by if side > size else 0)
            expected = f"divisors of the sides of the grid {grid} that are longer"
            check(side % window[-1] == 0, "window_size", expected, self.window_size)
        return tuple(window), tuple(shift)

    def _attend(self, tokens, grid, padding_mask):
        window, shift = self.effective_window(grid)
        batch, _, dim = ops.shape(tokens)
        area = window[0] * window[1]
        windows = _to_windows(ops.reshape(tokens, (batch, *grid, dim)), window, shift)
        qkv = ops.reshape(
            self.qkv(windows), (-1, area, 3, self.num_heads, dim // self.num_heads)
        )
        query, key, value = ops.unstack(ops.transpose(qkv, (2, 0, 3, 1, 4)), axis=0)
        logits = self._cosine_logits(query, key) + self.relative_bias(window)
        # (batch, windows, heads, area, area), to add what varies by window.
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
        """Computes the bias between a window's patches, `(1, heads, area, area)`."""
        area = window[0] * window[1]
        hidden = ops.relu(self.bias_hidden(_log_offsets(window)))
        bias = ops.reshape(self.bias_output(hidden), (area, area, self.num_heads))
        return ops.transpose(bias, (2, 0, 1))[None]


def _norm(vectors):
    # The derivative of a square root is infinite at zero.
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
    cells = np.indices(window).reshape(2, -1).T.astype("float64")
    offsets = cells[:, None] - cells[None]
    offsets = np.sign(offsets) * np.log1p(np.abs(offsets))
    return offsets.reshape(-1, 2).astype("float32")


def _region_mask(grid, window, shift):
    """Blocks pairs that are only adjacent as the shift rolled them over the border."""
    region = np.zeros(grid, "int32")
    for axis, (length, side, by) in enumerate(zip(grid, window, shift, strict=True)):
        if by:
            cell = np.arange(length)
            part = (cell >= length - side).astype(int) + (cell >= length - by)
            region = region * 3 + (part[:, None] if axis == 0 else part[None])
    high, wide = window
    region = region.reshape(grid[0] // high, high, grid[1] // wide, wide)
    region = region.transpose(0, 2, 1, 3).reshape(-1, high * wide)
    apart = region[:, :, None] != region[:, None]
    return (apart * _BLOCKED).astype("float32")


def attention_blocks(model):
    """Makes a model's blocks from its attributes; every other window is shifted."""
    check_heads(model.num_heads, model.hidden_dim)
    is_right = model.attention in ("global", "window")
    check(is_right, "attention", "'global' or 'window'", model.attention)
    blocks = []
    for index in range(model.num_layers):
        common = {"dtype": model.dtype_policy, "name": f"transformer_block_{index}"}
        sizes = model.num_heads, model.mlp_dim
        if model.attention == "window":
            shift = model.window_shift if index % 2 else (0, 0)
            block = WindowTransformerBlock(*sizes, model.window_size, shift, **common)
        else:
            block = TransformerBlock(*sizes, model.layer_norm_epsilon, **common)
        blocks.append(block)
    return blocks


def run_blocks(blocks, tokens, grid, padding_mask):
    """Runs tokens through blocks of either kind."""
    for block in blocks:
        options = {"grid": grid} if isinstance(block, WindowTransformerBlock) else {}
        tokens = block(tokens, padding_mask=padding_mask, **options)
    return tokens
