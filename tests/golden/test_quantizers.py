"""The quantizers against the published code's numbers.

They run uncompiled: what JAX compiles for one file then serves the others.
"""

import keras
import numpy as np
import pytest
from golden_files import golden_files, load
from harness import relative_error, to_numpy
from keras import ops
from published_models import weights_of

from keras_bridle.conversion.published_quantizer import (
    PublishedResidualQuantizer,
    load_published_quantizer,
)
from keras_bridle.quantizer.kmeans import kmeans
from keras_bridle.quantizer.residual_quantizer import ResidualQuantizer

pytestmark = pytest.mark.every_backend
TOLERANCE, GRADIENT = 1e-5, 2e-5
NAMES = {
    "code_vectors": "weight",
    "counts": "cluster_size_ema",
    "sums": "embed_ema",
    "kmeans_done": "initted",
}


def differentiated_step(layer, vectors, cotangent, **kwargs):
    """Output, state, and gradients by vectors and codebooks of a stateless step."""
    cotangent = ops.convert_to_tensor(cotangent)

    def objective(vectors, tables):
        with keras.StatelessScope(state_mapping=[(layer.code_vectors, tables)]):
            output, state = layer.stateless_step(vectors, **kwargs)
        value = ops.sum(output.quantized * cotangent) + 3.0 * output.loss
        return value, (output, state)

    inputs = [ops.convert_to_tensor(vectors), layer.code_vectors.value]
    if keras.backend.backend() == "jax":
        import jax

        (_, found), slopes = jax.value_and_grad(objective, (0, 1), True)(*inputs)
    elif keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        inputs = [tf.convert_to_tensor(x) for x in inputs]
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            value, found = objective(*inputs)
        slopes = tape.gradient(value, inputs)
        slopes = [None if x is None else tf.convert_to_tensor(x) for x in slopes]
    else:
        import torch

        inputs = [x.detach().clone().requires_grad_() for x in inputs]
        value, found = objective(*inputs)
        slopes = torch.autograd.grad(value, inputs, allow_unused=True)
    return *found, *to_numpy(list(slopes))


def close(ours, expected, what, relative=False):
    # Where it is relative to the array: single numbers are differences of large ones.
    absolute = TOLERANCE * (np.abs(expected).max() if relative else 1.0)
    ours = ops.convert_to_numpy(ours).reshape(expected.shape)
    np.testing.assert_allclose(ours, expected, TOLERANCE, absolute, err_msg=what)


def fractions(ids, num_vectors):
    """The numbers that stand for the vectors that were drawn."""
    return ops.convert_to_tensor(((ids + 0.5) / num_vectors).astype("float32"))


def check_step(layer, arrays, prefixes, training, draws=None, relative=False):
    """One call against the arrays under prefixes of the input and the output."""
    before, after = prefixes
    vectors = arrays[f"{before}in.z"]
    count = vectors[..., 0].size
    draws = {name: fractions(ids, count) for name, ids in (draws or {}).items()}
    output, state, by_vectors, by_tables = differentiated_step(
        layer, vectors, arrays[f"{after}dz_cotangent"], training=training, draws=draws
    )
    layer.assign_state(state)
    expected = arrays[f"{after}codes"]
    codes = to_numpy(output.codes).reshape(expected.shape)
    np.testing.assert_array_equal(codes, expected)
    close(output.quantized, arrays[f"{after}z_q"], "z_q", relative)
    close(output.loss, arrays[f"{after}loss"], "loss", relative)
    if f"{after}level_loss" in arrays:
        expected = arrays[f"{after}level_loss"]
        close(output.level_losses, expected, "level_loss", relative)
    assert relative_error(by_vectors, arrays[f"{after}dz"]) <= GRADIENT
    return by_tables


def residual_layer(config, arrays, flavor):
    weights = weights_of(arrays)
    layer = PublishedResidualQuantizer(
        flavor,
        num_levels=config.get("levels", config.get("rq_levels")),
        codebook_size=config["codes"],
        ema=config.get("ema", True),
        restart_unused_codes=config.get("restart_unused_codes", False),
        kmeans_init="codebooks.0.initted" in weights,
        decay=config.get("decay", 0.99),
        commitment_weight=config.get("commitment", 0.25),
        shared_codebooks=config.get("shared_codebook", False),
        top_k=config.get("soft_code", 1),
    )
    layer.build((None, config["dim"]))
    load_published_quantizer(layer, weights)
    return layer


def check_residual_state(layer, arrays, prefix, relative=False):
    checked = set()
    for weight in layer.weights:
        for level, value in enumerate(to_numpy(weight)):
            name = f"{prefix}codebooks.{level}.{NAMES.get(weight.name)}"
            if name in arrays:
                expected = arrays[name]
                expected = expected[:-1] if weight.name == "code_vectors" else expected
                close(value, expected, name, relative)
                checked.add(weight.name)
    assert "code_vectors" in checked


@pytest.mark.parametrize(
    "path",
    [*golden_files("rq_*.npz"), *golden_files("rqvideo_*.npz")],
    ids=lambda path: path.stem,
)
def test_residual_quantizer_like_published(path):
    config, arrays = load(path)
    is_video = path.stem.startswith("rqvideo")
    layer = residual_layer(config, arrays, "video" if is_video else "audio")
    # Sums of the fresh video state reach 1e5, so only relative errors make sense.
    relative = is_video and not config.get("warm_start", True)
    if "out.eval_codebooks_codes" in arrays and layer.top_k == 1:
        codes = to_numpy(layer.encode(arrays["in.z"]))
        np.testing.assert_array_equal(codes, arrays["out.eval_codebooks_codes"])
        for level, table in enumerate(to_numpy(layer.codebooks)):
            expected = arrays["out.eval_codebooks_quants"][..., level]
            close(table[codes[..., level]], expected, "quants")
    steps = [f"step{step}." for step in range(config.get("steps", 0))] or [""]
    for step in steps:
        draws = {}
        if layer.restart_unused_codes:
            unused = np.zeros((layer.num_levels, layer.codebook_size))
            draws["restart"] = arrays.get(f"{step}in.restart_ids", unused)
        training = config.get("mode", "train") == "train"
        prefixes = step, f"{step}out."
        slope = check_step(layer, arrays, prefixes, training, draws, relative)
        check_residual_state(layer, arrays, f"{step}after.", relative)
    if not layer.ema:
        for level, gradient in enumerate(slope):
            expected = arrays[f"grad.codebooks.{level}.weight"][:-1]
            assert relative_error(gradient, expected) <= GRADIENT


KMEANS = pytest.mark.parametrize(
    "path", golden_files("kmeans*.npz"), ids=lambda path: path.stem
)


@KMEANS
@pytest.mark.one_backend
def test_kmeans_like_published(path):
    config, arrays = load(path)
    few = int(arrays["out.bins_few"].sum())
    for kind, iterations, ids in (
        ("cos_1", 1, "init_ids"),
        ("cos_10", 10, "init_ids"),
        ("l2_1", 1, "init_ids"),
        ("l2_10", 10, "init_ids"),
        ("few", config["iters"], "init_ids_few"),
    ):
        means, counts = kmeans(
            arrays["in.x_normalised"][: few if kind == "few" else None],
            config["codes"],
            iterations,
            cosine=not kind.startswith("l2"),
            initial_ids=arrays[f"in.{ids}"],
        )
        close(means, arrays[f"out.means_{kind}"], kind)
        np.testing.assert_array_equal(counts, arrays[f"out.bins_{kind}"])


@KMEANS
def test_first_call_with_kmeans_like_published(path):
    config, arrays = load(path)
    layer = residual_layer(config, arrays, "audio")
    training = config.get("mode") == "train"
    draws = {"kmeans": arrays["in.rq_init_ids"]}
    check_step(layer, arrays, ("", "out.rq."), training, draws)
    check_residual_state(layer, arrays, "after.rq.")


@KMEANS
def test_first_call_with_fewer_vectors_than_codes_like_published(path):
    """Codes that start alike: the first of them takes all vectors."""
    config, arrays = load(path)
    ids, bins = arrays["in.init_ids_few"], arrays["out.bins_few"]
    few = int(bins.sum())
    assert few < config["codes"] and len(np.unique(ids)) < len(ids)
    layer = PublishedResidualQuantizer(
        "audio", 1, config["codes"], kmeans_init=True, dim=arrays["in.z"].shape[-1]
    )
    layer.build((None, layer.dim))
    output, state = layer.stateless_step(
        arrays["in.x_normalised"][:few],
        training=False,
        draws={"kmeans": fractions(ids[None], few)},
    )
    close(state["code_vectors"][0], arrays["out.means_few"], "few")
    counts = np.bincount(to_numpy(output.codes)[:, 0], minlength=len(ids))
    close(state["counts"][0], 0.99 * bins + 0.01 * counts, "counts")


@pytest.mark.parametrize("path", golden_files("vq*.npz"), ids=lambda path: path.stem)
@pytest.mark.parametrize("block", ["training", "ours", "eval", "noema", "kmeans"])
def test_vq_like_published(path, block):
    config, arrays = load(path)
    kwargs = {
        "num_levels": 1,
        "codebook_size": config["codes"],
        "decay": config["decay"],
        "commitment_weight": config["commitment"],
    }
    if block == "ours":
        layer = ResidualQuantizer(
            normalize_codes=True, codebook_update="mean", **kwargs
        )
    else:
        layer = PublishedResidualQuantizer(
            "vq", ema=block != "noema", kmeans_init=block == "kmeans", **kwargs
        )
    layer.build((None, config["dim"]))
    load_published_quantizer(layer, weights_of(arrays) | {"embedding.initted": [0.0]})
    steps = [(f"step{step}.", f"step{step}.") for step in range(config["steps"])]
    if block in ("eval", "noema", "kmeans"):
        steps = [("", f"{block}.")]
    for before, after in steps:
        draws = {}
        if block == "kmeans":
            draws["kmeans"] = arrays["kmeans.in.init_ids"][None]
        prefixes = before, f"{after}out."
        slope = check_step(layer, arrays, prefixes, block != "eval", draws)
        if f"{after}after.embedding.weight" in arrays:
            expected = arrays[f"{after}after.embedding.weight"]
            close(layer.code_vectors[0], expected, "weight")
            close(layer.counts[0], arrays[f"{after}after.cluster_size"], "counts")
    if block == "noema":
        expected = arrays["noema.grad.embedding.weight"]
        assert relative_error(slope[0], expected) <= GRADIENT


@pytest.mark.parametrize("flavor", ["audio", "video"])
def test_published_quantizers_draw_for_themselves(flavor):
    layer = PublishedResidualQuantizer(
        flavor, 2, 4, kmeans_init=True, restart_unused_codes=True
    )
    vectors = np.random.default_rng(0).normal(size=(3, 5, 6)).astype("float32")
    assert np.isfinite(float(layer(vectors, training=True).loss))
    assert np.asarray(layer.kmeans_done).all()
