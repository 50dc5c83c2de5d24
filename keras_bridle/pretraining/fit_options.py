"""What is the same for every phase of a run."""

from typing import NamedTuple

from keras_bridle.pretraining.nonfinite_steps import skipping
from keras_bridle.pretraining.optimization import adamw, warmup_cosine


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
