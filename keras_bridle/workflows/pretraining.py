"""Pretraining from a command line."""

import dataclasses
import functools
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
from threadpoolctl import threadpool_limits

from keras_bridle.cli import Setup
from keras_bridle.config import (
    ArgumentError,
    Count,
    DataOptions,
    MethodOptions,
    Natural,
    RunOptions,
    TrainingOptions,
    ZeroToOne,
    check,
    flag,
    option,
)
from keras_bridle.data.layouts import list_files
from keras_bridle.distribution import broadcast, is_chief, process_shard
from keras_bridle.evaluation.monitor import watch, watch_files
from keras_bridle.evaluation.report import RunReport
from keras_bridle.modalities import encoder_of, modality_of
from keras_bridle.models.backbone import BridleBackbone
from keras_bridle.models.presets import decoder_size
from keras_bridle.training.batches import first_batches
from keras_bridle.training.checkpoint import write_json
from keras_bridle.training.interleaved import InterleavedPretraining
from keras_bridle.training.trackers import TRACKERS, tracked


@dataclasses.dataclass(kw_only=True)
class PretrainingOptions(TrainingOptions, MethodOptions, RunOptions, DataOptions):
    """Encoder: the options of the three recipes."""

    preset: str = flag("base", "tiny, small, base, large, or a folder")
    patch_size: tuple[Count, ...] | None = option(
        None, "sides of a patch; by default the preset's"
    )
    teacher: str | None = flag(
        None, "encoder that the first tokenizer learns from; values as for --preset"
    )
    mask_ratio: ZeroToOne = flag(0.8, "share of patches to mask")
    decoder_dim: Count | None = option(
        None, "width of the decoder; by default the preset's"
    )
    decoder_layers: Count | None = option(
        None, "depth of the decoder; by default the preset's"
    )
    augmentation: bool = option(True, "train on augmented inputs")
    monitor: bool = option(True, "monitor the encoder's features", learned=False)
    tracker: Literal[TRACKERS] | None = flag(  # type: ignore[valid-type]
        None, f"log to {', '.join(TRACKERS)}", learned=False
    )
    distribute: Natural = flag(
        0,
        "train on all devices and processes; on JAX, N shards networks over N devices",
        const=1,
        learned=False,
    )


class Pretraining(Setup):
    """A pretraining recipe.

    Args:
        modality: `AUDIO`, `IMAGE` or `VIDEO`.
        kind: class of `PretrainingOptions`.
        description: string, the start of `--help`.
        sample: dict, the recipe's defaults on the sample data.
        own: dict, its defaults on `--data`.
        arguments: optional list of strings, by default the command line's.

    Attributes:
        reading: dict, how to read raw inputs.
        inputs: the inputs of `InterleavedPretraining.fit()`, after `load()`.
        examples: array of some raw inputs.
    """

    def __init__(self, modality, kind, description, sample, own, arguments=None):
        self.modality = modality
        self.encoder: Any = None
        self.profiles = {"Without --data": sample, "With --data": own}
        super().__init__(kind, description, arguments, self.profiles)

    def defaults(self, given):
        sample, own = self.profiles.values()
        found = sample if given.get("data") is None else own
        preset = given.get("preset", "")
        if not preset or not ("://" in preset or Path(preset).exists()):
            return found
        if given.get("patch_size") is not None:
            raise ArgumentError("patch_size", "left to the encoder in --preset", "one")
        self.encoder = encoder_of(preset)
        if self.encoder is None or modality_of(self.encoder) is not self.modality:
            expected = f"the folder of an encoder for {self.modality.name}"
            raise ArgumentError("preset", expected, preset)
        sizes = self.modality.sizes(self.encoder).items()
        return found | {name: size for name, size in sizes if name in found and size}

    def load(self, sample):
        """Loads the data.

        Args:
            sample: function of `reading` that returns the sample data, and some of it.
        """
        options, modality = self.options, self.modality
        encoder = self.encoder
        if encoder is None:
            encoder = encoder_of(f"bridle_{modality.name}_{options.preset}")
            encoder.patch_size = options.patch_size or encoder.patch_size
        self.reading = modality.reading_of(options, encoder)
        self.steps_per_epoch = None
        if options.data is not None:
            self._load_files()
            return
        if self.encoder is None:
            self.reading |= modality.sample_channels
        self.inputs, self.examples = sample(self.reading)
        self.monitor = lambda: watch(*modality.sample(self.reading)[0])

    def _load_files(self):
        options, modality = self.options, self.modality
        data, layout, segments = options.data, options.layout, options.segments
        split = "train" if layout in ("speech_commands", "imagenet") else None
        files = list_files(modality.name, data, layout, segments=segments, split=split)
        self.list_data(files)
        self.steps_per_epoch = len(files) // options.batch_size
        expected = f"at most {len(files)}, the number of files"
        check(self.steps_per_epoch != 0, "batch_size", expected, options.batch_size)
        reading = self.reading
        if options.augmentation:
            reading = modality.enlarged(reading)

        def batches(epoch, first_batch=0, **more):
            return modality.dataset(
                files,
                reading,
                batch_size=options.batch_size,
                shuffle=True,
                labels=False,
                seed=options.seed,
                initial_epoch=epoch,
                first_batch=first_batch,
                strict=options.strict,
                report=self.read_report,
                **more,
            )

        with self.read_report.reraise():
            # Shuffled, as the first files may share a class.
            self.examples = np.concatenate(list(first_batches(batches(0), 4)))
        self.inputs = functools.partial(batches, repeat=True, shard=process_shard())
        self.monitor = functools.partial(
            watch_files, modality, files, self.reading, self.read_report
        )

    def backbone(self):
        """Builds the encoder that `preset` names, or loads it from a folder."""
        options = self.options
        if self.encoder is not None:
            return BridleBackbone.from_preset(options.preset)
        changes = {"patch_size": options.patch_size} if options.patch_size else {}
        return self.modality.new_encoder(
            options.preset, self.examples, self.reading, **changes
        )

    def train(self, backbone, mask, augmentation, probes, title):
        """Pretrains, and reports.

        `augmentation` lists layers for raw inputs. `probes`, for the sample data, is a
        function of the reading and the backbone. It returns a function that lists the
        probes of the current encoder, and a dict of functions that list those of
        baselines. A probe is a name, a function and its arguments; several with one
        name are draws of labels. `title` is the title of their table.
        """
        options = self.options
        shown: dict[str, Any] = {}
        if options.data is None:
            of_encoder, others = probes(self.reading, backbone)
            baselines = {
                name: functools.partial(_run_probes, function)
                for name, function in others.items()
            }
            shown = {"baselines": baselines, "title": title}
            shown["probe"] = functools.partial(_run_probes, of_encoder)
        size = decoder_size(backbone, options.decoder_dim, options.decoder_layers)
        size |= options.decoder_options
        if options.augmentation:
            layers = keras.Sequential(augmentation, name="augmentation")
        pretraining = InterleavedPretraining(
            backbone,
            mask,
            layers if options.augmentation else None,
            options.of(MethodOptions).replace(decoder_options=size),
            options.teacher,
        )
        report = RunReport(
            options.directory,
            self.examples,
            resume=options.resume,
            console=self.console,
            **shown,
        )
        # All workers must have the same rows left to probe.
        report.rows = broadcast(report.rows)

        def on_start(pretraining):
            self.is_over = True
            if is_chief():
                self._save_options()
                self.keep_digest()
            report.on_start(pretraining)

        callbacks = [self.monitor()] if options.monitor else []
        with tracked(options) as tracker:
            pretraining.fit(
                self.inputs,
                options.directory,
                options.resume,
                self.steps_per_epoch,
                options.of(TrainingOptions),
                callbacks=[*callbacks, *tracker],
                on_start=on_start,
                on_phase_end=report.on_phase_end,
                verbose=0 if options.quiet else 1,
            )
        backbone.save_to_preset(str(Path(options.directory, "preset")))
        report.finish(pretraining)
        self.list_skipped()
        self.say(f"Everything is in {options.directory}, plots in {report.folder}")
        return pretraining

    def _save_options(self):
        """Adds the recipe's options to the run's settings."""
        path = Path(self.options.directory, "settings.json")
        content = json.loads(path.read_text()) | {"recipe": self.options.settings()}
        write_json(path, content)


def _run_probes(probes, *_):
    """Runs probes, two at a time, each on one thread."""
    found: dict[str, Any] = {}
    with threadpool_limits(1), ThreadPoolExecutor(2) as pool:
        waiting = [(name, pool.submit(*probe)) for name, *probe in probes()]
        for name, probe in waiting:
            accuracy = getattr(probe.result(), "accuracy", probe.result())
            found.setdefault(name, []).append(accuracy)
    return {name: x[0] if len(x) == 1 else x for name, x in found.items()}
