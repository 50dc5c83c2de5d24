"""The whole of BRIDLE: cold start, then tokenizer and encoder in turn."""

import itertools
import json
from typing import NamedTuple

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
        tokenizer_start: string, what a tokenizer's own encoder starts as: `"encoder"`, a
            copy of the encoder trained so far, or `"random"`.
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
        self.tokenizer = None
        self.decoder = None
        self.estimator = None
        self.history = {}
        self._quantizer()  # Wrong options are an error now, not after the cold start.

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
        tensorboard=True,
        callbacks=(),
        on_phase_end=None,
        verbose=1,
    ):
        """Runs all phases.

        Args:
            inputs: array of raw inputs, of shape `(num_examples, *input_dims)`; or a
                `tf.data.Dataset`, `keras.utils.PyDataset` or whatever `fit()` takes, of
                batches of them; or a function that makes such a data set from the
                number of the first epoch it is to serve, so that a resumed phase sees
                the batches that it would have seen.
            rounds: int, how often tokenizer and encoder are trained after the cold
                start.
            encoder_epochs: int, epochs of an encoder phase.
            tokenizer_epochs: int, epochs of a tokenizer phase.
            cold_start_epochs: optional int; as many as `encoder_epochs` by default.
            joint: bool. `True` trains tokenizer and encoder in one phase of
                `rounds * encoder_epochs` epochs after the cold start.
            batch_size: int, for arrays.
            steps_per_epoch: int, for data sets that do not know their length.
            encoder_learning_rate: float.
            tokenizer_learning_rate: float.
            warmup: float, the share of a phase's steps in which the rate rises.
            weight_decay: float.
            clip_norm: optional float, the gradients' largest norm, taken together.
            gradient_accumulation_steps: optional int, batches to each step.
            ema_momentum: optional float. When given, each phase ends with the moving
                averages of its weights.
            adapt_batches: int, batches for the k-means that sets the codebooks.
            jit_compile: bool or `"auto"`, as in `keras.Model.compile()`.
            directory: optional string or path. Settings, weights of each phase, history
                and state go there.
            resume: bool, whether to go on with the run in `directory`.
            tensorboard: bool, whether `directory` gets TensorBoard logs.
            callbacks: list of Keras callbacks, for every phase.
            on_phase_end: optional function of `(phase, pretraining)`.
            verbose: 0 silent, 1 a progress bar, 2 Keras' line for each epoch.

        Returns:
            The history: for each phase a dict of lists, one value an epoch.

        Raises:
            ValueError: for settings that cannot work, before anything is trained.
            FileExistsError: if `directory` holds a run and `resume` is `False`.
        """
        make_batches = _batches_from_epoch(inputs, batch_size, self.seed)
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
        run = None
        if directory is not None:
            settings = {**self._settings(), **options.settings(), "plan": plan}
            run = RunDirectory(directory, settings, resume)
        for index, phase in enumerate(plan):
            # A phase draws the same numbers whether the run was stopped before or not.
            keras.utils.set_random_seed(self.seed * 1000 + index)
            trainer = self._trainer(phase)
            if run is not None and run.is_done(phase.name):
                self._load(phase, run)
                continue
            self._train(trainer, phase, make_batches, options, run)
            if on_phase_end is not None:
                on_phase_end(phase, self)
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

    def _train(self, trainer, phase, make_batches, options, run):
        """Runs one phase from its start, or from where it was stopped."""
        updates = phase.epochs * options.num_batches
        updates = max(1, updates // (options.gradient_accumulation_steps or 1))
        schedule = warmup_cosine(
            phase.learning_rate, updates, int(options.warmup * updates)
        )
        trainer.set_trained_parts()
        optimizer = adamw(
            trainer,
            schedule,
            weight_decay=options.weight_decay,
            global_clipnorm=options.clip_norm,
            gradient_accumulation_steps=options.gradient_accumulation_steps,
            use_ema=options.ema_momentum is not None,
            ema_momentum=options.ema_momentum or 0.99,
        )
        trainer.compile(optimizer, jit_compile=options.jit_compile)
        callbacks, epochs_done = list(options.callbacks), 0
        if run is not None:
            checkpoint = PhaseCheckpoint(run.phase_path(phase.name) / "checkpoint.npz")
            epochs_done = checkpoint.restore(trainer)
            callbacks += [checkpoint, *_loggers(phase, run, options, epochs_done)]
        if epochs_done == 0:
            self._set_codebooks(phase, make_batches(0), options.adapt_batches)
        batches = make_batches(epochs_done)
        if isinstance(batches, ArrayBatches):
            # Keras may draw a batch to look at it, which ends an epoch of its own.
            callbacks.append(
                keras.callbacks.LambdaCallback(
                    on_epoch_begin=lambda epoch, logs: batches.start_epoch(epoch)
                )
            )
        if options.verbose == 1:
            callbacks.append(RichProgress(phase.name, options.batch_size))
        fitted = trainer.fit(
            batches,
            epochs=phase.epochs,
            initial_epoch=epochs_done,
            steps_per_epoch=options.steps_per_epoch,
            shuffle=False,
            callbacks=callbacks,
            verbose=2 if options.verbose == 2 else 0,
        )
        self.history[phase.name] = fitted.history
        if run is not None:
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
            self.estimator = FeatureEstimator(
                self.backbone.hidden_dim,
                name="estimator",
                **{**estimator_size(self.backbone), **self.estimator_options},
            )
        if phase.kind == "tokenizer":
            return TokenizerPretrainer(
                self.tokenizer,
                self.estimator,
                teacher=self.backbone,
                augmentation=_fresh_copy(self.augmentation),
            )
        self.decoder = CodeDecoder(
            self.num_levels,
            self.codebook_size,
            use_class_token=self.backbone.use_class_token,
            name="decoder",
            **{**decoder_size(self.backbone), **self.decoder_options},
        )
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
        vectors = []
        for batch in _first_batches(batches, count):
            outputs = model.predict_on_batch(batch)
            vectors.append(outputs["vectors"][outputs["is_real"]])
        self.tokenizer.quantizer.adapt(np.concatenate(vectors))

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
        (folder / "checkpoint.npz").unlink()

    def _load(self, phase, run):
        folder = run.phase_path(phase.name)
        for name, part in self._parts(phase).items():
            part.load_weights(folder / f"{name}.weights.h5")
        self.history[phase.name] = json.loads((folder / "history.json").read_text())

    def _settings(self):
        """The constructor's arguments in a form that JSON can hold."""
        settings = {
            "num_levels": self.num_levels,
            "codebook_size": self.codebook_size,
            "code_dim": self.code_dim,
            "quantizer_options": self.quantizer_options,
            "decoder_options": self.decoder_options,
            "estimator_options": self.estimator_options,
            "cold_start_positions": self.cold_start_positions,
            "tokenizer_start": self.tokenizer_start,
            "seed": self.seed,
        }
        for name in ("backbone", "mask", "augmentation"):
            settings[name] = _without_names(
                keras.saving.serialize_keras_object(getattr(self, name))
            )
        return settings


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
        ValueError: for negative numbers, or a joint run of no rounds.
    """
    if cold_start_epochs is None:
        cold_start_epochs = encoder_epochs
    if rounds < 0 or min(encoder_epochs, tokenizer_epochs, cold_start_epochs) < 1:
        raise ValueError(
            "`rounds` must not be negative, and epochs must be positive. Received: "
            f"rounds={rounds}, encoder_epochs={encoder_epochs}, "
            f"tokenizer_epochs={tokenizer_epochs}, cold_start_epochs={cold_start_epochs}"
        )
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
    tensorboard: bool
    callbacks: tuple
    verbose: int

    def settings(self):
        """Those that change what is learned."""
        left_out = ("jit_compile", "tensorboard", "callbacks", "verbose")
        return {k: v for k, v in self._asdict().items() if k not in left_out}


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
    iterator = iter(batches)
    if isinstance(batches, keras.utils.PyDataset):
        iterator = (batches[index] for index in range(len(batches)))
    for batch in itertools.islice(iterator, count):
        yield batch[0] if isinstance(batch, (tuple, list)) else batch


def _batches_from_epoch(inputs, batch_size, seed):
    """Makes the function from a first epoch to the batches from there on."""
    if isinstance(inputs, np.ndarray):
        return lambda epoch: ArrayBatches(inputs, batch_size, seed, epoch)
    return inputs if callable(inputs) else lambda epoch: inputs


def _count_batches(batches, steps_per_epoch):
    """Counts the batches of an epoch, which the learning rates depend on."""
    if steps_per_epoch is None:
        if hasattr(batches, "cardinality"):
            steps_per_epoch = int(batches.cardinality())
        elif hasattr(batches, "__len__"):
            steps_per_epoch = len(batches)
    if steps_per_epoch is None or steps_per_epoch < 1:
        raise ValueError(
            "`inputs` do not tell how many batches an epoch has: pass "
            f"`steps_per_epoch`. Received: steps_per_epoch={steps_per_epoch}, inputs of "
            f"type {type(batches).__name__}"
        )
    return steps_per_epoch


def _loggers(phase, run, options, epochs_done):
    folder = run.phase_path(phase.name)
    loggers = [
        keras.callbacks.CSVLogger(folder / "history.csv", append=epochs_done > 0)
    ]
    if options.tensorboard:
        loggers.append(
            keras.callbacks.TensorBoard(folder / "tensorboard", write_graph=False)
        )
    return loggers
