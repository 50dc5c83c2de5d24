"""How the networks' weights are divided among devices."""

import keras


def bridle_layout_map(mesh, axis="model"):
    """Divides the large kernels of all networks among devices; for JAX.

    In each block the kernels that widen (attention's query, key and value, the MLP's
    hidden layer) are divided by columns and those that narrow (attention's output, the
    MLP's) by rows, so that what lies between them stays divided; the decoder's head is
    divided by columns. Everything else, codebooks included, is on every device. The
    optimizer's averages are divided as their weights are.

    Args:
        mesh: `keras.distribution.DeviceMesh` with an axis for batches and one for
            kernels.
        axis: string, the name of the axis for kernels. Its size must divide
            `hidden_dim` and `mlp_dim` of the networks, and the decoder's
            `num_levels * codebook_size`.

    Returns:
        A `keras.distribution.LayoutMap`, for `keras.distribution.ModelParallel`.

    Raises:
        ValueError: if the mesh has no such axis.

    Example:
    ```python
    import keras
    from keras_bridle.distribution import bridle_layout_map

    if keras.backend.backend() == "jax":
        devices = keras.distribution.list_devices()
        mesh = keras.distribution.DeviceMesh(
            (1, len(devices)), ["batch", "model"], devices
        )
        distribution = keras.distribution.ModelParallel(
            layout_map=bridle_layout_map(mesh), batch_dim_name="batch"
        )
        with distribution.scope():
            pass  # make networks and train them
    ```

    Reference:
        - [Shoeybi et al., 2019](https://arxiv.org/abs/1909.08053)
    """
    if axis not in mesh.axis_names:
        raise ValueError(
            "`mesh` must have an axis for kernels. "
            f"Received: axis={axis!r}, a mesh of the axes {list(mesh.axis_names)}"
        )
    layout_map = keras.distribution.LayoutMap(mesh)
    layout_map[r"(.*/)?(qkv|mlp_hidden|head)/kernel"] = (None, axis)
    layout_map[r"(.*/)?(qkv|mlp_hidden|head)/bias"] = (axis,)
    layout_map[r"(.*/)?(attention_output|mlp_output)/kernel"] = (axis, None)
    return layout_map
