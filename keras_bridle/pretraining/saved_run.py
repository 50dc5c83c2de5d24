"""Reads a run back from its directory."""

import json
from pathlib import Path

import keras

from keras_bridle.models.bridle_backbone import BridleBackbone
from keras_bridle.pretraining.interleaved import InterleavedPretraining
from keras_bridle.pretraining.phases import Phase

_SETTINGS = (
    "num_levels",
    "codebook_size",
    "code_dim",
    "quantizer_options",
    "cold_start_positions",
    "cold_start_centered",
    "keep_cold_start_codes",
    "tokenizer_start",
    "tokenize",
    "seed",
)


def load_run(directory):
    """Loads the encoder and the tokenizer that a run has come to.

    Args:
        directory: string or path, the `directory` of `InterleavedPretraining.fit()`.
            The run may still go on; what counts is the last phase that is done.

    Returns:
        An `InterleavedPretraining` with `backbone` and `tokenizer`. Its `codes()` are
        of inputs that have their size already: it has no augmentation. Without a preset
        in the directory, networks have the dtype policy in force.

    Raises:
        FileNotFoundError: if there is no run, or none of its phases is done.
        ValueError: if its files cannot be read.

    Example:
    ```python
    import tempfile
    import numpy as np
    from keras_bridle import BridleBackbone, InterleavedPretraining
    from keras_bridle.pretraining import load_run

    backbone = BridleBackbone(
        patch_size=8, hidden_dim=32, num_layers=1, num_heads=2, mlp_dim=64,
        input_dims=(32, 32, 1),
    )
    pretraining = InterleavedPretraining(backbone, codebook_size=8, code_dim=8)
    images = np.random.rand(16, 32, 32, 1).astype("float32")
    with tempfile.TemporaryDirectory() as directory:
        pretraining.fit(
            images, rounds=0, cold_start_epochs=1, batch_size=8, verbose=0,
            directory=directory,
        )
        loaded = load_run(directory)
    print((loaded.codes(images) == pretraining.codes(images)).all())  # True
    ```
    """
    root = Path(directory)
    settings = _read(root / "settings.json", "settings")
    plan = [Phase(*entry) for entry in settings["plan"]]
    done = []
    if (root / "state.json").exists():
        names = _read(root / "state.json", "phases_done")
        done = [phase for phase in plan if phase.name in names]
    if not done:
        raise FileNotFoundError(f"No phase of the run in '{root}' is done yet.")
    pretraining = InterleavedPretraining(
        _backbone(root, settings),
        **{name: settings[name] for name in _SETTINGS if name in settings},
    )
    trained = [phase for phase in done if phase.kind != "tokenizer"][-1]
    made = [phase for phase in done if phase.kind != "encoder"][-1]
    pretraining.backbone.load_weights(_weights(root, trained, "backbone"))
    pretraining.tokenizer = pretraining.new_tokenizer(made)
    if not pretraining.tokenizer.built:
        pretraining.tokenizer.build(pretraining.backbone.features_shape)
    pretraining.tokenizer.load_weights(_weights(root, done[-1], "tokenizer"))
    return pretraining


def _weights(root, phase, name):
    return root / "phases" / phase.name / f"{name}.weights.h5"


def _backbone(root, settings):
    if (root / "preset" / "config.json").exists():
        # It knows its names and dtype policies; weights come with the phases.
        return BridleBackbone.from_preset(str(root / "preset"))
    return keras.saving.deserialize_keras_object(settings["backbone"])


def _read(path, name):
    if not path.exists():
        raise FileNotFoundError(f"There is no run in '{path.parent}': no {path.name}.")
    try:
        return json.loads(path.read_text())[name]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged or of no run ({error!r})") from error
