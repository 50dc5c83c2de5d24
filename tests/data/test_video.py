import itertools

import numpy as np
import pytest
from video_files import decode_all, scene, write_video

from keras_bridle.data.files import ReadReport
from keras_bridle.data.layouts import VideoManifest
from keras_bridle.data.pipeline import video_dataset
from keras_bridle.data.video_reader import VideoReader


def batches(dataset, count=None):
    return list(itertools.islice(dataset.as_numpy_iterator(), count))


def epochs(dataset, count):
    return [np.concatenate(batches(dataset)) for _ in range(count)]


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Six videos of three formats, each darker than the next, of 40 frames."""
    folder = tmp_path_factory.mktemp("videos")
    files = []
    for number in range(6):
        name, codec = [("mp4", "libx264"), ("mpg", "mpeg1video"), ("webm", "libvpx")][
            number % 3
        ]
        frames = (scene(40) // 8 + 32 * number).astype("uint8")
        files.append(write_video(folder / f"{number}.{name}", codec, frames))
    return files


def which(clips):
    return np.round((clips.mean(axis=(1, 2, 3, 4)) - 16) / 32).astype(int).tolist()


def read_video_clip(path, start=0, num_frames=16, sampling_rate=1, size=(48, 64)):
    return VideoReader(size, num_frames, sampling_rate).read_at(str(path), start)[0]


OPTIONS = {"image_size": 16, "num_frames": 4, "sampling_rate": 3}


def test_evaluation_gives_the_middle_of_every_file_in_order(videos):
    dataset = video_dataset(videos, batch_size=4, **OPTIONS)
    first, rest = batches(dataset)
    assert first.shape == (4, 4, 16, 16, 3) and rest.shape == (2, 4, 16, 16, 3)
    assert first.dtype == np.uint8
    clips = np.concatenate([first, rest])
    assert which(clips) == list(range(6))
    for file, clip in zip(videos, clips, strict=True):
        # 10 frames of 40: the clip may start at 0 to 30.
        expected = read_video_clip(file, 15, 4, 3, 16)
        np.testing.assert_array_equal(clip, expected)
    start = batches(video_dataset(videos, batch_size=6, crop="start", **OPTIONS))[0]
    np.testing.assert_array_equal(start[2], read_video_clip(videos[2], 0, 4, 3, 16))


def test_training_takes_random_clips(videos):
    dataset = video_dataset(
        videos[:1] * 200,
        batch_size=200,
        image_size=(48, 64),
        num_frames=2,
        sampling_rate=5,
        shuffle=True,
    )
    assert dataset.element_spec.shape == (200, 2, 48, 64, 3) and len(dataset) == 1
    everything = np.stack([read_video_clip(videos[0], i, 1)[0] for i in range(40)])
    starts = []
    for clip in batches(dataset)[0]:
        (start,) = np.flatnonzero((everything == clip[0]).all(axis=(1, 2, 3)))
        np.testing.assert_array_equal(clip[1], everything[start + 5])
        starts.append(start)
    # 35 places, and both ends can be drawn.
    counts = np.bincount(starts, minlength=35)
    assert len(counts) == 35 and counts.max() < 20 and (counts > 0).sum() > 30


def test_a_clips_frames_are_cut_alike_and_clips_differently(tmp_path):
    # Columns grow lighter; nothing moves.
    ramp = np.linspace(0, 255, 96).astype("uint8")
    frames = np.broadcast_to(ramp[None, None, :, None], (12, 16, 96, 3))
    path = write_video(tmp_path / "a.mp4", "mpeg4", np.ascontiguousarray(frames))
    dataset = video_dataset(
        [path] * 64, batch_size=64, image_size=16, num_frames=4, shuffle=True
    )
    means = batches(dataset)[0].mean(axis=(2, 3, 4))
    assert np.ptp(means, axis=1).max() < 4
    assert means.min() < 50 and means.max() > 200


def test_seed_decides_clips_however_many_threads_read(videos):
    options = {"batch_size": 3, "shuffle": True, **OPTIONS}
    first = epochs(video_dataset(videos, seed=3, num_parallel=1, **options), 2)
    again = epochs(video_dataset(videos, seed=3, num_parallel=6, **options), 2)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first[0], first[1])
    other = epochs(video_dataset(videos, seed=4, **options), 1)[0]
    assert not np.array_equal(first[0], other)
    endless = video_dataset(videos, seed=3, repeat=True, initial_epoch=1, **options)
    np.testing.assert_array_equal(np.concatenate(batches(endless, 2)), first[1])


def test_labels_and_gray(videos):
    manifest = VideoManifest(videos, list(range(6)), list("abcdef"))
    dataset = video_dataset(manifest, batch_size=3, channels=1, shuffle=True, **OPTIONS)
    for clips, labels in batches(dataset):
        assert clips.shape == (3, 4, 16, 16, 1) and labels.dtype == np.int32
        values = clips.mean(axis=(1, 2, 3, 4))
        assert np.argsort(values).tolist() == np.argsort(labels).tolist()


def test_what_cannot_be_read_is_left_out_and_what_is_short_is_noted(videos, tmp_path):
    broken, empty = tmp_path / "broken.mp4", tmp_path / "empty.avi"
    broken.write_text("no video in here" * 20)
    empty.write_bytes(b"")
    short = write_video(tmp_path / "short.mp4", "libx264", scene(3))
    files = [videos[0], str(broken), short, str(empty), videos[1]]
    report = ReadReport()
    dataset = video_dataset(files, batch_size=5, report=report, **OPTIONS)
    (clips,) = batches(dataset)
    assert len(clips) == 3 and report.read == 3
    last = decode_all(short)[-1]
    native = read_video_clip(short, 0, 4, 3)
    np.testing.assert_array_equal(native[1:], np.stack([last] * 3))
    assert [item.path for item in report.skipped] == [str(broken), str(empty)]
    assert [item.path for item in report.incomplete] == [short]
    assert "3 of a clip's 4 frames repeat" in report.incomplete[0].reason
    training = video_dataset(files, batch_size=5, shuffle=True, **OPTIONS)
    assert batches(training)[0].shape[0] == 5


def test_strict_names_the_file(videos, tmp_path):
    (tmp_path / "z.mp4").write_text("no video in here")
    dataset = video_dataset(
        [videos[0], str(tmp_path / "z.mp4")], batch_size=1, strict=True, **OPTIONS
    )
    with pytest.raises(Exception, match=r"Cannot read video file '.*z.mp4'"):
        batches(dataset)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": (1, 2, 3)}, "`image_size` must be a positive int"),
        ({"num_frames": 0}, "`num_frames` must be at least 1"),
        ({"sampling_rate": 0}, "`sampling_rate` must be at least 1"),
        ({"channels": 2}, "`channels` must be 1"),
        ({"crop": "end"}, "`crop` must be one of .*'end'"),
        ({"batch_size": 0}, "`batch_size` must be at least 1"),
    ],
)
def test_arguments_are_checked(videos, arguments, message):
    with pytest.raises(ValueError, match=message):
        video_dataset(videos, **{"batch_size": 2, **OPTIONS, **arguments})


def test_folders_are_checked(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        video_dataset(tmp_path / "none", batch_size=1, image_size=16)
    with pytest.raises(ValueError, match=r"No video file in .*Looked for .mp4"):
        video_dataset(tmp_path, batch_size=1, image_size=16)
