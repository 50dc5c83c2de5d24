r"""Writes an encoder's embeddings and codes of the files in a folder.

    KERAS_BACKEND=jax python recipes/extract_features.py --from runs/audio \
        --data my_recordings/ --seconds 10 --directory runs/features

`--from` names the directory of a run (whose tokenizer then adds codes), a preset's
folder, or an untrained size such as `bridle_audio_tiny`. The recipe looks in `--data`
for the kind of files that the encoder takes: audio, images or video.

The directory gets `parts/`, NumPy archives or Parquet files with a row for each file,
or for each patch with `--per patch`; `skipped_files.csv`, the unreadable files; and
`map.png`, in which similar rows are close to each other. The same command with
`--resume` resumes a run that was stopped. In Python:

    run = keras_bridle.training.interleaved.load_run("runs/audio")
    extract = FeatureExtractor(run.backbone, run.tokenizer)
    extract.write("runs/features", "my_recordings/", seconds=10)
    features = load_file_features("runs/features").features
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import dataclasses
from pathlib import Path
from typing import Literal

import numpy as np

from keras_bridle.cli import Setup, check_segments, load_encoder
from keras_bridle.config import (
    ArgumentError,
    AudioReading,
    Count,
    Existing,
    Natural,
    RunOptions,
    VideoReading,
    flag,
    option,
)
from keras_bridle.data.layouts import list_files
from keras_bridle.evaluation.features import (
    FeatureExtractor,
    is_taken,
    load_file_features,
    optional_package,
)
from keras_bridle.evaluation.plots import plot_embedding
from keras_bridle.modalities import modality_of

# More points would hide each other, and UMAP is slow.
MOST_POINTS = 5000


@dataclasses.dataclass(kw_only=True)
class Options(RunOptions, VideoReading, AudioReading):
    """Options of this recipe."""

    hidden = ("dtype_policy", "num_frames", "sampling_rate")

    source: str | None = flag(None, "run, preset or size", name="--from")
    data: Existing | None = flag(None, "folder, or CSV file that lists files")
    class_folders: bool = flag(False, "label rows with the names of class folders")
    label_column: str | None = flag(None, "column of a CSV file to label rows with")
    per: Literal["file", "patch"] = flag("file", "write a row for each file or patch")
    segment_means: Count = flag(1, "concatenate the means of N equal segments")
    codes: bool = flag(True, "write no codes")
    format: Literal["npz", "parquet"] = flag("npz", "npz or parquet")
    part_size: Count = option(1024, "files in each part")
    picture: Literal["pca", "umap", "none"] = flag(
        "pca", "method of map.png: pca, umap or none"
    )
    batch_size: Count = flag(32, "batch size of the encoder")
    seed: Natural = flag(0, "seed of map.png")


class Extraction(Setup):
    """The command line."""

    def defaults(self, given):
        return {"directory": "runs/features"}

    def is_taken(self, folder):
        return is_taken(folder)

    def check(self):
        options = self.options
        for name in ("source", "data"):
            if getattr(options, name) is None:
                raise ArgumentError(name, "given", None)
        if options.per == "patch" and options.segment_means != 1:
            raise ArgumentError("segment_means", "1 for patches", options.segment_means)
        super().check()
        if options.picture == "umap":
            # Fail now rather than after all files are encoded.
            optional_package("umap", "umap")


def main(arguments=None):
    with Extraction(Options, __doc__, arguments) as recipe:
        options = recipe.options
        encoder = load_encoder(options.source)
        modality = modality_of(encoder.backbone)
        recipe.refuse_idle(modality)
        reading = modality.reading_of(options, encoder.backbone)
        check_segments(options.segment_means, encoder, reading)
        extract = FeatureExtractor(
            encoder.backbone,
            encoder.tokenizer if options.codes else None,
            options.per,
            options.segment_means,
        )
        source = read_source(options, modality)
        recipe.read_report.add_missing(list_files(modality.name, source))
        recipe.say_notes()
        recipe.read_report = extract.write(
            options.directory,
            source,
            batch_size=options.batch_size,
            format=options.format,
            part_size=options.part_size,
            resume=options.resume,
            progress=not options.quiet,
            console=recipe.console,
            **reading,
        )
        found = load_file_features(options.directory)
        if options.picture != "none" and len(found.features) >= 3:
            draw(options, found)
        codes = "" if found.codes is None else f", codes {found.codes.shape[1:]}"
        rows, columns = found.features.shape
        recipe.say(
            f"{rows} rows of {columns} numbers{codes} are in {options.directory}"
        )
        recipe.list_skipped()


def read_source(options, modality):
    """Returns a list of files, or a folder, so that names are relative to it."""
    is_table = Path(options.data).is_file()
    if is_table and options.class_folders:
        raise ArgumentError("class_folders", "left out for a CSV file", True)
    if not is_table and options.label_column is not None:
        raise ArgumentError("label_column", "left out for a folder", "it")
    if is_table:
        return list_files(
            modality.name, options.data, "csv", label_column=options.label_column
        )
    if options.class_folders:
        return list_files(modality.name, options.data, labels=True)
    return options.data


def draw(options, found):
    """Draws an embedding of the rows, or of some of them."""
    rows = np.random.default_rng(options.seed).permutation(len(found.features))
    rows = np.sort(rows[:MOST_POINTS])
    plot_embedding(
        found.features[rows],
        Path(options.directory, "map.png"),
        None if found.labels is None else found.labels[rows],
        method=options.picture,
        title=f"{options.source}: {options.data}",
        seed=options.seed,
    )


if __name__ == "__main__":
    main()
