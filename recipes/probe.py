"""Probes frozen encoders: what simple classifiers read out of their features.

On the sample data of the encoder's kind, such as after `recipes/pretrain_image.py`:

    KERAS_BACKEND=jax python recipes/probe.py --from runs/image_sample --probe all

On your own labeled files, in class folders, a CSV file, or a known data set's layout:

    python recipes/probe.py --from runs/audio --data ESC-50-master --layout esc50 \
        --probe linear knn attentive

`--from` names directories of runs, presets' folders, or sizes without training such as
`bridle_audio_tiny`; several are compared. `linear` is logistic regression whose penalty
is chosen by cross-validation; `dense` the published one, batch normalization without
scale and offset and a dense layer; `knn` a vote of the nearest; `attentive` attends to
the patches by a learned query. Without `--seconds`, 5 are read of each recording of
ESC-50, 1 of Speech Commands, and 10.24 of others. `--epochs`, `--learning-rate`,
`--weight-decay` and `--probe-batch-size` are those of `dense` and `attentive`;
recipes/README.md has the published ones. Each encoder is also shown without its
training, and plain log-mel statistics or small gray pixels in its place.

Where nothing parts the files, 5 folds are drawn, and numbers are mean and standard
deviation over them; for an encoder that has seen the files without their labels. The
directory gets tables (`probes.md`, `probes.csv`, all metrics in `metrics.csv`) and, of
each encoder and probe, a table of the classes and a confusion matrix. Probes that it
holds already are replaced only with `--overwrite`.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import contextlib
import functools
from pathlib import Path

import numpy as np
from rich.console import Console

from keras_bridle import cli as command_line
from keras_bridle.cli import (
    Setup,
    above_0,
    check_paths,
    from_0,
    list_skipped,
    whole_number,
)
from keras_bridle.data.files import ReadReport
from keras_bridle.data.layouts import LAYOUT_SECONDS
from keras_bridle.data.samples import load_fashion, load_syllables, synthetic_pans
from keras_bridle.evaluation.features import (
    clip_shape,
    file_dataset,
    modality_of,
    patch_grid,
)
from keras_bridle.evaluation.plots import plot_confusion_matrix
from keras_bridle.evaluation.probes import (
    PROBES,
    ProbeData,
    mean_per_class,
    probe_encoder,
    probe_inputs,
)
from keras_bridle.evaluation.report import (
    probe_table,
    write_in_all_forms,
    write_results,
)
from keras_bridle.training.examples import draw_few

# How long recordings are where nothing says otherwise: AudioSet's.
SECONDS = 10.24
SAMPLE_SECONDS = 0.36
# A syllable is told by the order of what is heard.
SAMPLE_SEGMENTS = 8
SAMPLE_PER_CLASS = 100
# Those that take steps, and so need settings for them.
TRAINED_PROBES = ("dense", "attentive")


def parse_arguments(arguments=None):
    parser = command_line.encoder_parser(__doc__)
    command_line.add_data_flags(parser)
    add = parser.add_argument
    add("--from", dest="sources", nargs="+", required=True, metavar="RUN_OR_PRESET")
    add("--probe", nargs="+", choices=(*PROBES, "all"), default=["linear", "knn"])
    count = whole_number(1)
    add("--epochs", type=count, help="of the dense and attentive probes")
    add("--learning-rate", type=above_0, help="likewise")
    add("--weight-decay", type=from_0, help="likewise")
    add(
        "--probe-batch-size",
        type=count,
        help="likewise; --batch-size is the encoder's",
    )
    add("--per-class", type=count, help="train on so many examples of each class")
    add(
        "--segment-means",
        type=count,
        metavar="N",
        help="features are the means of N equal parts, joined",
    )
    add("--most-gigabytes", type=above_0, default=8.0, help="of patches in memory")
    add("--overwrite", action="store_true", help="replace what --directory holds")
    add("--no-baselines", action="store_true", help="only the encoders named")
    parser.set_defaults(directory="runs/probes", fail=parser.error)
    args = parser.parse_args(arguments)
    if args.data is None:
        needing = (*command_line.DATA_FLAGS, "reader", "sampling_rate")
        command_line.refuse_flags(parser, args, needing, "needs --data")
    check_paths(args)
    if Path(args.directory, "probes.json").exists() and not args.overwrite:
        parser.error(
            f"--directory {args.directory} holds probes already: pass --overwrite to "
            "replace them, or name another directory"
        )
    if "all" in args.probe:
        args.probe = list(PROBES)
    if not set(args.probe) & set(TRAINED_PROBES):
        names = ("epochs", "learning_rate", "weight_decay", "probe_batch_size")
        reason = f"needs --probe {' or '.join(TRAINED_PROBES)}"
        command_line.refuse_flags(parser, args, names, reason)
    return args


def main(arguments=None):
    args = parse_arguments(arguments)
    console, report = Console(), ReadReport()
    with Setup(args) as setup:
        encoders = [command_line.load_encoder(source) for source in args.sources]
        data = read_data(args, encoders, report)
        kinds = probes_for(args, data, console)
        networks = [
            (encoder.name, probe_encoder, encoder.backbone) for encoder in encoders
        ]
        if not args.no_baselines:
            networks = [*baselines(encoders), *networks]
        options = {kind: training_options(args) for kind in TRAINED_PROBES}
        found = {}
        for name, function, backbone in networks:
            if not args.quiet:
                console.print(f"Probing {name} ...", markup=False)
            more = {}
            if function is probe_encoder:
                more["most_gigabytes"] = args.most_gigabytes
            with naming_data(setup, report):
                found[name] = function(
                    backbone,
                    data,
                    kinds,
                    segments=args.segment_means,
                    batch_size=args.batch_size,
                    seed=args.seed,
                    options=options,
                    **more,
                )
            # The data can be read: what goes wrong now is a fault.
            setup.is_over = True
        show(args, found, data, console)
    list_skipped(report, args.directory, console)


@contextlib.contextmanager
def naming_data(setup, report):
    """Has an error say in which data it is, and which file could not be read."""
    try:
        yield
    except ValueError as error:
        if setup.args.data is None or setup.is_over:
            raise
        unread = "".join(f" ({x.path}: {x.reason})" for x in report.skipped[:1])
        raise ValueError(f"--data {setup.args.data}: {error}{unread}") from error


def training_options(args):
    """The settings of the probes that are trained, where flags give any."""
    given = {
        "epochs": args.epochs,
        "learning_rate": args.learning_rate,
        "weight_decay": args.weight_decay,
        "batch_size": args.probe_batch_size,
    }
    return {name: value for name, value in given.items() if value is not None}


def read_data(args, encoders, report):
    """Reads the labeled data that `--data` and the flags after it name."""
    modalities = {modality_of(encoder.backbone) for encoder in encoders}
    if len(modalities) > 1:
        raise ValueError(f"--from names encoders of {' and '.join(sorted(modalities))}")
    (modality,) = modalities
    if args.data is None:
        command_line.check_reading_flags(args, modality)
        data = SAMPLES[modality](args, encoders[0].backbone)
        check_segments(args, encoders, lambda x: data.inputs(x).shape[1:])
        args.segment_means = args.segment_means or (
            SAMPLE_SEGMENTS if modality == "audio" else 1
        )
        args.per_class = args.per_class or (
            SAMPLE_PER_CLASS if modality == "image" else None
        )
    else:
        data = own_files(args, modality, report)
        check_segments(args, encoders, lambda x: clip_shape(x, reading(args, x)))
        args.segment_means = args.segment_means or 1
    if args.per_class is None:
        return data
    if data.labels.ndim == 2:
        raise ValueError("--per-class needs files with one class each")
    splits = [
        (train[draw_few(data.labels[train], args.per_class, args.seed)], test)
        for train, test in data.splits
    ]
    return data._replace(splits=splits)


def check_segments(args, encoders, shape_of):
    """Compares `--segment-means` with the patches of each encoder's inputs."""
    backbones = [encoder.backbone for encoder in encoders]
    grids = [patch_grid(backbone, shape_of(backbone)) for backbone in backbones]
    command_line.check_segments(args, grids)


def reading(args, backbone):
    """How files are read."""
    seconds = LAYOUT_SECONDS.get(args.layout, SECONDS)
    return command_line.reading_of(args, backbone, seconds=seconds)


def own_files(args, modality, report):
    files = command_line.data_of(args, modality, report).without_validation()

    def inputs(backbone):
        return file_dataset(
            backbone,
            files.manifest,
            args.batch_size,
            report=report,
            **reading(args, backbone),
        )

    labels = files.manifest.all_labels()
    return ProbeData(inputs, labels, files.manifest.class_names, files.splits)


def sample_syllables(args, backbone):
    """Initials of syllables; speakers say other syllables in training and test."""
    rate = getattr(backbone.front_end, "sample_rate", 16000)
    if rate != 16000:
        raise ValueError(
            f"The encoder takes sounds at {rate} Hz, which need --data: sample sounds "
            "have 16000"
        )
    samples = round(16000 * (args.seconds or SAMPLE_SECONDS))
    parts = [load_syllables(x, "initial", samples) for x in ("train", "test")]
    groups = [load_syllables(x, "syllable", samples)[1] for x in ("train", "test")]
    return in_memory(parts, np.concatenate(groups))


def sample_clothes(args, backbone):
    if args.image_size not in (None, 28):
        raise ValueError("--image-size needs --data: sample pictures have 28")
    channels = backbone.input_dims[-1]
    parts = [load_fashion(x) for x in ("train", "test")]
    return in_memory([(np.repeat(x, channels, -1), y, names) for x, y, names in parts])


def sample_pans(args, backbone):
    """Synthetic motion over real pixels, see `recipes/pretrain_video.py`."""
    num_frames, size, _, channels = backbone.input_dims
    load = functools.partial(
        synthetic_pans,
        num_frames=args.num_frames or num_frames,
        image_size=args.image_size or size,
        channels=channels,
        seed=1,
    )
    return in_memory([load("train", num_clips=1000), load("test", num_clips=500)])


SAMPLES = {"audio": sample_syllables, "image": sample_clothes, "video": sample_pans}


def in_memory(parts, groups=None):
    (train, train_labels, names), (test, test_labels, _) = parts
    inputs = np.concatenate([train, test])
    places = np.arange(len(inputs))
    return ProbeData(
        lambda backbone: inputs,
        np.concatenate([train_labels, test_labels]),
        names,
        [(places[: len(train)], places[len(train) :])],
        groups,
    )


def probes_for(args, data, console):
    """The probes that can be had of the data."""
    if data.labels.ndim == 1 or "linear" not in args.probe:
        return args.probe
    kinds = [kind for kind in args.probe if kind != "linear"]
    if not kinds:
        raise ValueError(
            "--probe linear takes one class for each file: for multi-label data, "
            "--probe dense is a linear probe"
        )
    console.print("Without the linear probe, which takes one class for each file")
    return kinds


def baselines(encoders):
    """What the encoders are compared with."""
    backbone = encoders[0].backbone
    plain = "log-mel" if modality_of(backbone) == "audio" else "pixels"
    rows = [(plain, probe_inputs, backbone)]
    for encoder in encoders:
        name = "untrained"
        if len(encoders) > 1:
            name = f"{encoder.name}, untrained"
        rows.append((name, probe_encoder, command_line.untrained(encoder.backbone)))
    return rows


def show(args, found, data, console):
    """Prints the table, and writes all there is."""
    folder = Path(args.directory)
    # Not every probe has baselines.
    found = {name: by_kind for name, by_kind in found.items() if by_kind}
    main_metric = "mAP" if data.labels.ndim == 2 else "accuracy"
    rows = [
        {
            "name": name,
            **{
                kind: [metrics.summary()[main_metric] for metrics in several]
                for kind, several in by_kind.items()
            },
        }
        for name, by_kind in found.items()
    ]
    write_in_all_forms(folder / "probes", rows)
    all_metrics = [
        {"name": name, "probe": kind, "split": split, **metrics.summary()}
        for name, by_kind in found.items()
        for kind, several in by_kind.items()
        for split, metrics in enumerate(several, start=1)
    ]
    write_results(folder / "metrics.csv", all_metrics)
    for name, by_kind in found.items():
        for kind, several in by_kind.items():
            stem = f"{name.strip('./').replace('/', '_').replace(', ', '_')}_{kind}"
            write_results(folder / f"{stem}_classes.csv", mean_per_class(several))
            if several[0].confusion is not None:
                plot_confusion_matrix(
                    sum(metrics.confusion for metrics in several),
                    folder / f"{stem}_confusion.png",
                    data.class_names,
                    f"{name}, {kind}",
                )
    splits = f", {len(data.splits)} folds" if len(data.splits) > 1 else ""
    console.print(probe_table(rows, title=f"{main_metric} of probes{splits}"))
    several = next(iter(next(iter(found.values())).values()))
    excluded = set.intersection(*(set(metrics.excluded) for metrics in several))
    if excluded:
        console.print(f"{len(excluded)} classes have no test example and do not count")
    console.print(f"Everything is in {folder}", markup=False)


if __name__ == "__main__":
    main()
