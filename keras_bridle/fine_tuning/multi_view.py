"""Several views of each video, whose scores are averaged."""

import functools

import numpy as np

from keras_bridle.data.pipeline import build_dataset
from keras_bridle.data.read_report import ReadReport
from keras_bridle.data.video_file import VideoReader
from keras_bridle.fine_tuning.examples import ArrayExamples, FileExamples


def array_views(clips, labels, num_frames, image_size, segments=5, crops=3):
    """Cuts several views out of longer or larger clips.

    Args:
        clips: array of shape `(examples, frames, height, width, channels)`.
        labels: array, as of `ArrayExamples`.
        num_frames: int, frames of a view.
        image_size: int, side of a view in pixels; the shorter side of the clips.
        segments: int, starts in time, spread evenly; one lies in the middle.
        crops: int, places along the longer side, likewise.

    Returns:
        A list of `ArrayExamples`, one for each view, for `predict_examples()`.

    Raises:
        ValueError: if the clips are too short or too small.

    Example:
    ```python
    import numpy as np
    from keras_bridle.fine_tuning import array_views

    clips = np.zeros((2, 12, 32, 48, 3), "uint8")
    views = array_views(clips, np.array([0, 1]), num_frames=8, image_size=32)
    print(len(views), views[0].inputs.shape)  # 15 (2, 8, 32, 32, 3)
    ```
    """
    room = np.array(clips.shape[1:4]) - (num_frames, image_size, image_size)
    if room.min() < 0:
        raise ValueError(
            f"Views of {num_frames} frames of {image_size} x {image_size} do not fit "
            f"into clips of shape {clips.shape[1:]}"
        )
    views = []
    for position in _positions(segments, crops):
        first, top, left = np.round(room * position).astype(int)
        view = clips[
            :,
            first : first + num_frames,
            top : top + image_size,
            left : left + image_size,
        ]
        views.append(ArrayExamples(view, labels))
    return views


def file_views(
    manifest,
    image_size,
    num_frames=16,
    sampling_rate=4,
    channels=3,
    segments=5,
    crops=3,
    strict=False,
    read_report=None,
):
    """Reads several views of each video file.

    Args:
        manifest: `VideoManifest` with labels.
        image_size: int, side of a view in pixels, to which the shorter side of the
            frames is scaled.
        num_frames: int, frames of a view.
        sampling_rate: int, from one frame of a view to the next, so many of the file.
        channels: 3 for color or 1 for gray.
        segments: int, starts in time, spread evenly from the first possible to the
            last; one lies in the middle.
        crops: int, places along the longer side, likewise.
        strict: bool, whether files that cannot be read are an error.
        read_report: optional `ReadReport`, to list them in.

    Returns:
        A list of `FileExamples`, one for each view, for `predict_examples()`.

    Example:
    ```python
    import tempfile
    from keras_bridle.data import VideoManifest, extract_samples
    from keras_bridle.fine_tuning import file_views

    with tempfile.TemporaryDirectory() as folder:
        extract_samples(folder)
        files = VideoManifest.from_folder(folder).files
        manifest = VideoManifest(files, labels=[0, 1], class_names=["a", "b"])
        views = file_views(manifest, image_size=64, num_frames=8)
        print(len(views))  # 15
    ```
    """
    reader = VideoReader(num_frames, sampling_rate, image_size, channels)
    read_report = ReadReport() if read_report is None else read_report
    return [
        FileExamples(
            manifest,
            functools.partial(_clips_at, reader, position),
            strict,
            read_report,
        )
        for position in _positions(segments, crops)
    ]


def _clips_at(reader, position, manifest, *, batch_size, strict, report, **_):
    """Makes a data set of the clips that lie at one place of their files."""

    def read(index, position):
        path = manifest.files[index]
        clip = reader.read(path, position)
        if clip.missing:
            report.add_incomplete(path, clip.missing)
        return clip.frames

    return build_dataset(
        manifest,
        read,
        shape=(reader.num_frames, *reader.image_size, reader.channels),
        dtype="uint8",
        position=position,
        batch_size=batch_size,
        shuffle=False,
        repeat=False,
        drop_remainder=False,
        labels=True,
        seed=0,
        initial_epoch=0,
        strict=strict,
        report=report,
        num_parallel=None,
    )


def _positions(segments, crops):
    """Shares of the room along time, height and width, for each view."""
    if min(segments, crops) < 1:
        raise ValueError(
            "`segments` and `crops` must be 1 or more. "
            f"Received: segments={segments}, crops={crops}"
        )
    return [
        (float(time), float(place), float(place))
        for time in _spread(segments)
        for place in _spread(crops)
    ]


def _spread(count):
    return np.linspace(0.0, 1.0, count) if count > 1 else np.array([0.5])
