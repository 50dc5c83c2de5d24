"""Probes of whole encoders, on arrays or files."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from keras_bridle.evaluation.feature_extractor import run_batches
from keras_bridle.evaluation.file_features import FileModel
from keras_bridle.evaluation.input_features import InputFeatures
from keras_bridle.evaluation.patch_features import PatchFeatures
from keras_bridle.evaluation.probe import probe


class ProbeData(NamedTuple):
    """Labeled examples to probe encoders with.

    Args:
        inputs: function of a backbone that returns an array of raw inputs, or a
            `tf.data.Dataset` of batches `(inputs, places)`, where places are rows of
            `labels`; rows that it leaves out are left out.
        labels: int array of shape `(rows,)`, or zeros and ones of shape
            `(rows, classes)`.
        class_names: sequence of strings.
        splits: list of tuples `(train, test)` of int arrays, rows of `labels`.
        groups: optional int array of shape `(rows,)`, as of `linear_probe`.
    """

    inputs: Callable
    labels: np.ndarray
    class_names: Any
    splits: list[tuple[np.ndarray, np.ndarray]]
    groups: np.ndarray | None = None


def probe_encoder(
    backbone,
    data,
    kinds,
    segments=1,
    batch_size=32,
    seed=0,
    options=None,
    most_gigabytes=8.0,
):
    """Probes a frozen encoder.

    Args:
        backbone: `BridleBackbone`.
        data: `ProbeData`.
        kinds: list of strings, as of `probe`.
        segments: int, as of `extract_features`; the attentive probe has all patches.
        batch_size: int, examples per step of the encoder.
        seed: int, as of `probe`.
        options: optional dict from kind to a dict of more arguments of `probe`.
        most_gigabytes: float, the most that the patches for the attentive probe may
            take in memory.

    Returns:
        A dict from kind to a list with the `ClassificationMetrics` of each split.

    Raises:
        ValueError: if no example can be read, or patches would need more memory.
    """
    found: dict[str, Any] = {}
    vectors = [kind for kind in kinds if kind != "attentive"]
    if vectors:
        network = FileModel(backbone, segments=segments)
        features, rows = _features(network, data, backbone, batch_size)
        found |= _scores(vectors, features["features"], rows, data, seed, options)
    if "attentive" in kinds:
        network = FileModel(backbone, per="patch")
        limit = most_gigabytes * 1e9
        features, rows = _features(network, data, backbone, batch_size, limit)
        patches = PatchFeatures(features["features"], features["is_real"])
        found |= _scores(["attentive"], patches, rows, data, seed, options)
    return {kind: found[kind] for kind in kinds}


def probe_inputs(
    backbone, data, kinds, segments=1, batch_size=32, seed=0, options=None
):
    """Probes plain features of what an encoder starts from, see `InputFeatures`.

    Args:
        backbone: as of `probe_encoder`, as the others.
        data: as above.
        kinds: as above; the attentive probe is left out.
        segments: as above.
        batch_size: as above.
        seed: as above.
        options: as above.

    Returns:
        A dict as of `probe_encoder`.
    """
    kinds = [kind for kind in kinds if kind != "attentive"]
    if not kinds:
        return {}
    network = InputFeatures(backbone, segments)
    features, rows = _features(network, data, backbone, batch_size)
    return _scores(kinds, features["features"], rows, data, seed, options)


def mean_per_class(several):
    """Averages the lines of each class over splits, where they are defined.

    Args:
        several: list of `ClassificationMetrics`.

    Returns:
        A list of dicts, as `ClassificationMetrics.per_class`; examples are added up.
    """
    rows = []
    for lines in zip(*(metrics.per_class for metrics in several), strict=True):
        row = {
            "name": lines[0]["name"],
            "examples": sum(line["examples"] for line in lines),
        }
        for name in ("accuracy", "average precision", "AUC"):
            known = [line[name] for line in lines if line[name] is not None]
            row[name] = float(np.mean(known)) if known else None
        rows.append(row)
    return rows


def _features(network, data, backbone, batch_size, limit=float("inf")):
    """Returns features of all examples that can be read, and which those are."""
    columns: dict[str, list] = {}
    rows: list[np.ndarray] = []
    count = size = 0
    for outputs, others in run_batches(network, data.inputs(backbone), batch_size):
        if not isinstance(outputs, dict):
            outputs = {"features": outputs}
        if network.name == "file_model" and network.per == "patch":
            outputs["features"] = outputs["features"].astype("float16")
        for name, values in outputs.items():
            columns.setdefault(name, []).append(values)
        start, count = count, count + len(outputs["features"])
        rows.append(others[0] if others else np.arange(start, count))
        size += outputs["features"].nbytes
        total = size / count * len(data.labels)
        if total > limit:
            raise ValueError(
                f"The patches of {len(data.labels)} examples would take "
                f"{total / 1e9:.1f} GB of memory, more than {limit / 1e9:.1f}. Probe "
                "fewer examples, or by another probe than the attentive one"
            )
    if not rows:
        raise ValueError("No example can be read.")
    joined = {name: np.concatenate(values) for name, values in columns.items()}
    return joined, np.concatenate(rows)


def _scores(kinds, features, rows, data, seed, options):
    # Where a row of the labels is among the features, -1 if it could not be read.
    places = np.full(len(data.labels), -1)
    places[rows] = np.arange(len(rows))
    found: dict[str, list] = {kind: [] for kind in kinds}
    for split in data.splits:
        train, test = (part[places[part] >= 0] for part in split)
        for name, part in (("training", train), ("test", test)):
            if not len(part):
                raise ValueError(f"No {name} example can be read.")
        take = (
            features.take
            if isinstance(features, PatchFeatures)
            else features.__getitem__
        )
        for kind in kinds:
            more = dict((options or {}).get(kind, {}))
            if kind == "linear" and data.groups is not None:
                more["groups"] = data.groups[train]
            found[kind].append(
                probe(
                    kind,
                    take(places[train]),
                    data.labels[train],
                    take(places[test]),
                    data.labels[test],
                    data.class_names,
                    seed,
                    **more,
                )
            )
    return found
