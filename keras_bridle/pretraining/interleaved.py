"""The whole of BRIDLE: cold start, then tokenizer and encoder in turn."""

import csv
import itertools
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_bridle.layers.residual_quantizer import ResidualQuantizer
from keras_bridle.models.bridle_tokenizer import BridleTokenizer
from keras_bridle.models.code_decoder import CodeDecoder
from keras_bridle.models.feature_estimator import FeatureEstimator
from keras_bridle.models.presets import decoder_size, estimator_size
from keras_bridle.models.random_projection_tokenizer import RandomProjectionTokenizer
from keras_bridle.pretraining.array_batches import ArrayBatches
from keras_bridle.pretraining.encoder_pretrainer import EncoderPretrainer
from keras_bridle.pretraining.joint_pretrainer import JointPretrainer
from keras_bridle.pretraining.optimization import adamw, warmup_cosine
from keras_bridle.pretraining.phase_checkpoint import PhaseCheckpoint
from keras_bridle.pretraining.rich_progress import RichProgress
from keras_bridle.pretraining.run_directory import RunDirectory
from keras_bridle.pretraining.tokenizer_pretrainer import TokenizerPretrainer


class Phase(NamedTuple):
    """One phase of the plan.

    Attributes:
        name: string, such as `"2_encoder"`.
        kind: string: `"cold_start"`, `"tokenizer"`, `"encoder"` or `"joint"`.
        epochs: int.
        learning_rate: float, the highest of the phase.
    """

    name: str
    kind: str
    epochs: int
    learning_rate: float


class InterleavedPretraining:
    """Pretrains an encoder by BRIDLE, phase by phase.

    The cold start trains the encoder on the codes of a random projection. Then, in each
    round, a tokenizer is trained from the encoder, and the encoder from the tokenizer.
    Each phase is one `fit()` of an ordinary Keras model, `EncoderPretrainer`,
    `TokenizerPretrainer` or `JointPretrainer`.

    Args:
        backbone: `BridleBackbone`, the encoder to train.
        num_levels: int, levels of the residual quantizers.
        codebook_size: int, codes of each level.
        code_dim: int, size of the code vectors.
        quantizer_options: optional dict, more arguments of `ResidualQuantizer`.
        mask: optional mask layer. Defaults to `RandomMask()`.
        augmentation: optional Keras layer applied to raw input in training.
        decoder_options: optional dict, arguments of `CodeDecoder` in place of the
            default size for the encoder.
        estimator_options: optional dict, arguments of `FeatureEstimator` likewise.
        cold_start_positions: bool, whether the cold start's random projection sees
            positions, as published.
        tokenizer_start: string, what a tokenizer's own encoder starts as: `"encoder"`,
            a copy of the encoder trained so far, or `"random"`.
        seed: int, of everything that is drawn.

    Raises:
        ValueError: for settings that do not fit each other.

    Example:
    ```python
    import numpy as np
    from keras_bridle import BridleBackbone, InterleavedPretraining

    backbone = BridleBackbone(
        patch_size=8, hidden_dim=32, num_layers=1, num_heads=2, mlp_dim=64,
        input_dims=(32, 32, 1),
    )
    pretraining = InterleavedPretraining(backbone, codebook_size=16, code_dim=8)
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
        num_levels=4,
        codebook_size=256,
        code_dim=256,
        quantizer_options=None,
        mask=None,
        augmentation=None,
        decoder_options=None,
        estimator_options=None,
        cold_start_positions=False,
        tokenizer_start="encoder",
        seed=0,
    ):
        if tokenizer_start not in ("encoder", "random"):
            raise ValueError(
                "`tokenizer_start` must be 'encoder' or 'random'. "
                f"Received: tokenizer_start={tokenizer_start!r}"
            )
        self.backbone = backbone
        self.num_levels = num_levels
        self.codebook_size = codebook_size
        self.code_dim = code_dim
        self.quantizer_options = dict(quantizer_options or {})
        self.mask = mask
        self.augmentation = augmentation
        self.decoder_options = dict(decoder_options or {})
        self.estimator_options = dict(estimator_options or {})
        self.cold_start_positions = cold_start_positions
        self.tokenizer_start = tokenizer_start
        self.seed = seed
        self.tokenizer: Any = None
        self.decoder: Any = None
        self.estimator: Any = None
        self.history: dict[str, dict[str, list[float]]] = {}
        # Wrong options are an error now, not after the cold start.
        self._quantizer(), self._new_decoder(), self._new_estimator()

    def fit(
        self,
        inputs,
        rounds=2,
        encoder_epochs=100,
        tokenizer_epochs=30,
        cold_start_epochs=None,
        joint=False,
        batch_size=64,
        steps_per_epoch=None,
        encoder_learning_rate=5e-4,
        tokenizer_learning_rate=2e-4,
        warmup=0.05,
        weight_decay=1e-4,
        clip_norm=None,
        gradient_accumulation_steps=None,
        ema_momentum=None,
        adapt_batches=16,
        jit_compile="auto",
        directory=None,
        resume=False,
        checkpoint_every=1,
        tensorboard=True,
        callbacks=(),
        on_phase_end=None,
        verbose=1,
    ):
        """Runs all phases.

        Args:
            inputs: array of raw inputs, of shape `(num_examples, *input_dims)`; or a
                `tf.data.Dataset`, `keras.utils.PyDataset` or whatever `fit()` takes and
                can be read again and again, of batches of them; or a function that
                makes such a data set from the number of the first epoch it is to serve,
                so that a resumed phase sees the batches that it would have seen.
            rounds: int, how often tokenizer and encoder are trained after the cold
                start.
            encoder_epochs: int, epochs of an encoder phase.
            tokenizer_epochs: int, epochs of a tokenizer phase.
            cold_start_epochs: optional int; as many as `encoder_epochs` by default.
            joint: bool. `True` trains tokenizer and encoder in one phase of
                `rounds * encoder_epochs` epochs after the cold start.
            batch_size: int, for arrays.
            steps_per_epoch: optional int, for data sets that do not know their length
                or never end; each epoch goes on where the one before stopped.
            encoder_learning_rate: float.
            tokenizer_learning_rate: float.
            warmup: float, the share of a phase's steps in which the rate rises.
            weight_decay: float.
            clip_norm: optional float, the gradients' largest norm, taken together.
            gradient_accumulation_steps: optional int, batches to each step.
            ema_momentum: optional float. When given, each phase ends with the moving
                averages of its weights, taken after each batch.
            adapt_batches: int, batches for the k-means that sets the codebooks.
            jit_compile: bool or `"auto"`, as in `keras.Model.compile()`.
            directory: optional string or path. Settings, weights of each phase, history
                and state go there.
            resume: bool, whether to go on with the run in `directory`.
            checkpoint_every: int, epochs from one saved state within a phase to the
                next. What was done after the last one is done again by a resumed run.
            tensorboard: bool, whether `directory` gets TensorBoard logs.
            callbacks: list of Keras callbacks, for every phase.
            on_phase_end: optional function of `(phase, pretraining)`, called after each
                phase that is trained, not after those that a resumed run loads.
            verbose: 0 silent, 1 a progress bar, 2 Keras' line for each epoch.

        Returns:
            The history: for each phase a dict of lists, one value an epoch.

        Raises:
            ValueError: for settings that cannot work, before anything is trained.
            FileExistsError: if `directory` holds a run and `resume` is `False`.
        """
        make_batches = self._batches_from_epoch(inputs, batch_size, steps_per_epoch)
        options = _FitOptions(
            batch_size=batch_size,
            steps_per_epoch=steps_per_epoch,
            num_batches=_count_batches(make_batches(0), steps_per_epoch),
            warmup=warmup,
            weight_decay=weight_decay,
            clip_norm=clip_norm,
            gradient_accumulation_steps=gradient_accumulation_steps,
            ema_momentum=ema_momentum,
            adapt_batches=adapt_batches,
            jit_compile=jit_compile,
            checkpoint_every=checkpoint_every,
            tensorboard=tensorboard,
            callbacks=tuple(callbacks),
            verbose=verbose,
        )
        plan = phases(
            rounds=rounds,
            encoder_epochs=encoder_epochs,
            tokenizer_epochs=tokenizer_epochs,
            cold_start_epochs=cold_start_epochs,
            joint=joint,
            encoder_learning_rate=encoder_learning_rate,
            tokenizer_learning_rate=tokenizer_learning_rate,
        )
        options.check()
        self.backbone.trainable = True
        run = None
        if directory is not None:
            settings = {**self._settings(), **options.settings(), "plan": plan}
            run = RunDirectory(directory, settings, resume)
        self.history = {}
        try:
            for index, phase in enumerate(plan):
                self._run_phase(index, phase, make_batches, options, run, on_phase_end)
        finally:
            # The phases froze what they did not train.
            for part in (self.backbone, self.tokenizer, self.decoder, self.estimator):
                if part is not None:
                    part.trainable = True
        return self.history

    def codes(self, inputs, batch_size=64):
        """Tokenizes raw inputs with the tokenizer of the last phase that made one.

        Args:
            inputs: array of shape `(num_examples, *input_dims)`.
            batch_size: int.

        Returns:
            int32 array of shape `(num_examples, num_patches, num_levels)`; codes are -1
            at padded patches.

        Raises:
            ValueError: before the first phase.
        """
        if self.tokenizer is None:
            raise ValueError("There is no tokenizer yet: call `fit()` first.")
        model = _Tokenization(self.backbone, self.tokenizer, with_codes=True)
        return model.predict(inputs, batch_size=batch_size, verbose=0)["codes"]

    def _run_phase(self, index, phase, make_batches, options, run, on_phase_end):
        """Trains a phase, or loads it if it is done."""
        # A phase draws the same numbers whether the run was stopped before or not.
        keras.utils.set_random_seed(self.seed * 1000 + index)
        trainer = self._trainer(phase)
        if run is not None and run.is_done(phase.name):
            self._load(phase, run)
            return
        self._train(trainer, phase, make_batches, options, run)
        if on_phase_end is not None:
            on_phase_end(phase, self)

    def _train(self, trainer, phase, make_batches, options, run):
        """Runs one phase from its start, or from where it was stopped."""
        # Schedules count batches, also where several of them make a step.
        batches = phase.epochs * options.num_batches
        schedule = warmup_cosine(
            phase.learning_rate, batches, int(options.warmup * batches)
        )
        trainer.set_trained_parts()
        optimizer = adamw(
            trainer,
            schedule,
            weight_decay=options.weight_decay,
            global_clipnorm=options.clip_norm,
            gradient_accumulation_steps=options.gradient_accumulation_steps,
            use_ema=options.ema_momentum is not None,
            ema_momentum=options.ema_momentum,
        )
        trainer.compile(optimizer, jit_compile=options.jit_compile)
        callbacks, epochs_done = list(options.callbacks), 0
        if run is not None:
            folder = run.phase_path(phase.name)
            checkpoint = PhaseCheckpoint(
                folder / "checkpoint.npz", every=options.checkpoint_every
            )
            epochs_done = checkpoint.restore(trainer)
            callbacks += [checkpoint, *_loggers(folder, checkpoint, options)]
        if epochs_done == 0:
            self._set_codebooks(phase, make_batches(0), options.adapt_batches)
        batches, batch_size = make_batches(epochs_done), None
        if isinstance(batches, ArrayBatches):
            batch_size = batches.batch_size
            # Keras may draw a batch to look at it, which ends an epoch of its own.
            callbacks.append(
                keras.callbacks.LambdaCallback(
                    on_epoch_begin=lambda epoch, logs: batches.start_epoch(epoch)
                )
            )
        progress = RichProgress(phase.name, batch_size)
        if options.verbose == 1:
            callbacks.append(progress)
        try:
            fitted = trainer.fit(
                batches,
                epochs=phase.epochs,
                initial_epoch=epochs_done,
                steps_per_epoch=options.steps_per_epoch,
                shuffle=False,
                callbacks=callbacks,
                verbose=2 if options.verbose == 2 else 0,
            )
        finally:
            progress.close()
        self.history[phase.name] = fitted.history
        if run is not None:
            # With the epochs before the run was stopped.
            self.history[phase.name] = _as_history(checkpoint.logs)
            self._save(phase, run)

    def _trainer(self, phase):
        """Makes the networks of a phase and hands over what it goes on with."""
        if phase.kind == "cold_start":
            self.tokenizer = RandomProjectionTokenizer(
                self.backbone.patch_size,
                self.backbone.hidden_dim,
                self._quantizer(),
                self.backbone.position_layout if self.cold_start_positions else None,
                name="tokenizer",
            )
        elif phase.kind in ("tokenizer", "joint"):
            self.tokenizer = BridleTokenizer(
                self._tokenizer_backbone(), self._quantizer(), name="tokenizer"
            )
            self.estimator = self._new_estimator()
        if phase.kind == "tokenizer":
            return TokenizerPretrainer(
                self.tokenizer,
                self.estimator,
                teacher=self.backbone,
                augmentation=_fresh_copy(self.augmentation),
            )
        self.decoder = self._new_decoder()
        if phase.kind == "joint":
            return JointPretrainer(
                self.backbone,
                self.decoder,
                self.tokenizer,
                self.estimator,
                mask=_fresh_copy(self.mask),
                augmentation=_fresh_copy(self.augmentation),
            )
        return EncoderPretrainer(
            self.backbone,
            self.decoder,
            self.tokenizer,
            mask=_fresh_copy(self.mask),
            augmentation=_fresh_copy(self.augmentation),
        )

    def _quantizer(self):
        return ResidualQuantizer(
            self.num_levels,
            self.codebook_size,
            dim=self.code_dim,
            **{"seed": self.seed, **self.quantizer_options},
        )

    def _new_decoder(self):
        return CodeDecoder(
            self.num_levels,
            self.codebook_size,
            use_class_token=self.backbone.use_class_token,
            name="decoder",
            **{**decoder_size(self.backbone), **self.decoder_options},
        )

    def _new_estimator(self):
        return FeatureEstimator(
            self.backbone.hidden_dim,
            name="estimator",
            **{**estimator_size(self.backbone), **self.estimator_options},
        )

    def _tokenizer_backbone(self):
        config = {**self.backbone.get_config(), "name": "tokenizer_backbone"}
        backbone = type(self.backbone).from_config({**config, "trainable": True})
        if self.tokenizer_start == "encoder":
            backbone.set_weights(self.backbone.get_weights())
        return backbone

    def _set_codebooks(self, phase, batches, count):
        """Sets a new tokenizer's codebooks by k-means on its vectors."""
        if phase.kind == "encoder":
            return
        model = _Tokenization(self.backbone, self.tokenizer)
        outputs = (model.predict_on_batch(x) for x in _first_batches(batches, count))
        self.tokenizer.quantizer.adapt((x["vectors"], x["is_real"]) for x in outputs)

    def _parts(self, phase):
        """The networks that a phase ends with, by name."""
        parts = {"tokenizer": self.tokenizer}
        if phase.kind in ("tokenizer", "joint"):
            parts["estimator"] = self.estimator
        if phase.kind != "tokenizer":
            parts |= {"backbone": self.backbone, "decoder": self.decoder}
        return parts

    def _save(self, phase, run):
        folder = run.phase_path(phase.name)
        for name, part in self._parts(phase).items():
            part.save_weights(folder / f"{name}.weights.h5")
        (folder / "history.json").write_text(
            json.dumps(self.history[phase.name], default=float, indent=2) + "\n"
        )
        run.mark_done(phase.name)
        (folder / "checkpoint.npz").unlink(missing_ok=True)

    def _load(self, phase, run):
        folder = run.phase_path(phase.name)
        for name, part in self._parts(phase).items():
            part.load_weights(folder / f"{name}.weights.h5")
        self.history[phase.name] = json.loads((folder / "history.json").read_text())

    def _settings(self):
        """The constructor's arguments in a form that JSON can hold."""
        names = (
            "backbone",
            "num_levels",
            "codebook_size",
            "code_dim",
            "quantizer_options",
            "mask",
            "augmentation",
            "decoder_options",
            "estimator_options",
            "cold_start_positions",
            "tokenizer_start",
            "seed",
        )
        serialize = keras.saving.serialize_keras_object
        return {name: _without_names(serialize(getattr(self, name))) for name in names}

    def _batches_from_epoch(self, inputs, batch_size, steps_per_epoch):
        """Makes the function from a first epoch to the batches from there on."""
        if ops.is_tensor(inputs):
            inputs = ops.convert_to_numpy(inputs)
        if callable(inputs):
            return inputs
        if not hasattr(inputs, "shape"):
            if isinstance(inputs, Iterator):
                raise ValueError(
                    "`inputs` are read more than once, which an iterator cannot be: "
                    "pass a data set, or a function that makes one. "
                    f"Received: inputs of type {type(inputs).__name__}"
                )
            return lambda epoch: inputs
        if not _fits(tuple(inputs.shape[1:]), self.backbone.input_dims):
            raise ValueError(
                "`inputs` must have the shape (num_examples, *input_dims) with the "
                f"backbone's input_dims={self.backbone.input_dims}. "
                f"Received shape: {tuple(inputs.shape)}"
            )
        if steps_per_epoch is not None:
            raise ValueError(
                "`steps_per_epoch` is for data sets; the epochs of an array are all of "
                f"it. Received: steps_per_epoch={steps_per_epoch} and an array"
            )
        return lambda epoch: ArrayBatches(inputs, batch_size, self.seed, epoch)


def phases(
    rounds,
    encoder_epochs,
    tokenizer_epochs,
    cold_start_epochs,
    joint,
    encoder_learning_rate,
    tokenizer_learning_rate,
):
    """Lists the phases of a run.

    Args: those of `InterleavedPretraining.fit()`.

    Returns:
        A list of `Phase`.

    Raises:
        ValueError: for numbers that are too small, or a joint run of no rounds.
    """
    if cold_start_epochs is None:
        cold_start_epochs = encoder_epochs
    if rounds < 0 or min(encoder_epochs, tokenizer_epochs, cold_start_epochs) < 1:
        raise ValueError(
            "`rounds` must not be negative, and epochs must be positive. "
            f"Received: rounds={rounds}, encoder_epochs={encoder_epochs}, "
            f"tokenizer_epochs={tokenizer_epochs}, "
            f"cold_start_epochs={cold_start_epochs}"
        )
    for name, rate in (
        ("encoder_learning_rate", encoder_learning_rate),
        ("tokenizer_learning_rate", tokenizer_learning_rate),
    ):
        if not rate > 0:
            raise ValueError(f"`{name}` must be positive. Received: {name}={rate}")
    if joint and rounds == 0:
        raise ValueError(
            "Joint training needs `rounds` of 1 or more. Received: rounds=0"
        )
    kinds = [("cold_start", cold_start_epochs, encoder_learning_rate)]
    if joint:
        kinds.append(("joint", rounds * encoder_epochs, encoder_learning_rate))
    else:
        kinds += rounds * [
            ("tokenizer", tokenizer_epochs, tokenizer_learning_rate),
            ("encoder", encoder_epochs, encoder_learning_rate),
        ]
    return [Phase(f"{i}_{kind}", kind, *rest) for i, (kind, *rest) in enumerate(kinds)]


class _FitOptions(NamedTuple):
    """What is the same for every phase of a `fit()`."""

    batch_size: int
    steps_per_epoch: int | None
    num_batches: int
    warmup: float
    weight_decay: float
    clip_norm: float | None
    gradient_accumulation_steps: int | None
    ema_momentum: float | None
    adapt_batches: int
    jit_compile: bool | str
    checkpoint_every: int
    tensorboard: bool
    callbacks: tuple
    verbose: int

    def settings(self):
        """Those that change what is learned."""
        names = self._fields[: self._fields.index("jit_compile")]
        return {name: getattr(self, name) for name in names}

    def check(self):
        """Raises a `ValueError` for numbers that cannot work."""
        accumulation, ema = self.gradient_accumulation_steps, self.ema_momentum
        checks = (
            ("warmup", 0 <= self.warmup < 1, "0 or more and below 1"),
            ("weight_decay", self.weight_decay >= 0, "0 or more"),
            ("clip_norm", self.clip_norm is None or self.clip_norm > 0, "positive"),
            (
                "gradient_accumulation_steps",
                accumulation is None or accumulation >= 2,
                "None, or 2 or more",
            ),
            ("ema_momentum", ema is None or 0 <= ema < 1, "None, or in [0, 1)"),
            ("adapt_batches", self.adapt_batches >= 1, "1 or more"),
            ("checkpoint_every", self.checkpoint_every >= 1, "1 or more"),
            ("verbose", self.verbose in (0, 1, 2), "0, 1 or 2"),
        )
        for name, is_right, expected in checks:
            if not is_right:
                raise ValueError(
                    f"`{name}` must be {expected}. "
                    f"Received: {name}={getattr(self, name)}"
                )


class _Tokenization(keras.Model):
    """What a tokenizer makes of raw input: vectors, and codes if they are wanted."""

    def __init__(self, backbone, tokenizer, with_codes=False):
        super().__init__(autocast=False, name="tokenization")
        self.backbone = backbone
        self.tokenizer = tokenizer
        self.with_codes = with_codes

    def call(self, inputs):
        features, padding_mask = self.backbone.features(inputs)
        if self.with_codes:
            return {"codes": self.tokenizer(features, padding_mask).codes}
        vectors = self.tokenizer.vectors(features, padding_mask)
        is_real = self.backbone.patch_padding_mask(features, padding_mask)
        if is_real is None:
            is_real = ops.ones(ops.shape(vectors)[:2], dtype="bool")
        return {"vectors": ops.cast(vectors, "float32"), "is_real": is_real}


def _fresh_copy(layer):
    """Copies a layer without weights, so that each phase starts with its own seed."""
    return None if layer is None else type(layer).from_config(layer.get_config())


def _without_names(config):
    """Drops the names of layers, which Keras numbers anew in every process."""
    if isinstance(config, dict):
        return {k: _without_names(v) for k, v in config.items() if k != "name"}
    if isinstance(config, (list, tuple)):
        return [_without_names(value) for value in config]
    return config


def _first_batches(batches, count):
    """Yields the inputs of the first batches of whatever `fit()` takes."""
    if isinstance(batches, keras.utils.PyDataset):
        number = batches.num_batches
        numbers = range(count if number is None else min(count, number))
        batches = map(batches.__getitem__, numbers)
    for batch in itertools.islice(batches, count):
        batch = batch[0] if isinstance(batch, (tuple, list)) else batch
        # tf.data has TensorFlow's tensors on every backend.
        yield ops.convert_to_numpy(batch) if ops.is_tensor(batch) else np.asarray(batch)


def _fits(shape, dims):
    return len(shape) == len(dims) and all(
        dim in (None, size) for size, dim in zip(shape, dims, strict=True)
    )


def _count_batches(batches, steps_per_epoch):
    """Counts the batches of an epoch, which the learning rates depend on."""
    if steps_per_epoch is None:
        if isinstance(batches, keras.utils.PyDataset):
            steps_per_epoch = batches.num_batches
        elif hasattr(batches, "cardinality"):
            steps_per_epoch = int(batches.cardinality())
        elif hasattr(batches, "__len__"):
            steps_per_epoch = len(batches)
    if steps_per_epoch is None or steps_per_epoch < 1:
        raise ValueError(
            "`inputs` do not tell how many batches an epoch has: pass "
            f"`steps_per_epoch`. Received: steps_per_epoch={steps_per_epoch}, inputs "
            f"of type {type(batches).__name__}"
        )
    return steps_per_epoch


def _loggers(folder, checkpoint, options):
    def write_history(epoch, logs):
        _write_csv(folder / "history.csv", checkpoint.logs)

    loggers = [keras.callbacks.LambdaCallback(on_epoch_end=write_history)]
    if options.tensorboard:
        loggers.append(
            keras.callbacks.TensorBoard(folder / "tensorboard", write_graph=False)
        )
    return loggers


def _write_csv(path, logs):
    """Writes a line an epoch, anew each time: no line is lost or there twice."""
    names = list(dict.fromkeys(name for epoch_logs in logs for name in epoch_logs))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["epoch", *names])
        writer.writeheader()
        writer.writerows({"epoch": i, **values} for i, values in enumerate(logs))


def _as_history(logs):
    """Turns a dict for each epoch into the dict of lists that Keras calls history."""
    history: dict[str, list[float]] = {}
    for epoch_logs in logs:
        for name, value in epoch_logs.items():
            history.setdefault(name, []).append(value)
    return history
