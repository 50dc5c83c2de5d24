"""Writes what an encoder finds in a folder of files: embeddings, and codes.

    KERAS_BACKEND=jax python recipes/extract_features.py --from runs/audio \
        --data my_recordings/ --seconds 10 --directory runs/features

`--from` names the directory of a run (whose tokenizer then gives codes as well), a
preset's folder, or a size without training such as `bridle_audio_tiny`. What the
encoder takes, audio, images or video, is what is looked for in `--data`.

The directory gets `parts/`, each of some files: NumPy archives, or with
`--format parquet` (which needs pyarrow) Parquet files, with a row for each file, or
`--per patch`; `skipped_files.csv`, the files that could not be read; and `map.png`, in
which rows that are alike lie near each other. It can be stopped at any time, and goes
on with the same command and `--resume`.

In Python it is, and `extract_file_features` keeps them in memory:

    run = keras_bridle.pretraining.load_run("runs/audio")
    write_file_features("runs/features", run.backbone, "my_recordings/", seconds=10)
    features = load_file_features("runs/features").features
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from pathlib import Path

import numpy as np
from rich.console import Console

from keras_bridle import cli as command_line
from keras_bridle.cli import (
    Setup,
    check_paths,
    list_skipped,
    refuse_taken,
    whole_number,
)
from keras_bridle.data.layouts import MANIFESTS
from keras_bridle.evaluation.features import (
    clip_shape,
    is_taken,
    load_file_features,
    modality_of,
    patch_grid,
    write_file_features,
)
from keras_bridle.evaluation.plots import import_umap, plot_embedding

# More points hide each other, and UMAP takes long.
MOST_POINTS = 5000


def parse_arguments(arguments=None):
    parser = command_line.encoder_parser(__doc__)
    add = parser.add_argument
    add("--from", dest="source", required=True, metavar="RUN_OR_PRESET")
    add("--data", required=True, metavar="PATH", help="folder, or CSV file of files")
    add("--class-folders", action="store_true", help="folders are classes: label rows")
    add("--label-column", help="of a CSV file: label rows")
    add("--per", choices=("file", "patch"), default="file", help="what a row is")
    count = whole_number(1)
    add(
        "--segment-means",
        type=count,
        default=1,
        metavar="N",
        help="per file: join the means of N equal parts",
    )
    add("--no-codes", action="store_true", help="no codes, though there is a tokenizer")
    add("--format", choices=("npz", "parquet"), default="npz")
    add("--part-size", type=count, default=1024, help="files per part")
    add("--picture", choices=("pca", "umap", "none"), default="pca", help="map.png")
    add("--resume", action="store_true", help="go on with what is in --directory")
    parser.set_defaults(directory="runs/features", fail=parser.error)
    args = parser.parse_args(arguments)
    if args.per == "patch" and args.segment_means != 1:
        parser.error("--segment-means needs --per file")
    check_paths(args)
    refuse_taken(args, is_taken(args.directory))
    if args.picture == "umap":
        # Now, and not after all files are encoded.
        try:
            import_umap()
        except ImportError as error:
            parser.error(f"--picture umap: {error}")
    return args


def main(arguments=None):
    args = parse_arguments(arguments)
    console = Console()
    with Setup(args):
        encoder = command_line.load_encoder(args.source)
        reading = command_line.reading_of(args, encoder.backbone)
        shape = clip_shape(encoder.backbone, reading)
        command_line.check_segments(args, [patch_grid(encoder.backbone, shape)])
        report = write_file_features(
            args.directory,
            encoder.backbone,
            read_source(args, modality_of(encoder.backbone)),
            None if args.no_codes else encoder.tokenizer,
            per=args.per,
            segments=args.segment_means,
            batch_size=args.batch_size,
            format=args.format,
            part_size=args.part_size,
            resume=args.resume,
            progress=not args.quiet,
            console=console,
            **reading,
        )
        found = load_file_features(args.directory)
        if args.picture != "none" and len(found.features) >= 3:
            draw(args, found)
    codes = "" if found.codes is None else f", codes {found.codes.shape[1:]}"
    console.print(
        f"{len(found.features)} rows of {found.features.shape[1]} numbers{codes} are "
        f"in {args.directory}",
        markup=False,
    )
    list_skipped(report, args.directory, console)


def read_source(args, modality):
    """Lists the files; a folder as it is, so that names are relative to it."""
    kind = MANIFESTS[modality]
    if Path(args.data).is_file():
        if args.class_folders:
            raise ValueError("--class-folders needs a folder as --data")
        if args.label_column is not None:
            command_line.check_columns(args, ["label_column"])
        return kind.from_csv(args.data, label_column=args.label_column)
    if args.label_column is not None:
        raise ValueError("--label-column needs a CSV file as --data")
    if args.class_folders:
        return kind.from_folder(args.data, class_folders=True)
    return args.data


def draw(args, found):
    """Draws a map of the rows, or of some of them."""
    rows = np.arange(len(found.features))
    if len(rows) > MOST_POINTS:
        rows = np.sort(np.random.default_rng(args.seed).permutation(rows)[:MOST_POINTS])
    plot_embedding(
        found.features[rows],
        Path(args.directory, "map.png"),
        None if found.labels is None else found.labels[rows],
        method=args.picture,
        title=f"{args.source}: {args.data}",
        seed=args.seed,
    )


if __name__ == "__main__":
    main()
