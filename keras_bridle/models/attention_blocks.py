"""The row of blocks that decoder and estimator are made of."""

from keras_bridle.layers.transformer_block import TransformerBlock, check_heads
from keras_bridle.layers.window_transformer_block import WindowTransformerBlock


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
