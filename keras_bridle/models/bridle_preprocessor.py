"""What the preprocessors of all modalities share."""


def check_input_dims(backbone, rank, expected):
    """Raises a `ValueError` for an encoder of another kind of input.

    Args:
        backbone: `BridleBackbone`.
        rank: int, how many sides one input has, channels included.
        expected: string, what inputs of that rank are.
    """
    if len(backbone.input_dims) != rank:
        raise ValueError(
            f"This is for encoders that take {expected}. Received: one with "
            f"input_dims={backbone.input_dims}. Pass `preprocessor=None` to feed it "
            "as it is"
        )
