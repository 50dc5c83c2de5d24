"""Cold starts that several ways to pretrain share, computed once."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import keras

import keras_bridle as kb
from keras_bridle.training.run import PhaseFiles


class InterleavedFromKeptColdStart(kb.InterleavedPretraining):
    """Looks for the cold start in a folder before it trains one.

    A phase draws the same random numbers whatever came before, so that what follows a
    kept cold start is what would follow one of its own.
    """

    def __init__(self, *args, cold_starts, **kwargs):
        super().__init__(*args, **kwargs)
        self.cold_starts = Path(cold_starts)

    def _run_phase(self, index, phase, call, files):
        if phase.kind == "cold_start":
            settings = {**self.settings(), **call.options.settings(), "phase": phase}
            for name in AFTERWARDS:
                del settings[name]
            settings["backend"] = keras.backend.backend()
            text = json.dumps(settings, sort_keys=True, default=str)
            name = hashlib.sha256(text.encode()).hexdigest()[:16]
            files = KeptColdStart(phase, self.cold_starts / name)
        super()._run_phase(index, phase, call, files)


# Options that matter after the cold start, or that its phase tells.
AFTERWARDS = (
    "keep_cold_start_codes",
    "rounds",
    "cold_start_epochs",
    "tokenizer_epochs",
    "encoder_epochs",
    "joint",
    "tokenizer_every",
    "tokenizer_loss_ratio",
    "encoder_learning_rate",
    "tokenizer_learning_rate",
    "cold_start_learning_rate",
)


class KeptColdStart(PhaseFiles):
    """The networks after a cold start, in a folder that appears when it is complete."""

    def __init__(self, phase, place):
        super().__init__(phase)
        self.place = place
        self.unfinished = place.with_name(f"{place.name}.{os.getpid()}")

    def is_done(self):
        return self.place.exists()

    def save(self, parts, history):
        self.unfinished.mkdir(parents=True)
        for name, part in parts.items():
            part.save_weights(self.unfinished / f"{name}.weights.h5")
        text = json.dumps(history, default=float)
        (self.unfinished / "history.json").write_text(text)

    def load(self, parts):
        for name, part in parts.items():
            part.load_weights(self.place / f"{name}.weights.h5")
        return json.loads((self.place / "history.json").read_text())

    def mark_done(self):
        if self.unfinished.exists():
            try:
                self.unfinished.rename(self.place)
            except OSError:  # another process was first
                shutil.rmtree(self.unfinished)
