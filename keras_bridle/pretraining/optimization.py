"""The optimizer and the learning rates of a phase."""

import keras


def warmup_cosine(learning_rate, total_steps, warmup_steps=0, min_learning_rate=0.0):
    """Linear warm-up from zero, then half a cosine down.

    Args:
        learning_rate: float, the rate at the end of the warm-up.
        total_steps: int, steps of the whole run, warm-up included.
        warmup_steps: int, steps of the warm-up.
        min_learning_rate: float, the rate at the end.

    Returns:
        A `keras.optimizers.schedules.CosineDecay`.

    Raises:
        ValueError: if the warm-up is not shorter than the run, or the rate is not
            positive.

    Example:
    ```python
    from keras_bridle.pretraining import warmup_cosine

    schedule = warmup_cosine(1e-3, total_steps=100, warmup_steps=10)
    print([round(float(schedule(step)), 6) for step in (0, 5, 10, 100)])
    ```

    Reference:
        - [Loshchilov and Hutter, 2016](https://arxiv.org/abs/1608.03983)
    """
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(
            "`warmup_steps` must be less than `total_steps` and not negative. "
            f"Received: warmup_steps={warmup_steps}, total_steps={total_steps}"
        )
    if not learning_rate > 0.0:
        raise ValueError(
            f"`learning_rate` must be positive. Received: learning_rate={learning_rate}"
        )
    alpha = min_learning_rate / learning_rate
    if warmup_steps == 0:
        return keras.optimizers.schedules.CosineDecay(
            learning_rate, total_steps, alpha=alpha
        )
    return keras.optimizers.schedules.CosineDecay(
        # The type of the rate decides that of the whole computation.
        learning_rate * 0.0,
        total_steps - warmup_steps,
        alpha=alpha,
        warmup_target=learning_rate,
        warmup_steps=warmup_steps,
    )


def adamw(model, learning_rate, weight_decay=1e-4, **kwargs):
    """Makes AdamW as BRIDLE uses it: no decay of biases, norms and learned vectors.

    Keras keeps what is left out of the decay in no file: an optimizer that is loaded
    with a model decays everything.

    Args:
        model: a built model; its variables of fewer than 2 axes, class and mask tokens,
            and code vectors that learn by gradients are left out of the weight decay.
        learning_rate: float or schedule.
        weight_decay: float.
        **kwargs: keyword arguments of `keras.optimizers.AdamW`, such as
            `global_clipnorm`, `gradient_accumulation_steps`, `use_ema`, `ema_momentum`.

    Returns:
        A `keras.optimizers.AdamW`.

    Example:
    ```python
    import keras
    from keras_bridle.pretraining import adamw

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    model.compile(adamw(model, 1e-3), loss="mse")
    ```

    Reference:
        - [Loshchilov and Hutter, 2017](https://arxiv.org/abs/1711.05101)
    """
    optimizer = keras.optimizers.AdamW(
        learning_rate, weight_decay=weight_decay, **{"beta_2": 0.95, **kwargs}
    )
    optimizer.exclude_from_weight_decay(
        [
            variable
            for variable in model.trainable_variables
            if len(variable.shape) < 2 or variable.name in _LEARNED_VECTORS
        ]
    )
    return optimizer


_LEARNED_VECTORS = ("class_token", "mask_token", "code_vectors")
