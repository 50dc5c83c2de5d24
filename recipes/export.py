r"""Exports an encoder, its codes or a classifier to formats that run without Keras.

    KERAS_BACKEND=jax python recipes/export.py --from runs/audio --format onnx

`--from` names the directory of a run, a preset's folder, or an untrained size such as
`bridle_audio_tiny`. The file includes the front end: it takes raw waveforms or pixels.
It returns a classifier's scores (logits, if `fine_tune.py` trained it), or the outputs
that `--outputs` names: `features` (the mean of the patches), `patches`, `is_real`
(which patches are not padding), and for a run `codes`.

Batches may have any size and recordings any length, unless `--seconds` fixes it.
LiteRT takes one input at a time, and needs `--seconds` for audio. The recipe then runs
the file in its own runtime and compares it with the network. docs/export.md lists
formats and their limits.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import dataclasses
from pathlib import Path
from typing import Literal

import keras
import numpy as np

from keras_bridle.cli import Setup, check_source, load_encoder
from keras_bridle.config import (
    ArgumentError,
    Count,
    Natural,
    Positive,
    RunOptions,
    flag,
)
from keras_bridle.export import FORMATS, differences, load_exported
from keras_bridle.modalities import AUDIO, MODALITIES, modality_of
from keras_bridle.models.feature_extractor import FeatureModel
from keras_bridle.models.presets import (
    preset_folder,
    preset_modality,
    saved_classifier_config,
)


@dataclasses.dataclass(kw_only=True)
class Options(RunOptions):
    """Options of this recipe."""

    hidden = ("dtype_policy", "resume", "quiet")

    source: str | None = flag(None, "run, preset or size", name="--from")
    format: Literal["onnx", "litert", "saved_model", "torch", "openvino"] = flag(
        "onnx", "onnx, litert, saved_model, torch or openvino"
    )
    outputs: tuple[Literal["features", "patches", "is_real", "codes"], ...] | None = (
        flag(None, "outputs of an encoder: features, patches, is_real, codes")
    )
    segment_means: Count = flag(1, "features: concatenate the means of N segments")
    seconds: Positive | None = flag(None, "fixed length of recordings", only="audio")
    overwrite: bool = flag(False, "replace the contents of --directory")
    seed: Natural = flag(0, "seed of the inputs for the comparison")


class Export(Setup):
    """The command line, the network and its file."""

    again = "overwrite"

    def defaults(self, given):
        return {"directory": "runs/exported"}

    def is_taken(self, folder):
        return any(folder.glob("model*"))

    def check(self):
        if self.options.source is None:
            raise ArgumentError("source", "given", None)
        check_source(self.options.source)
        super().check()

    def network(self):
        """Loads the network to export."""
        options, path = self.options, Path(self.options.source)
        has_phases = not path.is_dir() or (path / "phases").is_dir()
        preset = str(path) if has_phases else preset_folder(path)
        if saved_classifier_config(preset) is None:
            encoder = load_encoder(options.source)
            outputs = options.outputs or ("features", "codes")
            if encoder.tokenizer is None:
                outputs = options.outputs or ("features",)
            return FeatureModel(
                encoder.backbone, encoder.tokenizer, outputs, options.segment_means
            )
        if options.outputs is not None:
            raise ArgumentError("outputs", "left out for a classifier", options.outputs)
        kind = MODALITIES[preset_modality(preset)].classifier_class
        return kind.from_preset(preset)

    def shape(self, encoder):
        """The shape of a batch of inputs."""
        seconds, sides = self.options.seconds, encoder.input_dims
        is_fixed = self.options.format == "litert"
        if seconds is not None:
            sides = AUDIO.input_shape(AUDIO.reading(encoder, seconds=seconds))
        if is_fixed and None in sides:
            raise ArgumentError("seconds", "given for LiteRT", None)
        return (1 if is_fixed else None, *sides)

    def compare(self, network, path, shape):
        """Compares the file with the network on the same noise."""
        encoder = network.backbone
        # By default, two inputs of one second.
        one_second = AUDIO.sizes(encoder)["sample_rate"] if len(shape) == 2 else None
        shape = (shape[0] or 2, *(side or one_second for side in shape[1:]))
        low, high = (-1, 1) if one_second else (0, 255)
        rng = np.random.default_rng(self.options.seed)
        inputs = rng.uniform(low, high, shape).astype("float32")
        found = differences(network, load_exported(path), inputs)
        for name, difference in found.items():
            self.say(f"{name}: differs by {difference:.1e} from the network's")


def main(arguments=None):
    with Export(Options, __doc__, arguments) as recipe:
        options = recipe.options
        network = recipe.network()
        recipe.refuse_idle(modality_of(network.backbone))
        shape = recipe.shape(network.backbone)
        format = {"saved_model": "tf_saved_model"}.get(options.format, options.format)
        path = Path(options.directory, f"model{FORMATS[format].ending}")
        signature = [keras.InputSpec(shape=shape)]
        network.export(path, format, input_signature=signature)
        if getattr(network, "class_names", None):
            names = "\n".join(network.class_names)
            Path(options.directory, "class_names.txt").write_text(names)
        recipe.compare(network, path, shape)


if __name__ == "__main__":
    main()
