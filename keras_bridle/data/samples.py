"""The sample recordings that ship with the package; all samples as files."""

import csv
import functools
import io
import zipfile
from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from keras_bridle.data.image_samples import load_fashion
from keras_bridle.data.video_samples import SAMPLE_VIDEOS

SAMPLE_RATE = 16000
_FIELDS = ("initial", "final", "tone", "syllable")
_SPLITS = ("train", "test")


def load_syllables(
    split: str | None = None, field: str = "initial", num_samples: int = 8000
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Loads the spoken Mandarin syllables: one speaker, 0.2 to 0.43 s each.

    The test part shares no base syllable with the training part, so a probe must
    recognize an initial next to a final that it never met with it.
    The recordings are by ChionMeilin (voice Chu Lo), CC BY 3.0; see
    `sample_files/NOTICE`.

    Args:
        split: `"train"` (801 syllables), `"test"` (357), or `None` for both.
        field: what the labels say: `"initial"` (22 classes), `"final"` (36),
            `"tone"` (5) or `"syllable"` (the base syllable; classes of the two
            parts are disjoint).
        num_samples: int. Length of each waveform in samples at 16 kHz; longer
            recordings lose their end, shorter ones get zeros after it.

    Returns:
        A tuple `(waveforms, labels, class_names)`: float32 waveforms of shape
        `(n, num_samples)` in [-1, 1], int32 labels of shape `(n,)`, and the names
        that the labels index, the same for every split.

    Raises:
        ValueError: for an unknown split or field or a length below 1.

    Example:
    ```python
    from keras_bridle.data import load_syllables

    waveforms, labels, class_names = load_syllables("train", field="initial")
    print(waveforms.shape, class_names[labels[0]])
    ```
    """
    if split is not None and split not in _SPLITS:
        raise ValueError(
            f"`split` must be 'train', 'test' or None. Received: {split!r}"
        )
    if field not in _FIELDS:
        raise ValueError(f"`field` must be one of {_FIELDS}. Received: {field!r}")
    _check_length("num_samples", num_samples)
    table = _syllable_table()
    class_names = tuple(sorted({row[field] for row in table}))
    number = {name: index for index, name in enumerate(class_names)}
    rows = [row for row in table if split in (None, row["split"])]
    recordings = _recordings("mandarin_syllables.zip")
    waveforms = np.zeros((len(rows), num_samples), "float32")
    for waveform, row in zip(waveforms, rows, strict=True):
        recording = recordings[row["file"]][:num_samples]
        waveform[: len(recording)] = recording
    labels = np.array([number[row[field]] for row in rows], "int32")
    return waveforms, labels, class_names


def load_sonic_pi(seconds: float = 0.5, per_sound: int | None = None) -> np.ndarray:
    """Loads the Sonic Pi samples, music and ambience, cut into equal segments.

    165 unlabeled sounds, 324 s in all, CC0; see `sample_files/NOTICE`. Each sound
    is cut into segments that follow one another; the last one ends where the sound
    ends, so it overlaps the one before. A sound shorter than one segment gets zeros
    after it.

    Args:
        seconds: float. Length of a segment in seconds.
        per_sound: int or `None`. At most so many segments of each sound, its first and
            others spread evenly over it; `None` gives all.

    Returns:
        float32 array of shape `(n, round(16000 * seconds))` in [-1, 1].

    Raises:
        ValueError: for a length below one sample, or less than one segment per sound.

    Example:
    ```python
    from keras_bridle.data import load_sonic_pi

    print(load_sonic_pi(seconds=1.0).shape)
    ```
    """
    length = round(SAMPLE_RATE * seconds)
    _check_length("seconds", length)
    if per_sound is not None and per_sound < 1:
        raise ValueError(
            f"`per_sound` must be None, or 1 or more. Received: {per_sound!r}"
        )
    segments = []
    for recording in _recordings("sonic_pi.zip").values():
        last = max(len(recording) - length, 0)
        starts = np.array([*range(0, last, length), last])
        if per_sound is not None and per_sound < len(starts):
            starts = starts[
                np.linspace(0, len(starts) - 1, per_sound).round().astype(int)
            ]
        for start in starts:
            piece = recording[start : start + length]
            segments.append(np.pad(piece, (0, length - len(piece))))
    return np.stack(segments)


def extract_samples(directory: str | Path) -> Path:
    """Writes the samples as ordinary files, to try the file readers on.

    Args:
        directory: folder to write to; made if it does not exist. It gets
            `mandarin_syllables/` and `sonic_pi/` with Ogg files,
            `mandarin_syllables/mandarin_syllables.csv`, `fashion_mnist/` with a folder
            of 20 PNG files for each class, all of the test part, `video/` with the two
            videos, and the `NOTICE` with authors and licenses.

    Returns:
        The folder as a `pathlib.Path`.

    Example:
    ```python
    import tempfile
    from keras_bridle.data import AudioManifest, extract_samples

    with tempfile.TemporaryDirectory() as folder:
        extract_samples(folder)
        manifest = AudioManifest.from_csv(
            folder + "/mandarin_syllables/mandarin_syllables.csv",
            label_column="initial",
            split="train",
        )
        print(len(manifest))
    ```
    """
    directory = Path(directory)
    for name in ("mandarin_syllables", "sonic_pi"):
        with zipfile.ZipFile(io.BytesIO(_sample_bytes(f"{name}.zip"))) as archive:
            archive.extractall(directory / name)
    table = directory / "mandarin_syllables" / "mandarin_syllables.csv"
    table.write_bytes(_sample_bytes("mandarin_syllables.csv"))
    _extract_fashion(directory / "fashion_mnist")
    (directory / "video").mkdir(exist_ok=True)
    for name in SAMPLE_VIDEOS:
        contents = (_sample_folder() / "video" / name).read_bytes()
        (directory / "video" / name).write_bytes(contents)
    (directory / "NOTICE").write_bytes((_sample_folder() / "NOTICE").read_bytes())
    return directory


def _extract_fashion(directory: Path) -> None:
    images, labels, class_names = load_fashion("test")
    for label, name in enumerate(class_names):
        folder = directory / name.replace("/", "-")
        folder.mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(images[labels == label][:20, ..., 0]):
            Image.fromarray(image).save(folder / f"{number:02}.png")


def _check_length(name: str, length: int) -> None:
    if length < 1:
        raise ValueError(
            f"`{name}` must give at least one sample. Received: {length} samples"
        )


def _sample_folder() -> Traversable:
    return resources.files("keras_bridle.data") / "sample_files"


def _sample_bytes(name: str) -> bytes:
    return (_sample_folder() / "audio" / name).read_bytes()


@functools.cache
def _syllable_table() -> tuple[dict[str, str], ...]:
    text = _sample_bytes("mandarin_syllables.csv").decode("utf-8")
    return tuple(csv.DictReader(io.StringIO(text)))


@functools.cache
def _recordings(archive_name: str) -> dict[str, np.ndarray]:
    """Decodes an archive once per process; callers copy what they hand out."""
    return dict(sorted(_decoded(archive_name)))


def _decoded(archive_name: str) -> Iterator[tuple[str, np.ndarray]]:
    with zipfile.ZipFile(io.BytesIO(_sample_bytes(archive_name))) as archive:
        for name in archive.namelist():
            if name.endswith("/"):
                continue
            samples, _ = soundfile.read(io.BytesIO(archive.read(name)), dtype="float32")
            yield name, np.clip(samples, -1.0, 1.0)
