"""The history of a phase, in the forms in which it is kept."""

import csv

from keras_bridle.pretraining.atomic_files import atomic_file


def as_history(logs):
    """Turns a dict for each epoch into the dict of lists that Keras calls history.

    Args:
        logs: list with a dict of floats for each epoch.

    Returns:
        A dict from name to a list of floats.
    """
    history: dict[str, list[float]] = {}
    for epoch_logs in logs:
        for name, value in epoch_logs.items():
            history.setdefault(name, []).append(value)
    return history


def write_history(path, logs):
    """Writes a line an epoch, anew each time: no line is lost or there twice.

    Args:
        path: `pathlib.Path` of a CSV file.
        logs: list with a dict of floats for each epoch.
    """
    names = list(dict.fromkeys(name for epoch_logs in logs for name in epoch_logs))
    with atomic_file(path) as unfinished, unfinished.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["epoch", *names])
        writer.writeheader()
        writer.writerows({"epoch": i, **values} for i, values in enumerate(logs))
