"""The quantizers against the published code's numbers."""

import keras
import numpy as np
import pytest
from golden_files import golden_files, load
from keras import ops

from keras_bridle.conversion.published_quantizer import (
    PublishedResidualQuantizer,
    load_published_quantizer,
)
from keras_bridle.quantizer.kmeans import kmeans
from keras_bridle.quantizer.residual_quantizer import ResidualQuantizer

TOLERANCE = 1e-5


def run_with_gradients(function, vectors, cotangent, multiplier, weight=None):
    """Runs `function(vectors) -> (output, state)` and differentiates
    `sum(quantized * cotangent) + multiplier * loss` by the vectors and, if given, by
    the weight."""
    cotangent = ops.convert_to_tensor(cotangent)

    def objective_of(output):
        return ops.sum(output.quantized * cotangent) + multiplier * output.loss

    if keras.backend.backend() == "jax":
        import jax

        def objective(vectors):
            output, state = function(vectors)
            return objective_of(output), (output, state)

        grad = jax.value_and_grad(objective, has_aux=True)
        (_, (output, state)), by_vectors = grad(ops.convert_to_tensor(vectors))
        by_weight = None
        if weight is not None:

            def objective_by_weight(value):
                with keras.StatelessScope(state_mapping=[(weight, value)]):
                    return objective(ops.convert_to_tensor(vectors))[0]

            by_weight = jax.grad(objective_by_weight)(weight.value)
    elif keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        vectors = tf.convert_to_tensor(vectors)
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(vectors)
            output, state = function(vectors)
            total = objective_of(output)
        by_vectors = tape.gradient(total, vectors)
        by_weight = None
        if weight is not None:
            by_weight = tape.gradient(total, weight.value)
            by_weight = tf.convert_to_tensor(by_weight)
    else:
        import torch

        vectors = ops.convert_to_tensor(vectors).requires_grad_()
        output, state = function(vectors)
        total = objective_of(output)
        (by_vectors,) = torch.autograd.grad(total, vectors, retain_graph=True)
        by_weight = None
        if weight is not None:
            (by_weight,) = torch.autograd.grad(total, weight.value)
    convert = ops.convert_to_numpy
    return (
        output,
        state,
        convert(by_vectors),
        None if by_weight is None else convert(by_weight),
    )


def close(ours, expected, what, absolute=TOLERANCE):
    if absolute is None:
        # Relative to the array: single numbers are differences of large ones.
        absolute = TOLERANCE * np.abs(expected).max()
    np.testing.assert_allclose(
        ops.convert_to_numpy(ours),
        expected,
        rtol=TOLERANCE,
        atol=absolute,
        err_msg=what,
    )


def gradient_close(ours, expected, what):
    error = np.linalg.norm(ours - expected) / max(np.linalg.norm(expected), 1e-12)
    assert error <= 2e-5, (what, error)


def weights_of(arrays):
    return {name[2:]: array for name, array in arrays.items() if name.startswith("w.")}


def residual_layer(config, arrays, video):
    weights = weights_of(arrays)
    levels = config.get("levels", config.get("rq_levels"))
    return PublishedResidualQuantizer(
        "video" if video else "audio",
        num_levels=levels,
        codebook_size=config["codes"],
        dim=config["dim"],
        ema=config.get("ema", True),
        restart_unused_codes=config.get("restart_unused_codes", False),
        kmeans_init="codebooks.0.initted" in weights,
        decay=config.get("decay", 0.99),
        commitment_weight=config.get("commitment", 0.25),
        shared_codebooks=config.get("shared_codebook", False),
        top_k=config.get("soft_code", 1),
    )


def check_output(output, arrays, prefix, absolute):
    expected = arrays[f"{prefix}codes"]
    codes = ops.convert_to_numpy(output.codes).reshape(expected.shape)
    np.testing.assert_array_equal(codes, expected)
    close(output.quantized, arrays[f"{prefix}z_q"], "z_q", absolute)
    close(output.loss, arrays[f"{prefix}loss"], "loss", absolute)
    if f"{prefix}level_loss" in arrays:
        expected = arrays[f"{prefix}level_loss"]
        close(output.level_losses, expected, "level_loss", absolute)


def check_residual_state(layer, arrays, prefix, absolute):
    weights = layer._state_weights() | {"code_vectors": layer.code_vectors}
    names = {
        "code_vectors": "weight",
        "counts": "cluster_size_ema",
        "sums": "embed_ema",
        "kmeans_done": "initted",
    }
    checked = 0
    for level in range(1 if layer.shared_codebooks else layer.num_levels):
        for ours, theirs in names.items():
            name = f"{prefix}codebooks.{level}.{theirs}"
            if name not in arrays or ours not in weights:
                continue
            expected = arrays[name]
            value = ops.convert_to_numpy(weights[ours])[level]
            if ours == "code_vectors":
                expected = expected[: len(value)]
            close(value, expected.reshape(value.shape), name, absolute)
            checked += 1
    assert checked


def injected(arrays, prefix, layer, num_vectors):
    """The stored draws of vectors, as the fractions that the layer draws."""
    draws = {}
    if layer.restart_unused_codes:
        unused = np.zeros((layer.num_levels, layer.codebook_size))
        draws["restart"] = arrays.get(f"{prefix}in.restart_ids", unused)
    if layer.kmeans_init:
        draws["kmeans"] = arrays[f"{prefix}in.rq_init_ids"]
    return {name: fractions(ids, num_vectors) for name, ids in draws.items()}


def fractions(ids, num_vectors):
    return ops.convert_to_tensor(((ids + 0.5) / num_vectors).astype("float32"))


def check_step(layer, config, arrays, prefixes, training, absolute):
    """One call against the arrays under three prefixes: input, output and state."""
    in_prefix, out_prefix, after_prefix = prefixes
    vectors = arrays[f"{in_prefix}in.z"]
    draws = injected(arrays, in_prefix, layer, vectors[..., 0].size)
    weight = None if layer.ema else layer.code_vectors
    output, state, by_vectors, by_weight = run_with_gradients(
        lambda z: layer.stateless_step(z, training=training, draws=draws),
        vectors,
        arrays[f"{out_prefix}dz_cotangent"],
        config.get("loss_multiplier_in_dz", 3.0),
        weight,
    )
    layer.assign_state(state)
    check_output(output, arrays, out_prefix, absolute)
    gradient_close(by_vectors, arrays[f"{out_prefix}dz"], "dz")
    check_residual_state(layer, arrays, after_prefix, absolute)
    return by_weight


@pytest.mark.parametrize(
    "path",
    [*golden_files("rq_*.npz"), *golden_files("rqvideo_*.npz")],
    ids=lambda path: path.stem,
)
def test_residual_quantizer_like_published(path):
    config, arrays = load(path)
    layer = residual_layer(config, arrays, path.stem.startswith("rqvideo"))
    layer.build((None, config["dim"]))
    load_published_quantizer(layer, weights_of(arrays))
    # Sums of the fresh video state reach 1e5, so only relative errors make sense.
    fresh = path.stem.startswith("rqvideo") and not config.get("warm_start", True)
    absolute = None if fresh else TOLERANCE
    steps = config.get("steps", 0)
    for step in range(steps):
        prefix = f"step{step}."
        prefixes = (prefix, f"{prefix}out.", f"{prefix}after.")
        check_step(layer, config, arrays, prefixes, True, absolute)
    if steps:
        return
    if "out.eval_codebooks_codes" in arrays and layer.top_k == 1:
        vectors = arrays["in.z"]
        codes = layer.encode(vectors)
        np.testing.assert_array_equal(
            ops.convert_to_numpy(codes), arrays["out.eval_codebooks_codes"]
        )
        for level in range(layer.num_levels):
            table = ops.convert_to_numpy(layer.codebooks)[level]
            chosen = table[ops.convert_to_numpy(codes)[..., level]]
            close(chosen, arrays["out.eval_codebooks_quants"][..., level], "quants")
    training = config.get("mode", "train") == "train"
    by_weight = check_step(
        layer, config, arrays, ("", "out.", "after."), training, absolute
    )
    if by_weight is not None:
        for level, gradient in enumerate(by_weight):
            expected = arrays[f"grad.codebooks.{level}.weight"][:-1]
            gradient_close(gradient, expected, f"codebook {level}")


@pytest.mark.parametrize(
    "path", golden_files("kmeans*.npz"), ids=lambda path: path.stem
)
def test_kmeans_like_published(path):
    config, arrays = load(path)
    samples = arrays["in.x_normalised"]
    for kind in ("cos", "l2"):
        for name in arrays:
            if not name.startswith(f"out.means_{kind}_"):
                continue
            iterations = name.rsplit("_", 1)[1]
            means, found = kmeans(
                samples,
                config["codes"],
                int(iterations),
                cosine=kind == "cos",
                initial_ids=arrays["in.init_ids"],
            )
            close(means, arrays[name], name)
            counts = arrays[f"out.bins_{kind}_{iterations}"]
            np.testing.assert_array_equal(found, counts)


@pytest.mark.parametrize(
    "path", golden_files("kmeans*.npz"), ids=lambda path: path.stem
)
def test_kmeans_with_few_samples_like_published(path):
    config, arrays = load(path)
    if "in.init_ids_few" not in arrays:
        pytest.skip("no such block in this file")
    ids = arrays["in.init_ids_few"]
    expected, counts = arrays["out.means_few"], arrays["out.bins_few"]
    samples = arrays["in.x_normalised"][: int(counts.sum())]
    means, found = kmeans(
        samples, config["codes"], config["iters"], cosine=True, initial_ids=ids
    )
    close(means, expected, "means")
    np.testing.assert_array_equal(found, counts)


@pytest.mark.parametrize(
    "path", golden_files("kmeans*.npz"), ids=lambda path: path.stem
)
def test_first_call_with_kmeans_like_published(path):
    config, arrays = load(path)
    layer = residual_layer(config, arrays, video=False)
    layer.build((None, config["dim"]))
    load_published_quantizer(layer, weights_of(arrays))
    prefixes = ("", "out.rq.", "after.rq.")
    training = config.get("mode") == "train"
    check_step(layer, config, arrays, prefixes, training, TOLERANCE)


def vq_layer(config, **kwargs):
    layer = PublishedResidualQuantizer(
        "vq",
        num_levels=1,
        codebook_size=config["codes"],
        dim=config["dim"],
        decay=config["decay"],
        commitment_weight=config["commitment"],
        **kwargs,
    )
    layer.build((None, config["dim"]))
    return layer


def check_vq(layer, config, arrays, block, vectors, training, draws=None):
    weight = layer.code_vectors if layer.codebook_update == "gradient" else None
    output, state, by_vectors, by_weight = run_with_gradients(
        lambda z: layer.stateless_step(z, training=training, draws=draws or {}),
        vectors,
        arrays[f"{block}.out.dz_cotangent"],
        config["loss_multiplier_in_dz"],
        weight,
    )
    layer.assign_state(state)
    check_output(output, arrays, f"{block}.out.", TOLERANCE)
    gradient_close(by_vectors, arrays[f"{block}.out.dz"], f"{block} dz")
    if f"{block}.after.embedding.weight" in arrays:
        expected = arrays[f"{block}.after.embedding.weight"]
        close(layer.code_vectors[0], expected, "weight")
        close(layer.counts[0], arrays[f"{block}.after.cluster_size"], "counts")
    return by_weight


@pytest.mark.parametrize("path", golden_files("vq*.npz"), ids=lambda path: path.stem)
@pytest.mark.parametrize("published", [True, False])
def test_vq_training_like_published(path, published):
    config, arrays = load(path)
    if published:
        layer = vq_layer(config)
    else:
        layer = ResidualQuantizer(
            num_levels=1,
            codebook_size=config["codes"],
            normalize="input",
            normalize_codes=True,
            codebook_update="mean",
            decay=config["decay"],
            commitment_weight=config["commitment"],
        )
        layer.build((None, config["dim"]))
    load_published_quantizer(layer, weights_of(arrays))
    for step in range(config["steps"]):
        vectors = arrays[f"step{step}.in.z"]
        check_vq(layer, config, arrays, f"step{step}", vectors, True)


@pytest.mark.parametrize("path", golden_files("vq*.npz"), ids=lambda path: path.stem)
def test_vq_evaluation_like_published(path):
    config, arrays = load(path)
    layer = vq_layer(config)
    load_published_quantizer(layer, weights_of(arrays))
    check_vq(layer, config, arrays, "eval", arrays["in.z"], False)


@pytest.mark.parametrize("path", golden_files("vq*.npz"), ids=lambda path: path.stem)
def test_vq_with_gradients_like_published(path):
    config, arrays = load(path)
    layer = vq_layer(config, ema=False)
    load_published_quantizer(layer, weights_of(arrays))
    gradient = check_vq(layer, config, arrays, "noema", arrays["in.z"], True)
    gradient_close(gradient[0], arrays["noema.grad.embedding.weight"], "codebook")


@pytest.mark.parametrize("path", golden_files("vq*.npz"), ids=lambda path: path.stem)
def test_vq_with_kmeans_like_published(path):
    config, arrays = load(path)
    layer = vq_layer(config, kmeans_init=True)
    load_published_quantizer(layer, weights_of(arrays) | {"embedding.initted": [0.0]})
    vectors = arrays["in.z"]
    drawn = fractions(arrays["kmeans.in.init_ids"][None], vectors[..., 0].size)
    check_vq(layer, config, arrays, "kmeans", vectors, True, {"kmeans": drawn})
