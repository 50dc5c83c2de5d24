"""Prints what `compare.py` has found so far, the modalities side by side.

    KERAS_BACKEND=jax python benchmarks/quality/tables.py

The tables of `benchmarks/README.md`: on the samples and on other data, with vectors
brought to unit length at each level and once. A way that was run with too few of the
seeds is "-".
"""

import argparse
import json

import numpy as np
from compare import WAYS, WITHOUT_QUANTIZER, result_path

# What the probes of each modality tell, under the names of the samples and others.
PROBES = {
    "audio": ("initials, in order", "initials, mean"),
    "image": ("20 labels a class", "100 labels a class"),
    "video": ("direction",),
}
HEADINGS = {
    None: (
        "syllables: initials, in order",
        "mean",
        "clothes: 20 labels a class",
        "100 labels",
        "pans: direction",
    ),
    "other": (
        "other speaker: initials, in order",
        "mean",
        "other clothes: 20 labels a class",
        "100 labels",
        "other pans: direction",
    ),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--directory", default="runs/quality")
    args = parser.parse_args()
    args.budget = 1
    for args.development in (None, "other"):
        for args.normalize in ("level", "input"):
            data = "Other data" if args.development else "The samples"
            print(f"\n{data}, --normalize {args.normalize}:\n")
            print_table(args)


def print_table(args):
    """Prints the ways that have been run with any modality, a line for each."""
    headings = [f"{len(args.seeds)} seeds", *HEADINGS[args.development]]
    print("|", " | ".join([*headings, "least usage", "minutes a run"]), "|")
    print("|---" * (len(headings) + 2) + "|")
    for way in WAYS:
        if args.normalize == "input" and way in WITHOUT_QUANTIZER:
            continue
        found = {modality: results(args, modality, way) for modality in PROBES}
        if any(found.values()):
            print("|", " | ".join([way, *cells(found)]), "|")


def results(args, modality, way):
    """The results of a way with all seeds, or none."""
    args.modality = modality
    paths = [result_path(args, way, seed) for seed in args.seeds]
    if not all(path.exists() for path in paths):
        return []
    return [json.loads(path.read_text()) for path in paths]


def cells(found):
    """What the line of a way says after its name."""
    scores = [
        spread([result[probe] for result in found[modality] if probe in result])
        if found[modality]
        else "-"
        for modality, probes in PROBES.items()
        for probe in probes
    ]
    usage = [mean(results, "least usage", 100, 0) for results in found.values()]
    minutes = [mean(results, "minutes", 1, 1) for results in found.values()]
    is_quantized = set(usage) - {"", "-"}
    return [*scores, " / ".join(usage) if is_quantized else "", " / ".join(minutes)]


def spread(values):
    """Mean and standard deviation in percent; nothing of nothing."""
    if not values:
        return ""
    values = 100 * np.array(values)
    return f"{values.mean():.1f} ± {values.std(ddof=len(values) > 1):.1f}"


def mean(results, name, factor, digits):
    """The mean of what the results say of something."""
    if not results:
        return "-"
    values = [factor * result[name] for result in results if name in result]
    return f"{np.mean(values):.{digits}f}" if values else ""


if __name__ == "__main__":
    main()
