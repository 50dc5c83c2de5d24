"""The whole of BRIDLE: cold start, then tokenizer and encoder in turn."""

import functools
import json
import numbers
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_bridle.distribution import (
    broadcast_variables,
    is_alone,
    is_chief,
    local_function,
    own_directory,
)
from keras_bridle.models.backbone import BridleBackbone
from keras_bridle.models.heads import CodeDecoder, FeatureEstimator
from keras_bridle.models.presets import decoder_size, estimator_size
from keras_bridle.models.tokenizers import BridleTokenizer, RandomProjectionTokenizer
from keras_bridle.quantizer.residual_quantizer import ResidualQuantizer, unit_vectors
from keras_bridle.training.batches import (
    ArrayBatches,
    batches_by_epoch,
    count_batches,
    first_batches,
    in_floatx,
    in_order_of_epochs,
    timing_of,
)
from keras_bridle.training.checkpoint import (
    NonFiniteSteps,
    skipping,
    write_history,
)
from keras_bridle.training.optimizers import adamw, warmup_cosine
from keras_bridle.training.progress import ProfileSteps, RichProgress, SpeedBoard
from keras_bridle.training.run import (
    as_history,
    cached_codes,
    check_cacheable,
    open_run,
)
from keras_bridle.training.trainers import (
    EncoderPretrainer,
    JointPretrainer,
    TokenizerPretrainer,
)


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


def phases(
    rounds,
    encoder_epochs,
    tokenizer_epochs,
    cold_start_epochs,
    joint,
    encoder_learning_rate,
    tokenizer_learning_rate,
    cold_start_learning_rate=None,
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
    if cold_start_learning_rate is None:
        cold_start_learning_rate = encoder_learning_rate
    if rounds < 0 or min(encoder_epochs, tokenizer_epochs, cold_start_epochs) < 1:
        raise ValueError(
            "`rounds` must not be negative, and epochs must be positive. "
            f"Received: rounds={rounds}, encoder_epochs={encoder_epochs}, "
            f"tokenizer_epochs={tokenizer_epochs}, "
            f"cold_start_epochs={cold_start_epochs}"
        )
    for name, rate in (
        ("cold_start_learning_rate", cold_start_learning_rate),
        ("encoder_learning_rate", encoder_learning_rate),
        ("tokenizer_learning_rate", tokenizer_learning_rate),
    ):
        if not rate > 0:
            raise ValueError(f"`{name}` must be positive. Received: {name}={rate}")
    if joint and rounds == 0:
        raise ValueError(
            "Joint training needs `rounds` of 1 or more. Received: rounds=0"
        )
    kinds = [("cold_start", cold_start_epochs, cold_start_learning_rate)]
    if joint:
        kinds.append(("joint", rounds * encoder_epochs, encoder_learning_rate))
    else:
        kinds += rounds * [
            ("tokenizer", tokenizer_epochs, tokenizer_learning_rate),
            ("encoder", encoder_epochs, encoder_learning_rate),
        ]
    return [Phase(f"{i}_{kind}", kind, *rest) for i, (kind, *rest) in enumerate(kinds)]


class FitOptions(NamedTuple):
    """Arguments of `InterleavedPretraining.fit()` that all phases share.

    Attributes:
        num_batches: int, batches of an epoch.
        reading_speed: optional float, examples that can be read each second.

    The others are described there.
    """

    batch_size: int
    steps_per_epoch: int | None
    num_batches: int
    tokenizer_every: int
    tokenizer_loss_ratio: float
    warmup: float
    weight_decay: float
    clip_norm: float | None
    gradient_accumulation_steps: int | None
    ema_momentum: float | None
    adapt_batches: int
    jit_compile: bool | str
    checkpoint_every: int
    checkpoint_every_steps: int | None
    checkpoint_minutes: float | None
    max_nonfinite_steps: int
    cache_codes: bool
    profile: bool
    tensorboard: bool
    callbacks: tuple
    verbose: int
    reading_speed: float | None = None

    def settings(self):
        """Those that change what is learned."""
        names = self._fields[: self._fields.index("jit_compile")]
        return {name: getattr(self, name) for name in names}

    def check(self):
        """Raises a `ValueError` for numbers that cannot work."""
        accumulation, ema = self.gradient_accumulation_steps, self.ema_momentum
        steps, minutes = self.checkpoint_every_steps, self.checkpoint_minutes
        checks = (
            ("tokenizer_every", self.tokenizer_every >= 1, "1 or more"),
            ("tokenizer_loss_ratio", self.tokenizer_loss_ratio > 0, "positive"),
            ("warmup", 0 <= self.warmup < 1, "0 or more and below 1"),
            ("weight_decay", self.weight_decay >= 0, "0 or more"),
            ("clip_norm", self.clip_norm is None or self.clip_norm > 0, "positive"),
            (
                "gradient_accumulation_steps",
                accumulation is None or accumulation >= 2,
                "None, or 2 or more",
            ),
            ("ema_momentum", ema is None or 0 <= ema < 1, "None, or in [0, 1)"),
            ("adapt_batches", self.adapt_batches >= 0, "0 or more"),
            ("checkpoint_every", self.checkpoint_every >= 1, "1 or more"),
            (
                "checkpoint_every_steps",
                steps is None or steps >= 1,
                "None, or 1 or more",
            ),
            ("checkpoint_minutes", minutes is None or minutes > 0, "None, or positive"),
            ("max_nonfinite_steps", self.max_nonfinite_steps >= 0, "0 or more"),
            ("verbose", self.verbose in (0, 1, 2), "0, 1 or 2"),
        )
        for name, is_right, expected in checks:
            if not is_right:
                raise ValueError(
                    f"`{name}` must be {expected}. "
                    f"Received: {name}={getattr(self, name)}"
                )

    def optimizer(self, trainer, phase):
        """Makes the optimizer of a phase.

        Args:
            trainer: the phase's `Pretrainer`, whose trained parts are set.
            phase: `Phase`.

        Returns:
            A `keras.optimizers.AdamW`, in `skipping()` if steps may be skipped.
        """
        # Schedules count batches, also where several of them make a step.
        batches = phase.epochs * self.num_batches
        optimizer = adamw(
            trainer,
            warmup_cosine(phase.learning_rate, batches, int(self.warmup * batches)),
            weight_decay=self.weight_decay,
            global_clipnorm=self.clip_norm,
            gradient_accumulation_steps=self.gradient_accumulation_steps,
            use_ema=self.ema_momentum is not None,
            ema_momentum=self.ema_momentum,
        )
        return skipping(optimizer) if self.max_nonfinite_steps else optimizer


class Tokenization(keras.Model):
    """Vectors of a tokenizer, or its codes, for `predict()` on raw input.

    Args:
        backbone: `BridleBackbone`, which prepares the input.
        tokenizer: `BridleTokenizer` or `RandomProjectionTokenizer`.
        augmentation: optional Keras layer, which is called as without training: it may
            bring input to its size.
        with_codes: bool.

    Returns:
        A dict. With codes: `codes` of shape `(batch, num_patches, num_levels)` and
        `distances` of shape `(batch, num_patches)`, from each vector to its first code
        vector. Else: `vectors` of shape `(batch, num_patches, code_dim)` and `is_real`
        of shape `(batch, num_patches)`, `False` at padding.
    """

    def __init__(self, backbone, tokenizer, augmentation=None, with_codes=False):
        super().__init__(autocast=False, name="tokenization")
        self.backbone = backbone
        self.tokenizer = tokenizer
        self.augmentation = augmentation
        self.with_codes = with_codes

    def call(self, inputs):
        if self.augmentation is not None:
            inputs = self.augmentation(inputs, training=False)
        features, padding_mask = self.backbone.features(inputs)
        vectors = self.tokenizer.vectors(features, padding_mask)
        is_real = self.backbone.patch_padding_mask(features, padding_mask)
        if self.with_codes:
            codes = self.tokenizer.quantizer(vectors, is_real).codes
            return {"codes": codes, "distances": self._distances(vectors, codes)}
        if is_real is None:
            is_real = ops.ones(ops.shape(vectors)[:2], dtype="bool")
        return {"vectors": ops.cast(vectors, "float32"), "is_real": is_real}

    def _distances(self, vectors, codes):
        quantizer = self.tokenizer.quantizer
        vectors = ops.cast(vectors, "float32")
        if quantizer.normalize is not None:
            vectors = unit_vectors(vectors)
        first = codes[:, :, :1]
        if quantizer.top_k > 1:
            first = ops.where(ops.arange(quantizer.top_k) == 0, first, -1)
        code_vectors = ops.cast(quantizer.decode(first), "float32")
        return ops.sqrt(ops.sum(ops.square(vectors - code_vectors), axis=-1))


def fit_phase(trainer, phase, make_batches, options, checkpoint=None):
    """Trains a compiled trainer to the end of its phase.

    Args:
        trainer: `Pretrainer`, compiled.
        phase: `Phase`.
        make_batches: function of an epoch and `first_batch` that returns raw input from
            there on, whatever `fit()` takes.
        options: `FitOptions`.
        checkpoint: optional `Checkpoint`, which tells where to go on; logs are
            written beside its file.

    Returns:
        The history of the phase: a dict of lists, one value an epoch, those of before
        included if there is a checkpoint.
    """
    epoch, step = (0, 0) if checkpoint is None else (checkpoint.epoch, checkpoint.step)
    shows_speed = options.verbose == 1 or (options.tensorboard and checkpoint)
    clock, batch_size = _clock(make_batches(0), shows_speed)
    progress = RichProgress(
        phase.name, batch_size, clock=clock, reading_speed=options.reading_speed
    )
    callbacks = _Callbacks(make_batches, options, checkpoint, progress)

    def fit(epoch, step, epochs, kept=None):
        batches = make_batches(epoch, first_batch=step)
        keep = keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs: kept.extend(trainer.get_weights())
        )
        return trainer.fit(
            batches if clock is None else clock.wrap(batches),
            epochs=epochs,
            initial_epoch=epoch,
            steps_per_epoch=_steps_per_epoch(batches, step, options),
            shuffle=False,
            callbacks=[*callbacks.of(batches, step), *([] if kept is None else [keep])],
            verbose=2 if options.verbose == 2 else 0,
        ).history

    try:
        if step:
            # The rest of an epoch has fewer steps, so it is a `fit()` of its own.
            progress.throughput.in_rest_of_epoch(
                step, options.num_batches, phase.epochs
            )
            kept = [] if options.ema_momentum and epoch + 1 < phase.epochs else None
            fit(epoch, step, epoch + 1, kept)
            if kept:
                # Keras ends a `fit()` with moving averages in place of the weights.
                trainer.set_weights(kept)
            epoch += 1
        history = (
            fit(epoch, 0, phase.epochs) if epoch < phase.epochs or not step else {}
        )
    finally:
        callbacks.close()
    if checkpoint is None:
        return history
    write_history(checkpoint.path.parent / "history.csv", checkpoint.logs)
    return as_history(checkpoint.logs)


def _clock(batches, is_wanted):
    """The clock for batches that are read from files, and the size of others."""
    timing = timing_of(batches)
    if timing is not None and is_wanted:
        return timing.InputClock(), None
    return None, getattr(batches, "batch_size", None)


def _steps_per_epoch(batches, step, options):
    if step == 0:
        return options.steps_per_epoch
    return options.num_batches - step


class _Callbacks:
    """The callbacks of a phase, which may be more than one `fit()`."""

    def __init__(self, make_batches, options, checkpoint, progress):
        self.options = options
        self.checkpoint = checkpoint
        self.progress = progress
        folder = None if checkpoint is None else checkpoint.path.parent

        def batch_at(epoch, step):
            (batch,) = first_batches(make_batches(epoch, first_batch=step), 1)
            return batch

        self.finite = NonFiniteSteps(
            folder and folder / "nonfinite", batch_at, options.max_nonfinite_steps
        )
        self.trace = None
        if options.profile and folder is not None:
            self.trace = ProfileSteps(folder / "profile")

    def of(self, batches, step):
        """Lists the callbacks for batches from a step on."""
        self.finite.first_step = step
        is_array = isinstance(batches, ArrayBatches)
        return [
            *self.options.callbacks,
            *([in_order_of_epochs(batches)] if is_array else []),
            self.finite,
            *self._records(),
            *([] if self.trace is None else [self.trace]),
        ]

    def close(self):
        """Ends what an error in `fit()` has left open."""
        self.progress.close()
        if self.trace is not None:
            self.trace.close()

    def _records(self):
        """The callbacks that show progress and keep state and history on disk."""
        progress = self.progress
        shown = [progress if self.options.verbose == 1 else progress.throughput]
        if self.checkpoint is None:
            return shown
        folder, checkpoint = self.checkpoint.path.parent, self.checkpoint
        checkpoint.before_saving = self.finite.check

        def write(epoch, logs):
            write_history(folder / "history.csv", checkpoint.logs)

        if self.options.tensorboard:
            shown.append(SpeedBoard(folder / "tensorboard", progress.throughput))
        return [*shown, checkpoint, keras.callbacks.LambdaCallback(on_epoch_end=write)]


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
        quantizer_options: optional dict, more arguments of `ResidualQuantizer`. Two of
            them have other defaults here, which teach the encoder more:
            `normalize="level"`, as published, and, where codebooks are no weights,
            `restart_threshold=0.1`.
        mask: optional mask layer. Defaults to `RandomMask()`.
        augmentation: optional Keras layer applied to raw input in training. Codebooks
            start from, and `codes()` are of, what it gives without training.
        decoder_options: optional dict, arguments of `CodeDecoder` in place of the
            default size for the encoder.
        estimator_options: optional dict, arguments of `FeatureEstimator` likewise.
        cold_start_positions: bool, whether the cold start's random projection sees
            positions, as published.
        cold_start_centered: bool, whether it sees patches less their mean: shape and
            motion without brightness.
        keep_cold_start_codes: bool, whether the phases after the cold start predict its
            codes as well, as levels after the tokenizer's. So the encoder keeps what it
            learned from them, which new codes alone, as published, take from it in
            short runs.
        tokenizer_start: string, what a tokenizer's own encoder starts as: `"encoder"`,
            a copy of the encoder trained so far, or `"random"`.
        decoder_start: string, what the decoder of an encoder phase starts as:
            `"previous"`, the last phase's but for its head, which has new codes to
            predict, or `"random"`, as published.
        tokenize: string, what the tokenizer sees in cold start and encoder phases:
            `"all"` patches, or the `"masked"` ones alone, as published for video.
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
        cold_start_centered=False,
        keep_cold_start_codes=True,
        tokenizer_start="encoder",
        decoder_start="previous",
        tokenize="all",
        seed=0,
    ):
        _check_choice("tokenize", tokenize, ("all", "masked"))
        _check_choice("tokenizer_start", tokenizer_start, ("encoder", "random"))
        _check_choice("decoder_start", decoder_start, ("previous", "random"))
        self.backbone = backbone
        self.num_levels = num_levels
        self.codebook_size = codebook_size
        self.code_dim = code_dim
        self.quantizer_options = _with_defaults(quantizer_options or {})
        self.mask = mask
        self.augmentation = augmentation
        self.decoder_options = dict(decoder_options or {})
        self.estimator_options = dict(estimator_options or {})
        self.cold_start_positions = cold_start_positions
        self.cold_start_centered = cold_start_centered
        self.keep_cold_start_codes = keep_cold_start_codes
        self.tokenizer_start = tokenizer_start
        self.decoder_start = decoder_start
        self.tokenize = tokenize
        self.seed = seed
        self.tokenizer: Any = None
        self.cold_start_tokenizer: Any = None
        self.decoder: Any = None
        self.estimator: Any = None
        self.history: dict[str, dict[str, list[float]]] = {}
        self._check_parts()

    def fit(
        self,
        inputs,
        rounds=2,
        encoder_epochs=100,
        tokenizer_epochs=30,
        cold_start_epochs=None,
        joint=False,
        tokenizer_every=4,
        tokenizer_loss_ratio=0.2,
        batch_size=64,
        steps_per_epoch=None,
        encoder_learning_rate=5e-4,
        tokenizer_learning_rate=2e-4,
        cold_start_learning_rate=None,
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
        checkpoint_every_steps=None,
        checkpoint_minutes=10.0,
        max_nonfinite_steps=0,
        cache_codes=False,
        profile=False,
        tensorboard=True,
        callbacks=(),
        on_start=None,
        on_phase_end=None,
        verbose=1,
    ):
        """Runs all phases.

        Args:
            inputs: array of raw inputs, of shape `(num_examples, *input_dims)`; or a
                `tf.data.Dataset`, `keras.utils.PyDataset` or whatever `fit()` takes and
                can be read again and again, of batches of them; or a function that
                makes such a data set from the number of the first epoch it is to serve,
                so that a resumed phase sees the batches that it would have seen. If the
                function has an argument `first_batch`, it starts there in that epoch;
                else, as in data sets, those before are read and left out. Where
                several processes train together (see `distribute()`), each is to be
                given its own part of every batch, but arrays whole.
            rounds: int, how often tokenizer and encoder are trained after the cold
                start.
            encoder_epochs: int, epochs of an encoder phase.
            tokenizer_epochs: int, epochs of a tokenizer phase.
            cold_start_epochs: optional int; as many as `encoder_epochs` by default.
            joint: bool. `True` trains tokenizer and encoder in one phase of
                `rounds * encoder_epochs` epochs after the cold start.
            tokenizer_every: int, steps of a joint phase from one training of the
                tokenizer to the next.
            tokenizer_loss_ratio: float, the weight of its loss there.
            batch_size: int, for arrays; examples on all devices together.
            steps_per_epoch: optional int, for data sets that do not know their length
                or never end; each epoch goes on where the one before stopped.
            encoder_learning_rate: float.
            tokenizer_learning_rate: float.
            cold_start_learning_rate: optional float; `encoder_learning_rate` by
                default.
            warmup: float, the share of a phase's steps in which the rate rises.
            weight_decay: float.
            clip_norm: optional float, the gradients' largest norm, taken together.
            gradient_accumulation_steps: optional int, batches to each step.
            ema_momentum: optional float. When given, each phase ends with the moving
                averages of its weights, taken after each batch.
            adapt_batches: int, batches for the k-means that sets the codebooks; 0
                leaves them as they were drawn.
            jit_compile: bool or `"auto"`, as in `keras.Model.compile()`.
            directory: optional string or path. Settings, weights of each phase, history
                and state go there.
            resume: bool, whether to go on with the run in `directory`.
            checkpoint_every: int, epochs from one saved state within a phase to the
                next. What was done after the last one is done again by a resumed run,
                with the same results.
            checkpoint_every_steps: optional int, steps of an epoch after which the
                state is saved as well.
            checkpoint_minutes: optional float, minutes likewise; in one process only.
            max_nonfinite_steps: int, so many steps of an epoch may have a loss or
                gradients that are not finite. They change no weights. After more of
                them training stops; their batches are kept in the phase's folder.
            cache_codes: bool, whether to compute a frozen tokenizer's codes once for
                each phase, not in each step. For arrays, without augmentation.
            profile: bool, whether to record a trace of a few steps of each phase, in
                the folder `profile` of the phase.
            tensorboard: bool, whether `directory` gets TensorBoard logs.
            callbacks: list of Keras callbacks, for every phase.
            on_start: optional function of this object, called when all settings have
                been checked and nothing has been trained or loaded.
            on_phase_end: optional function of `(phase, pretraining)`, called after each
                phase that is trained, not after those that a resumed run loads.
            verbose: 0 silent, 1 a progress bar, 2 Keras' line for each epoch.

        Returns:
            The history: for each phase a dict of lists, one value an epoch.

        Raises:
            ValueError: for settings that cannot work, before anything is trained.
            FileExistsError: if `directory` holds a run and `resume` is `False`.
            BlockingIOError: if another process is at work in `directory`.
            SaveError: if the disk is full. What was saved before is unharmed.
            NonFiniteLoss: after too many steps without a finite loss.
            Preempted: which ends the program with code 143, after SIGTERM. The state is
                saved before, at the end of the step.
        """
        make_batches = batches_by_epoch(
            inputs, self.backbone.input_dims, batch_size, steps_per_epoch, self.seed
        )
        options = FitOptions(
            batch_size=batch_size,
            steps_per_epoch=steps_per_epoch,
            num_batches=count_batches(make_batches(0), steps_per_epoch),
            tokenizer_every=tokenizer_every,
            tokenizer_loss_ratio=tokenizer_loss_ratio,
            warmup=warmup,
            weight_decay=weight_decay,
            clip_norm=clip_norm,
            gradient_accumulation_steps=gradient_accumulation_steps,
            ema_momentum=ema_momentum,
            adapt_batches=adapt_batches,
            jit_compile=jit_compile,
            checkpoint_every=checkpoint_every,
            checkpoint_every_steps=checkpoint_every_steps,
            checkpoint_minutes=checkpoint_minutes,
            max_nonfinite_steps=max_nonfinite_steps,
            cache_codes=cache_codes,
            profile=profile,
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
            cold_start_learning_rate=cold_start_learning_rate,
        )
        options.check()
        if cache_codes:
            check_cacheable(make_batches(0), self.augmentation, self.tokenize)
        options = _with_reading_speed(options, make_batches)
        directory = own_directory(directory)
        # Of several processes one reports.
        verbose = verbose if is_chief() else 0
        options = options._replace(verbose=verbose)
        self.backbone.trainable = True
        self.history = {}

        def settings():
            return {**self._settings(), **options.settings(), "plan": plan}

        with open_run(directory, settings, options, resume) as files_of:
            try:
                if on_start is not None:
                    on_start(self)
                for index, phase in enumerate(plan):
                    self._run_phase(
                        index,
                        phase,
                        make_batches,
                        options,
                        files_of(phase),
                        on_phase_end,
                    )
            finally:
                # The phases freeze what they do not train.
                self._unfreeze()
        return self.history

    def _check_parts(self):
        """Raises errors that would else come after the cold start."""
        if isinstance(self.seed, bool) or not isinstance(self.seed, numbers.Integral):
            raise ValueError(f"`seed` must be an int. Received: seed={self.seed!r}")
        if self.seed < 0:
            raise ValueError(f"`seed` must not be negative. Received: {self.seed}")
        if self.augmentation is not None and self.augmentation.weights:
            raise ValueError(
                "`augmentation` must have no weights, as each phase starts with a new "
                "copy. What is fitted to data belongs into the encoder's `front_end`. "
                f"Received: {self.augmentation!r}"
            )
        self._quantizer()
        self._new_decoder(self.num_levels).build((None, None, self.backbone.hidden_dim))
        self._new_estimator().build((None, None, self.code_dim))
        if self.backbone.front_end is not None:
            # The tokenizer's encoder gets one of its own.
            serialized = keras.saving.serialize_keras_object(self.backbone.front_end)
            keras.saving.deserialize_keras_object(serialized)

    def _unfreeze(self):
        for part in (self.backbone, self.tokenizer, self.decoder, self.estimator):
            if part is not None:
                part.trainable = True

    def codes(self, inputs, batch_size=64, with_distances=False):
        """Tokenizes raw inputs with the tokenizer of the last phase that made one.

        Args:
            inputs: array of shape `(num_examples, *input_dims)`.
            batch_size: int.
            with_distances: bool, whether to tell how near the codes are, too.

        Returns:
            int32 array of shape `(num_examples, num_patches, num_levels)`; codes are -1
            at padded patches. With distances, a tuple of it and a float32 array of
            shape `(num_examples, num_patches)`: how far each patch's vector is from its
            code vector of the first level.

        Raises:
            ValueError: before the first phase.
        """
        if self.tokenizer is None:
            raise ValueError("There is no tokenizer yet: call `fit()` first.")
        outputs = local_function(self._tokenization(self.tokenizer, with_codes=True))
        found = [
            outputs(in_floatx(inputs[start : start + batch_size]))
            for start in range(0, len(inputs), batch_size)
        ]
        found = keras.tree.map_structure(lambda *x: np.concatenate(x), *found)
        if with_distances:
            return found["codes"], found["distances"]
        return found["codes"]

    def _run_phase(self, index, phase, make_batches, options, files, on_phase_end):
        """Trains a phase, or loads it if it is done."""
        # A phase draws the same numbers whether the run was stopped before or not.
        keras.utils.set_random_seed((self.seed * 1000 + index) % 2**32)
        trainer = self._trainer(phase, options)
        if files.is_done():
            self.history[phase.name] = files.load(self._parts(phase))
        else:
            self._train(trainer, phase, make_batches, options, files)
            if on_phase_end is not None:
                on_phase_end(phase, self)
            files.mark_done()
        files.close()

    def _train(self, trainer, phase, make_batches, options, files):
        """Trains one phase from its start, or from where it was stopped."""
        trainer.set_trained_parts()
        trainer.compile(
            options.optimizer(trainer, phase), jit_compile=options.jit_compile
        )
        if options.max_nonfinite_steps:
            trainer.skip_nonfinite_steps()
        if not is_alone():
            # Of all processes at once, as variables are made on TensorFlow.
            trainer.optimizer.build(trainer.trainable_variables)
        if not files.restore(trainer):
            self._set_codebooks(phase, make_batches(0), options.adapt_batches)
        broadcast_variables(trainer.variables)
        if options.cache_codes and phase.kind in ("cold_start", "encoder"):
            make_batches = self._with_codes(phase, make_batches, files.folder)
        history = fit_phase(trainer, phase, make_batches, options, files.checkpoint)
        self.history[phase.name] = history
        files.save(self._parts(phase), history)

    def _with_codes(self, phase, make_batches, folder):
        """Adds the tokenizer's codes, computed once, to the batches of an array."""
        both = (self.tokenizer, self._earlier_tokenizer(phase))
        tokenizers = [tokenizer for tokenizer in both if tokenizer is not None]
        outputs = [
            local_function(self._tokenization(tokenizer, with_codes=True))
            for tokenizer in tokenizers
        ]

        def tokenize(inputs):
            codes = [one_of_them(inputs)["codes"] for one_of_them in outputs]
            return np.concatenate(codes, axis=2)

        batches = make_batches(0)
        codes = cached_codes(
            tokenize,
            tokenizers,
            batches.inputs,
            batches.batch_size,
            folder,
        )
        return functools.partial(make_batches, codes=codes)

    def _trainer(self, phase, options):
        """Makes the networks of a phase and hands over what it goes on with."""
        if phase.kind != "encoder":
            self.tokenizer = self.new_tokenizer(phase)
        if phase.kind == "cold_start":
            self.cold_start_tokenizer = self.tokenizer
        if phase.kind in ("tokenizer", "joint"):
            self.estimator = self._new_estimator()
        if phase.kind == "tokenizer":
            return TokenizerPretrainer(
                self.tokenizer,
                self.estimator,
                teacher=self.backbone,
                augmentation=_fresh_copy(self.augmentation),
            )
        self.decoder = self._next_decoder(phase)
        if phase.kind == "joint":
            return JointPretrainer(
                self.backbone,
                self.decoder,
                self.tokenizer,
                self.estimator,
                tokenizer_every=options.tokenizer_every,
                tokenizer_loss_ratio=options.tokenizer_loss_ratio,
                mask=_fresh_copy(self.mask),
                augmentation=_fresh_copy(self.augmentation),
                earlier_tokenizer=self._earlier_tokenizer(phase),
            )
        return EncoderPretrainer(
            self.backbone,
            self.decoder,
            self.tokenizer,
            mask=_fresh_copy(self.mask),
            augmentation=_fresh_copy(self.augmentation),
            tokenize=self.tokenize,
            earlier_tokenizer=self._earlier_tokenizer(phase),
        )

    def _earlier_tokenizer(self, phase):
        """The cold start's, in phases that predict its codes as well."""
        if self.keep_cold_start_codes and phase.kind in ("encoder", "joint"):
            return self.cold_start_tokenizer
        return None

    def new_tokenizer(self, phase):
        """Makes the tokenizer that a phase begins with.

        Args:
            phase: `Phase`, of any kind but `"encoder"`.

        Returns:
            A `RandomProjectionTokenizer` for the cold start, else a `BridleTokenizer`.
        """
        if phase.kind != "cold_start":
            return BridleTokenizer(
                self._tokenizer_backbone(), self._quantizer(), name="tokenizer"
            )
        return RandomProjectionTokenizer(
            self.backbone.patch_size,
            self.backbone.hidden_dim,
            self._quantizer(),
            self.backbone.position_layout if self.cold_start_positions else None,
            self.cold_start_centered,
            name="tokenizer",
        )

    def _quantizer(self):
        return ResidualQuantizer(
            self.num_levels,
            self.codebook_size,
            dim=self.code_dim,
            **{"seed": self.seed, **self.quantizer_options},
        )

    def _new_decoder(self, num_levels):
        return CodeDecoder(
            num_levels,
            self.codebook_size,
            use_class_token=self.backbone.use_class_token,
            name="decoder",
            **{**decoder_size(self.backbone), **self.decoder_options},
        )

    def _next_decoder(self, phase):
        keeps_codes = self._earlier_tokenizer(phase) is not None
        decoder = self._new_decoder(self.num_levels * (2 if keeps_codes else 1))
        if phase.kind != "cold_start" and self.decoder_start == "previous":
            decoder.build((None, None, self.backbone.hidden_dim))
            decoder.copy_body(self.decoder)
            if keeps_codes:
                decoder.copy_last_levels(self.decoder, self.num_levels)
        return decoder

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

    def _tokenization(self, tokenizer, with_codes=False):
        return Tokenization(self.backbone, tokenizer, self.augmentation, with_codes)

    def _set_codebooks(self, phase, batches, count):
        """Sets a new tokenizer's codebooks by k-means on its vectors."""
        if phase.kind == "encoder" or count == 0:
            return
        model = self._tokenization(self.tokenizer)
        outputs = map(local_function(model), first_batches(batches, count))
        self.tokenizer.quantizer.adapt((x["vectors"], x["is_real"]) for x in outputs)

    def _parts(self, phase):
        """The networks that a phase ends with, by name."""
        parts = {"tokenizer": self.tokenizer}
        if phase.kind in ("tokenizer", "joint"):
            parts["estimator"] = self.estimator
        if phase.kind != "tokenizer":
            parts |= {"backbone": self.backbone, "decoder": self.decoder}
        return parts

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
            "cold_start_centered",
            "keep_cold_start_codes",
            "tokenizer_start",
            "decoder_start",
            "tokenize",
            "seed",
        )
        serialize = keras.saving.serialize_keras_object
        policy = keras.config.dtype_policy().name
        return {"dtype_policy": policy} | {
            name: _without_names(serialize(getattr(self, name))) for name in names
        }


def _with_defaults(quantizer_options):
    """Adds what serves pretraining better than the quantizer's own defaults."""
    defaults: dict[str, Any] = {"normalize": "level"}
    if quantizer_options.get("codebook_update") != "gradient":
        defaults["restart_threshold"] = 0.1
    return {**defaults, **quantizer_options}


def _check_choice(name, value, choices):
    if value not in choices:
        first, second = choices
        raise ValueError(
            f"`{name}` must be {first!r} or {second!r}. Received: {name}={value!r}"
        )


def _with_reading_speed(options, make_batches):
    """Adds what a progress bar compares the training's speed with."""
    batches = make_batches(0)
    timing = timing_of(batches)
    if options.verbose != 1 or timing is None:
        return options
    return options._replace(reading_speed=timing.reading_speed(batches))


def _fresh_copy(layer):
    """Copies a layer without weights, so that each phase starts with its own seed."""
    return None if layer is None else type(layer).from_config(layer.get_config())


def _without_names(config):
    """Drops the names of layers, which Keras numbers anew in every process."""
    if isinstance(config, dict) and "DTypePolicy" in str(config.get("class_name")):
        return config
    if isinstance(config, dict):
        return {k: _without_names(v) for k, v in config.items() if k != "name"}
    if isinstance(config, (list, tuple)):
        return [_without_names(value) for value in config]
    return config


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
    from keras_bridle.training.interleaved import load_run

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
