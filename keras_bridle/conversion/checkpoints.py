"""Public encoders of MAE, BEiT and their like, read from their own files.

Names of all layouts are converted to timm's, which `load_published()` reads.
"""

import functools
import json
import math
import re
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_bridle.config import check
from keras_bridle.conversion.beats import (
    beats_arguments,
    beats_weights,
    blocks_of,
    is_beats,
)
from keras_bridle.conversion.published_state import read_published_file, weights_of
from keras_bridle.conversion.published_video import join_qkv, renamed
from keras_bridle.conversion.published_weights import load_published
from keras_bridle.layers.log_mel import LogMelSpectrogram
from keras_bridle.layers.pixels import IMAGENET_MEAN, IMAGENET_STD, PixelNormalization
from keras_bridle.models.backbone import BridleBackbone
from keras_bridle.models.beats_backbone import BeatsBackbone

_STEMS = ("model.safetensors", "pytorch_model.bin")
WEIGHTS = (*_STEMS, *(f"{stem}.index.json" for stem in _STEMS))
# In order: patterns of names in transformers and original code, and timm's names.
_NAMES = (
    (r"^(module|model|vit|videomae|beit|data2vec_vision|encoder)\.", ""),
    (r"^encoder\.", ""),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.(cls|mask)_token$", r"\1_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^layers?\.(\d+)\.", r"blocks.\1."),
    (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.attention\.(?:attention\.)?([qkv])(?:uery|ey|alue|_proj)\.", r".attn.\1."),
    (r"\.(?:attention\.attention|attn)\.([qv])_bias$", r".attn.\1.bias"),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.lambda_([12])$", r".gamma_\1"),
    (r"^layernorm\.", "norm."),
    # A table of one block has its number; a table that all blocks share has none.
    (r"^blocks\.(\d+)\..*(relative_position_bias_table)$", r"rel_pos_bias.\1.\2"),
    (r"^(shared|relative)_position_bias\.", "rel_pos_bias."),
)
# Weights of the heads for pretraining and classification.
_HEADS = re.compile(
    r"^(predictor|quantize|decoder|mask_token|encoder_to_decoder|head|lm_head|cls_pt|fc_norm|pooler|"
    r"classifier)"
)
# These norms of pooled features replace the norm of tokens.
_POOLED_NORMS = {"fc_norm.weight", "pooler.layernorm.weight"}
_BIAS = "rel_pos_bias."
_SHARED_BIAS = f"{_BIAS}relative_position_bias_table"
_HEADS_OF_WIDTH = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}
# AudioMAE's normalization.
_AUDIO_MEAN, _AUDIO_STD = -4.2677393, 4.5689974


def is_checkpoint(preset):
    """Returns whether a preset is a file or folder of another library's weights."""
    path = Path(preset)
    if path.is_file():
        return path.suffix in (".safetensors", ".bin", ".pth", ".pt")
    config = _json(path / "config.json")
    return (bool(config) and "config" not in config) or _torch_file(path) is not None


def _torch_file(folder):
    """Returns the only PyTorch file in a folder without settings or a run."""
    if any((folder / name).exists() for name in ("config.json", "preset", "phases")):
        return None
    files = [x for x in folder.rglob("*.pt*") if x.suffix in (".pt", ".pth")]
    if len(files) > 1:
        expected = f"'{folder}' holds several files of weights: name one of"
        raise ValueError(f"{expected} {sorted(x.name for x in files)}")
    return files[0] if files else None


def fetched(preset):
    """Downloads a public encoder, and returns its path; returns other presets."""
    if not str(preset).startswith("hf://"):
        return preset
    from huggingface_hub import snapshot_download

    parts = preset.removeprefix("hf://").split("/")
    name, file = "/".join(parts[:2]), "/".join(parts[2:])

    def folder(*patterns):
        # Fail at once if the hub is unreachable; downloads of files are retried.
        wanted = ["*.json", "README.md", *patterns]
        return Path(snapshot_download(name, allow_patterns=wanted))

    try:
        if file:
            path = folder(file) / file
            if not path.exists():
                raise FileNotFoundError(f"there is no {file}")
            return path
        config = _json(folder() / "config.json")
        if "config" in config:
            return preset
        if config:
            return folder("model*.safetensors", "pytorch_model*.bin")
        return folder("*.pt", "*.pth")
    # The hub's library raises errors of many HTTP and file packages.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{preset!r} cannot be fetched: {reason}") from error


class _Replaced:
    """Returns zeros, as JAX would compile a random initializer for each shape."""

    def __call__(self, shape, dtype=None):
        return keras.ops.convert_to_tensor(np.zeros(shape, "float32"), dtype)


class _GlorotUniform(_Replaced, keras.initializers.GlorotUniform):
    pass


class _RandomNormal(_Replaced, keras.initializers.RandomNormal):
    pass


def load_checkpoint(cls, preset, load_weights=True, **kwargs):
    """Builds an encoder of a class from a public one in a folder or file.

    Other arguments replace the encoder's. Positions are resized to `input_dims`.
    """
    path = Path(preset)
    config = _json(path / "config.json")
    kind, arguments, state = _encoder(path, config, kwargs, not load_weights)
    if not issubclass(kind, cls) and not issubclass(cls, kind):
        raise ValueError(f"'{path}' is one for {kind.__name__}, not {cls.__name__}")
    expected = f"given for a width of {arguments['hidden_dim']}"
    check(arguments["num_heads"] is not None, "num_heads", expected, None)
    cls = cls if issubclass(cls, kind) else kind
    if not load_weights:
        return cls(**arguments)
    replaced = {"glorot_uniform": _GlorotUniform, "RandomNormal": _RandomNormal}
    # Front ends and subclasses may have weights that the file lacks.
    is_all_in_file = cls is kind and "front_end" not in kwargs
    with keras.saving.custom_object_scope(replaced if is_all_in_file else {}):
        backbone = cls(**arguments)
    if kind is BridleBackbone:
        _fit_positions(backbone, config, state)
    left = sorted(state.keys() - load_published(backbone, state))
    unknown = [name for name in left if not _HEADS.match(name)]
    if unknown:
        raise ValueError(f"'{path}' has weights of another network: {unknown[:8]}")
    tops = ", ".join(sorted({name.split(".")[0] for name in left}))
    parts = [f"Left out of {path.name}: {tops}"] if left else []
    parts += [f"License of {path.name}: {x}" for x in _licenses(path)]
    if parts:
        print(". ".join(parts))
    return backbone


def encoder_config(preset):
    """Returns the arguments of a public encoder, as in a preset's config."""
    path = Path(preset)
    config = _json(path / "config.json")
    _, arguments, _ = _encoder(path, config, {}, only_shapes=True)
    front_end = keras.saving.serialize_keras_object(arguments["front_end"])
    return arguments | {"front_end": front_end}


def _encoder(path, config, given, only_shapes=False):
    """Returns an encoder's class, arguments and weights."""
    state, settings = _read(path, only_shapes)
    if is_beats(state):
        state = beats_weights(path, state)
        return BeatsBackbone, beats_arguments(path, settings, state) | given, state
    state = _timm_names(state)
    arguments = _arguments(path, config, state) | given
    sides = given.get("input_dims", (None,))[:-1]
    is_known = len(sides) == len(arguments["patch_size"]) and None not in sides
    if is_known and "trained_grid" not in given:
        arguments.pop("trained_grid", None)
    return BridleBackbone, arguments, state


def _json(path):
    try:
        return json.loads(path.read_text("utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise ValueError(f"'{path}' is damaged: {error}") from error


def _licenses(path):
    """Returns the licenses that the front matter of a README names."""
    card = (path.parent if path.is_file() else path) / "README.md"
    text = card.read_text("utf-8") if card.is_file() else ""
    front = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    return re.findall(r"^license:\s*(.+)$", front[1], re.MULTILINE) if front else []


def _read(path, only_shapes):
    """Returns the weights of a file or of a folder's shards, and BEATs' settings."""
    if path.is_file():
        content = read_published_file(path, only_shapes)
        entries = content if isinstance(content, dict) else {}
        key = "model" if isinstance(entries.get("model"), dict) else None
        return weights_of(content, path, key), entries.get("cfg") or {}
    files = [path / name for name in WEIGHTS if (path / name).is_file()]
    files = files[:1] or [x for x in [_torch_file(path)] if x is not None]
    if not files:
        wanted = ", ".join(WEIGHTS)
        raise FileNotFoundError(f"'{path}' holds no weights. Looked for {wanted}")
    if files[0].suffix == ".json":
        names = sorted(set(_json(files[0]).get("weight_map", {}).values()))
        parts = [_read(path / name, only_shapes)[0] for name in names]
        return functools.reduce(dict.__or__, parts, {}), {}
    return _read(files[0], only_shapes)


def _timm_names(state):
    """Converts names of weights to timm's, and merges queries, keys and values."""
    # BEiT's head has a norm, too. In pretraining it replaces a missing encoder norm.
    found = renamed(state, _NAMES)
    found = {k: v for k, v in found.items() if "relative_position_index" not in k}
    for block in blocks_of(found):
        join_qkv(found, f"{block}.attn.")
    return found


def _arguments(path, config, state):
    """Returns the arguments of a `BridleBackbone`, from config and weights."""
    absent = {"patch_embed.proj.weight", "norm.weight"} - state.keys()
    if config.get("use_mean_pooling") or state.keys() & _POOLED_NORMS:
        absent.discard("norm.weight")
    blocks = blocks_of(state)
    if absent or not blocks:
        raise ValueError(
            f"'{path}' holds no encoder of MAE, VideoMAE, AudioMAE, BEiT or data2vec: "
            f"it lacks {sorted(absent) or 'blocks'}. It has {sorted(state)[:5]}"
        )
    hidden_dim, channels, *patch = state["patch_embed.proj.weight"].shape
    biases = [name for name in state if name.startswith(_BIAS)]
    heads = config.get("num_attention_heads", _HEADS_OF_WIDTH.get(hidden_dim))
    is_clip = len(patch) == 3
    layout = "sequence" if is_clip else "learned"
    if biases:
        heads = state[biases[0]].shape[1]
        layout = "shared_relative" if biases == [_SHARED_BIAS] else "relative"
    arguments: dict[str, Any] = {
        "patch_size": tuple(patch),
        "hidden_dim": hidden_dim,
        "num_layers": len(blocks),
        "num_heads": heads,
        "mlp_dim": len(state["blocks.0.mlp.fc1.bias"]),
        "use_class_token": "cls_token" in state,
        "layer_norm_epsilon": config.get("layer_norm_eps", 1e-6),
        "position_layout": layout,
        "use_final_norm": "norm.weight" in state,
    }
    if "blocks.0.gamma_1" in state:
        arguments["layer_scale"] = config.get("layer_scale_init_value", 0.1)
    if channels == 1 and not is_clip:
        grid = _grid(config, state)
        options = {"mean": _AUDIO_MEAN, "std": _AUDIO_STD, "name": "log_mel"}
        front_end = LogMelSpectrogram(num_mel_bins=grid[1] * patch[1], **options)
        found = {"input_dims": (None,), "trained_grid": grid, "front_end": front_end}
        return arguments | found
    sides = tuple(np.broadcast_to(config.get("image_size", 224), 2).tolist())
    if not is_clip and (biases or "pos_embed" in state):
        sides = tuple(np.multiply(_grid(config, state), patch).tolist())
    frames = (config.get("num_frames", 16),) if is_clip else ()
    pixels = config.get("pretrained_cfg", {})
    pixels = _json(path / "preprocessor_config.json") or pixels
    front_end = PixelNormalization(
        pixels.get("image_mean", pixels.get("mean", IMAGENET_MEAN)),
        pixels.get("image_std", pixels.get("std", IMAGENET_STD)),
        name="pixel_normalization",
    )
    found = {"input_dims": (*frames, *sides, channels), "front_end": front_end}
    return arguments | found


def _grid(config, state):
    """Returns the grid of learned positions or relative biases."""
    _, channels, *patch = state["patch_embed.proj.weight"].shape
    has_token = "cls_token" in state
    biases = [array for name, array in state.items() if name.startswith(_BIAS)]
    if biases:
        count = len(biases[0]) - 3 * has_token
        side = (math.isqrt(count) + 1) // 2
    else:
        count = state["pos_embed"].shape[1] - has_token
        side = math.isqrt(count)
    grids = [(side, side)]
    if channels == 1:
        # AudioMAE has 128 bins in patches of 16.
        grids.insert(0, (count // 8, 8))
    size = config.get("pretrained_cfg", {}).get("input_size", [])[1:]
    size = size or config.get("image_size")
    if size:
        grids.insert(0, tuple(np.floor_divide(size, patch).tolist()))
    for grid in grids:
        if math.prod(_spans(grid) if biases else grid) == count:
            return grid
    raise ValueError(f"{count} positions are no square, so their grid is unknown")


def _spans(grid):
    """Returns the number of offsets between two cells along each side of a grid."""
    return tuple(2 * side - 1 for side in grid)


def _fit_positions(backbone, config, state):
    """Resizes learned positions to the grid of an encoder."""
    if backbone.position_biases:
        _resize_biases(config, state, backbone.trained_grid)
    if backbone.position_layout == "learned":
        token, table = np.split(state["pos_embed"], [backbone.use_class_token], axis=1)
        table = table.reshape(*_grid(config, state), -1)
        # timm antialiases, transformers and the original code do not.
        weights = _smooth_weights if "architecture" in config else _cubic_weights
        table = _resized(table, backbone.trained_grid, weights)
        table = table.reshape(1, -1, table.shape[-1])
        state["pos_embed"] = np.concatenate([token, table], axis=1)
    elif backbone.position_layout == "sequence":
        state.pop("pos_embed", None)


def _resize_biases(config, state, grid):
    """Resizes attention biases to a grid, and numbers them as the backbone does.

    Files of transformers are resized linearly as it does, others as in timm and in
    BEiT's code. Shared biases are added to those of a block, if it has any.
    """
    old, has_token = _grid(config, state), "cls_token" in state
    weights = _linear_weights if "model_type" in config else _geometric_weights
    shared = state.pop(_SHARED_BIAS, 0.0)
    names = [name for name in state if name.startswith(_BIAS)]
    names = names or [_SHARED_BIAS.replace(_BIAS, f"{_BIAS}0.")]
    count = math.prod(_spans(old))
    for name in names:
        table = state.get(name, 0.0) + shared
        if len(table) != count + 3 * has_token:
            raise ValueError(f"{name!r} is not for {old} patches: {table.shape}")
        offsets, token = np.split(table, [count])
        offsets = offsets.reshape(*_spans(old), -1)
        offsets = _resized(offsets, _spans(grid), weights).reshape(-1, table.shape[1])
        state[name] = np.concatenate([offsets, token])


def _resized(table, grid, weights):
    """Resizes `(rows, columns, dim)` with the weights of old cells in new ones."""
    for axis, side in enumerate(grid):
        if table.shape[axis] != side:
            table = np.moveaxis(table, axis, 0)
            table = np.tensordot(weights(len(table), side), table, 1)
            table = np.moveaxis(table, 0, axis)
    return table.astype("float32")


def _cubic_weights(old, new):
    """Returns PyTorch's bicubic weights of old cells in new ones, `(new, old)`."""
    centers = _centers(old, new)[:, None]
    cells = np.floor(centers).astype(int) + np.arange(-1, 3)
    weights = np.zeros((new, old))
    places = np.arange(new)[:, None], np.clip(cells, 0, old - 1)
    np.add.at(weights, places, _cubic(centers - cells, -0.75))
    return weights


def _smooth_weights(old, new):
    """Like `_cubic_weights()`, for PyTorch's `antialias=True`."""
    distances = _centers(old, new)[:, None] - np.arange(old)
    weights = _cubic(distances / max(old / new, 1.0), -0.5)
    return weights / weights.sum(axis=1, keepdims=True)


def _cubic(x, a):
    x = np.abs(x)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def _linear_weights(old, new):
    return _between(_centers(old, new), np.arange(old))


def _geometric_weights(old, new):
    """Spaces old offsets geometrically, so that they cover the new ones."""
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        ratio = (low + high) / 2
        is_wide = ratio ** (old // 2) - 1 > new // 2 * (ratio - 1)
        low, high = (low, ratio) if is_wide else (ratio, high)
    steps = np.cumsum(ratio ** np.arange(old // 2))
    knots = np.concatenate([-steps[::-1], [0.0], steps])
    return _between(np.arange(new) - new // 2, knots)


def _centers(old, new):
    """Returns the centers of new cells, in units of old ones."""
    return (np.arange(new) + 0.5) * old / new - 0.5


def _between(points, knots):
    return np.stack([np.interp(points, knots, one) for one in np.eye(len(knots))], 1)
