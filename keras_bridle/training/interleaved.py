"""BRIDLE as a whole: cold start, then tokenizer and encoder in turn."""

import contextlib
import functools
import json
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_bridle.config import (
    ArgumentError,
    MethodOptions,
    TrainingOptions,
    current_settings,
)
from keras_bridle.distribution import (
    broadcast_variables,
    is_chief,
    local_function,
    num_devices,
    own_directory,
)
from keras_bridle.models.arguments import nameless_config
from keras_bridle.models.backbone import BridleBackbone
from keras_bridle.models.feature_extractor import FeatureModel
from keras_bridle.models.heads import CodeDecoder, FeatureEstimator
from keras_bridle.models.inputs import PixelCheck, as_batch, filled_up, open_sides
from keras_bridle.models.presets import decoder_size, estimator_size, fixed_layout
from keras_bridle.models.teachers import as_teacher, check_grids, see_the_same
from keras_bridle.models.tokenizers import BridleTokenizer, RandomProjectionTokenizer
from keras_bridle.quantizer.residual_quantizer import ResidualQuantizer
from keras_bridle.training.batches import (
    batches_by_epoch,
    count_batches,
    first_batches,
    in_floatx,
)
from keras_bridle.training.optimizers import check_accumulation
from keras_bridle.training.phases import FitCall, Phase, by_size, phases, remarks
from keras_bridle.training.run import (
    cached_codes,
    check_cacheable,
    digest_of_arrays,
    open_run,
)
from keras_bridle.training.trainers import (
    EncoderPretrainer,
    JointPretrainer,
    TokenizerPretrainer,
)


class InterleavedPretraining:
    """Pretrains an encoder with BRIDLE, phase by phase.

    The cold start trains the encoder on the codes of a random projection. Then, in each
    round, a tokenizer is trained from the encoder, and the encoder from the tokenizer.
    Each phase is one `fit()` of an ordinary Keras model, `EncoderPretrainer`,
    `TokenizerPretrainer` or `JointPretrainer`.

    Args:
        backbone: `BridleBackbone`, the encoder to train.
        mask: optional mask layer. Defaults to `RandomMask()`.
        augmentation: optional Keras layer without weights, applied to raw input in
            training; in inference mode for k-means and `codes()`.
        config: optional `keras_bridle.config.MethodOptions`.
        teacher: optional pretrained encoder: a `BridleBackbone`, a classifier, or
            anything that `BridleBackbone.from_preset()` takes. The first tokenizer
            learns from it, without a cold start. Its grid of patches must divide that
            of `backbone`, or vice versa.
        **options: options of the method, which replace those of `config`: {options}

    Example:
    ```python
    import keras_bridle as kb
    import numpy as np

    backbone = kb.BridleBackbone(8, 32, 1, 2, 64, input_dims=(32, 32, 1))
    pretraining = kb.InterleavedPretraining(backbone, codebook_size=16, code_dim=8)
    images = np.random.rand(16, 32, 32, 1).astype("float32")
    pretraining.fit(
        images, rounds=1, encoder_epochs=1, tokenizer_epochs=1, batch_size=8, verbose=0
    )
    print(list(pretraining.history))  # ['0_cold_start', '1_tokenizer', '2_encoder']
    ```

    Reference:
        - [BRIDLE, 2025](https://arxiv.org/abs/2502.02118)
    """

    def __init__(
        self,
        backbone,
        mask=None,
        augmentation=None,
        config=None,
        teacher=None,
        **options,
    ):
        self.config = MethodOptions.make(config, **options)
        self.backbone = backbone
        self.teacher: Any = as_teacher(teacher, backbone)
        self.mask = mask
        self.augmentation = augmentation
        self.tokenizer: Any = None
        self.cold_start_tokenizer: Any = None
        self.decoder: Any = None
        self.estimator: Any = None
        self.history: dict[str, dict[str, list[float]]] = {}
        # The last compiled function, and the model and outputs it is for.
        self._functions: dict[tuple[str, ...], tuple] = {}
        self._check_parts()

    def __getattr__(self, name):
        if name in MethodOptions.fields():
            return getattr(self.config, name)
        raise AttributeError(name)

    def fit(
        self,
        inputs,
        directory=None,
        resume=False,
        steps_per_epoch=None,
        config=None,
        callbacks=(),
        on_start=None,
        on_phase_end=None,
        verbose=1,
        **options,
    ):
        """Runs all phases.

        Args:
            inputs: array, tensor or list of raw inputs, of shape `(num_examples,
                *input_dims)`; or a data set of batches that can be read again:
                `tf.data`, Grain, `DataLoader`, `PyDataset` or any iterable; or a
                function of the first epoch's number and, if it has an argument
                `first_batch`, of the first batch, that returns one. With several
                processes (see `distribute()`), give each its own shard of every batch,
                but whole arrays.
            directory: optional string or path for settings, weights of each phase,
                history and checkpoints.
            resume: bool, whether to resume the run in `directory`.
            steps_per_epoch: optional int, for data sets of unknown length or without an
                end; each epoch continues where the previous one stopped.
            config: optional `keras_bridle.config.TrainingOptions`.
            callbacks: list of Keras callbacks, for every phase.
            on_start: optional function of this object, called after all checks and
                before training.
            on_phase_end: optional function of `(phase, pretraining)`, called after each
                phase that was trained rather than loaded.
            verbose: 0 silent, 1 a progress bar, 2 Keras' line for each epoch.
            **options: options of training, which replace those of `config`: {options}

        Returns:
            The history: for each phase a dict of lists, one value per epoch.

        Raises:
            FileExistsError: if `directory` holds a run and `resume` is `False`.
            BlockingIOError: if another process uses `directory`.
            SaveError: if the disk is full. Earlier files are unharmed.
            NonFiniteLoss: after too many steps without a finite loss.
            Preempted: after SIGTERM, once the state is saved. It ends the program with
                code 143.
        """
        given = TrainingOptions.make(config, **options)
        by_epoch = functools.partial(
            batches_by_epoch,
            inputs,
            self.backbone.input_dims,
            given.batch_size,
            seed=self.config.seed,
        )
        make_batches = by_epoch(steps_per_epoch=steps_per_epoch)
        batches = make_batches(0)
        PixelCheck(self)(getattr(batches, "inputs", {}))
        num_batches = count_batches(batches, steps_per_epoch)
        batch_size = getattr(batches, "batch_size", None)
        training = by_size(given, num_batches, batch_size, self.teacher is not None)
        plan = phases(training, self.teacher is not None)
        check_accumulation(training, num_batches)
        if training.cache_codes:
            check_cacheable(batches, self.augmentation, self.config.tokenize)
        verbose = verbose if is_chief() else 0
        measures_speed = verbose == 1 and hasattr(batches, "reading_speed")
        call = FitCall(
            options=training,
            make_batches=make_batches,
            num_batches=num_batches,
            steps_per_epoch=steps_per_epoch,
            one_reading=by_epoch(steps_per_epoch=None),
            callbacks=tuple(callbacks),
            on_phase_end=on_phase_end,
            verbose=verbose,
            reading_speed=batches.reading_speed() if measures_speed else None,
        )
        if verbose:
            for remark in remarks(plan, num_batches, training, given):
                print(remark)

        def settings():
            return {
                **self.settings(),
                **training.settings(),
                "steps_per_epoch": steps_per_epoch,
                "num_batches": num_batches,
                "plan": plan,
            }

        self.backbone.trainable = True
        self.history = {}
        run = open_run(own_directory(directory), settings, training, resume, verbose)
        with run as files_of, contextlib.ExitStack() as stack:
            stack.callback(self._unfreeze)
            if on_start is not None:
                on_start(self)
            for index, phase in enumerate(plan):
                self._run_phase(index, phase, call, files_of(phase))
        return self.history

    def _unfreeze(self):
        """Unfreezes what phases have frozen."""
        parts = (self.tokenizer, self.decoder, self.estimator, self.teacher)
        for part in (*parts, self.backbone):
            if part is not None:
                part.trainable = True

    def _check_parts(self):
        """Raises errors that would otherwise come after the cold start."""
        if self.augmentation is not None and self.augmentation.weights:
            expected = (
                "a layer without weights, as each phase copies it: what is fitted to "
                "data belongs in the encoder's `front_end`"
            )
            raise ArgumentError("augmentation", expected, self.augmentation)
        self._new_quantizer()
        self._new_decoder(self.config.num_levels).build(
            (None, None, self.backbone.hidden_dim)
        )
        self._new_estimator(self.backbone).build((None, None, self.config.code_dim))
        if self.teacher is not None:
            grids = [x.grid_of_inputs() for x in (self.teacher, self.backbone)]
            # The length of waveforms is known later.
            if None not in (*grids[0], *grids[1]):
                check_grids(*grids)
        if self.backbone.front_end is not None:
            # The tokenizer's encoder gets its own front end.
            serialized = keras.saving.serialize_keras_object(self.backbone.front_end)
            keras.saving.deserialize_keras_object(serialized)

    def codes(self, inputs, batch_size=64, with_distances=False):
        """Tokenizes raw inputs with the latest tokenizer.

        Args:
            inputs: array of shape `(num_examples, *input_dims)`.
            batch_size: int.
            with_distances: bool, whether to return distances, too.

        Returns:
            int32 array of shape `(num_examples, num_patches, num_levels)`; codes are -1
            at padded patches. With distances, a tuple of it and of each patch's
            distance to its first code vector, of shape `(num_examples, num_patches)`.
        """
        if self.tokenizer is None:
            raise ValueError("There is no tokenizer yet: call `fit()` first.")
        dims = open_sides(self.backbone.input_dims)
        inputs = as_batch(PixelCheck(self)(inputs), dims)
        outputs = self._feature_function(self.tokenizer, "codes", "distances")
        size = min(batch_size, len(inputs))
        found = [
            outputs(in_floatx(filled_up(inputs[start : start + size], size)))
            for start in range(0, len(inputs), size)
        ]
        codes, distances = (
            np.concatenate([batch[name] for batch in found])[: len(inputs)]
            for name in ("codes", "distances")
        )
        return (codes, distances) if with_distances else codes

    def _feature_function(self, tokenizer, *wanted):
        """Returns a function from raw inputs to outputs of a tokenizer."""
        trainable = self.backbone.trainable, tokenizer.trainable
        key = tokenizer, trainable, num_devices()
        known = self._functions.get(wanted)
        if known is None or known[0] != key:
            model = FeatureModel(
                self.backbone, tokenizer, wanted, augmentation=self.augmentation
            )
            known = self._functions[wanted] = key, local_function(model)
        return known[1]

    def _run_phase(self, index, phase, call, files):
        """Trains a phase, or loads it if it is finished."""
        # A phase draws the same numbers whether or not the run was resumed.
        keras.utils.set_random_seed((self.config.seed * 1000 + index) % 2**32)
        trainer = self._trainer(phase, call.options)
        names = (*trainer.trained_parts, "tokenizer")
        parts = {name: getattr(trainer, name) for name in names}
        if files.is_done():
            self.history[phase.name] = files.load(parts)
        else:
            self.history[phase.name] = self._train(trainer, phase, call, files)
            files.save(parts, self.history[phase.name])
            if call.on_phase_end is not None:
                call.on_phase_end(phase, self)
            files.mark_done()
        files.close()

    def _train(self, trainer, phase, call, files):
        """Trains or resumes a phase, and returns its history."""
        call.compile(trainer, phase)
        # All processes together. TensorFlow traces a step twice if it makes variables.
        trainer.optimizer.build(trainer.trainable_variables)
        make_batches, options = call.make_batches, call.options
        if not files.restore(trainer):
            self._set_codebooks(phase, call.one_reading(0), options.adapt_batches)
        broadcast_variables(trainer.variables)
        if options.cache_codes and phase.kind in ("cold_start", "encoder"):
            codes = self._cached_codes(trainer.tokenizers, make_batches(0), files)
            make_batches = functools.partial(make_batches, codes=codes)
        return call.fit(trainer, phase, make_batches, files.checkpoint)

    def _set_codebooks(self, phase, batches, count):
        """Initializes a new tokenizer's codebooks by k-means on its vectors."""
        if phase.kind != "encoder" and count > 0:
            outputs = self._feature_function(self.tokenizer, "vectors", "is_real")
            checked = map(PixelCheck(self), first_batches(batches, count))
            found = map(outputs, checked)
            self.tokenizer.quantizer.adapt((x["vectors"], x["is_real"]) for x in found)

    def _cached_codes(self, tokenizers, batches, files):
        """Computes a phase's codes once, with both tokenizers."""
        outputs = [self._feature_function(x, "codes") for x in tokenizers]

        def tokenize(inputs):
            return np.concatenate([x(inputs)["codes"] for x in outputs], axis=2)

        return cached_codes(
            tokenize, tokenizers, batches.inputs, batches.batch_size, files.folder
        )

    def _trainer(self, phase, options):
        """Makes the networks of a phase from the results of earlier ones."""
        if phase.kind != "encoder":
            self.tokenizer = self.new_tokenizer(phase)
        if phase.kind == "cold_start":
            self.cold_start_tokenizer = self.tokenizer
        teacher = self._teacher(phase)
        if phase.kind in ("tokenizer", "joint"):
            self.estimator = self._new_estimator(teacher)
        # Layers without seeds draw them in turn, so the order of creation counts.
        if phase.kind == "tokenizer":
            return TokenizerPretrainer(
                self.tokenizer,
                self.estimator,
                teacher,
                _fresh_copy(self.augmentation),
                None if see_the_same(teacher, self.backbone) else self.backbone,
            )
        earlier = None
        if self.config.keep_cold_start_codes and phase.kind in ("encoder", "joint"):
            earlier = self.cold_start_tokenizer
        self.decoder = self._next_decoder(keeps_codes=earlier is not None)
        parts = {
            "backbone": self.backbone,
            "decoder": self.decoder,
            "tokenizer": self.tokenizer,
            "mask": _fresh_copy(self.mask),
            "augmentation": _fresh_copy(self.augmentation),
            "earlier_tokenizer": earlier,
        }
        if phase.kind == "joint":
            return JointPretrainer(
                **parts,
                estimator=self.estimator,
                tokenizer_every=options.tokenizer_every,
                tokenizer_loss_ratio=options.tokenizer_loss_ratio,
            )
        return EncoderPretrainer(**parts, tokenize=self.config.tokenize)

    def _teacher(self, phase):
        """Returns the encoder that a phase's tokenizer learns from."""
        is_first = phase.name == "0_tokenizer"
        return self.teacher if is_first else self.backbone

    def new_tokenizer(self, phase):
        """Makes the initial tokenizer of a phase of any kind but `"encoder"`."""
        quantizer = self._new_quantizer()
        if phase.kind != "cold_start":
            config = self.backbone.get_config()
            config |= {"name": "tokenizer_backbone", "trainable": True}
            backbone = type(self.backbone).from_config(config)
            if self.config.tokenizer_start == "encoder":
                start = self._teacher(phase)
                if nameless_config(start) != nameless_config(self.backbone):
                    start = self.backbone
                backbone.set_weights(start.get_weights())
            return BridleTokenizer(backbone, quantizer, name="tokenizer")
        has_positions = self.config.cold_start_positions
        return RandomProjectionTokenizer(
            self.backbone.patch_size,
            self.backbone.hidden_dim,
            quantizer,
            fixed_layout(self.backbone) if has_positions else None,
            self.config.cold_start_centered,
            name="tokenizer",
        )

    def _new_quantizer(self):
        config = self.config
        options = {"normalize": config.normalize, "seed": config.seed}
        # Codebooks that learn by gradient have no counts to restart by.
        if config.quantizer_options.get("codebook_update") != "gradient":
            options["restart_threshold"] = config.restart_threshold
        options |= config.quantizer_options
        return ResidualQuantizer(
            config.num_levels, config.codebook_size, dim=config.code_dim, **options
        )

    def _new_decoder(self, num_levels):
        return CodeDecoder(
            num_levels,
            self.config.codebook_size,
            use_class_token=self.backbone.use_class_token,
            name="decoder",
            **{**decoder_size(self.backbone), **self.config.decoder_options},
        )

    def _next_decoder(self, keeps_codes):
        num_levels = self.config.num_levels
        decoder = self._new_decoder(num_levels * (2 if keeps_codes else 1))
        if self.decoder is not None and self.config.decoder_start == "previous":
            decoder.build((None, None, self.backbone.hidden_dim))
            decoder.copy_body(self.decoder)
            if keeps_codes:
                decoder.copy_last_levels(self.decoder, num_levels)
        return decoder

    def _new_estimator(self, teacher):
        return FeatureEstimator(
            teacher.hidden_dim,
            name="estimator",
            **{**estimator_size(self.backbone), **self.config.estimator_options},
        )

    def settings(self):
        """Returns the constructor's arguments, for JSON."""
        arguments = {
            "backbone": self.backbone,
            "mask": self.mask,
            "augmentation": self.augmentation,
            **self.config.settings(),
        }
        settings = {"dtype_policy": keras.config.dtype_policy().name} | {
            name: nameless_config(value) for name, value in arguments.items()
        }
        if self.teacher is not None:
            weights = digest_of_arrays(self.teacher.get_weights())
            settings["teacher"] = nameless_config(self.teacher) | {"weights": weights}
        return settings


def _listed(options, indent):
    """Lists a class of options for a docstring."""
    lines = (
        f"- `{name}`: {field.metadata['help']}."
        for name, field in options.fields().items()
    )
    return f"\n{' ' * indent}".join(lines)


for described, kind, indent in (
    (InterleavedPretraining, MethodOptions, 12),
    (InterleavedPretraining.fit, TrainingOptions, 16),
):
    # With `python -OO`, there is no docstring to fill in.
    text = described.__doc__ or ""
    described.__doc__ = text.replace("{options}", _listed(kind, indent))


def _fresh_copy(layer):
    """Copies a layer without weights, so that each phase starts with its own seed."""
    return None if layer is None else type(layer).from_config(layer.get_config())


def load_run(directory):
    """Loads the encoder and the tokenizer of the last finished phase of a run.

    Args:
        directory: string or path, the `directory` of `InterleavedPretraining.fit()`.

    Returns:
        An `InterleavedPretraining` with `backbone` and `tokenizer`, and without
        augmentation. Networks have the dtype policy of the preset in the directory, or
        else the global one.

    Raises:
        FileNotFoundError: if there is no run, or no phase is finished.

    Example:
    ```python
    import tempfile
    import keras_bridle as kb
    import numpy as np

    backbone = kb.BridleBackbone(8, 32, 1, 2, 64, input_dims=(32, 32, 1))
    pretraining = kb.InterleavedPretraining(backbone, codebook_size=8, code_dim=8)
    images = np.random.rand(16, 32, 32, 1).astype("float32")
    options = {"rounds": 0, "cold_start_epochs": 1, "batch_size": 8, "verbose": 0}
    with tempfile.TemporaryDirectory() as directory:
        pretraining.fit(images, directory=directory, **options)
        loaded = kb.load_run(directory)
    print((loaded.codes(images) == pretraining.codes(images)).all())  # True
    ```
    """
    root = Path(directory)
    settings = json.loads((root / "settings.json").read_text())["settings"]
    settings = current_settings(settings)
    state, names = root / "state.json", []
    if state.exists():
        names = json.loads(state.read_text())["phases_done"]
    done = [Phase(*entry) for entry in settings["plan"] if entry[0] in names]
    trained = [phase for phase in done if phase.kind != "tokenizer"]
    if not trained:
        raise FileNotFoundError(
            f"The run in {str(root)!r} has not finished an encoder phase yet."
        )
    made = [phase for phase in done if phase.kind != "encoder"][-1]
    if (root / "preset" / "config.json").exists():
        # It has its names and dtype policies; weights come with the phases.
        backbone = BridleBackbone.from_preset(str(root / "preset"))
    else:
        backbone = keras.saving.deserialize_keras_object(settings["backbone"])
    # Networks of other phases, and their options, are not needed.
    unused = {"decoder_options", "estimator_options"}
    names = settings.keys() & MethodOptions.fields().keys() - unused
    pretraining = InterleavedPretraining(backbone, **{x: settings[x] for x in names})
    folder = root / "phases"
    backbone.load_weights(folder / trained[-1].name / "backbone.weights.h5")
    pretraining.tokenizer = tokenizer = pretraining.new_tokenizer(made)
    if not tokenizer.built:
        tokenizer.build(backbone.maps_shape)
    tokenizer.load_weights(folder / done[-1].name / "tokenizer.weights.h5")
    return pretraining
