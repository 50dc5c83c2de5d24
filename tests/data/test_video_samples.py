from importlib import resources

import numpy as np
import pytest
from video_files import decode_all, scene, write_video

from keras_bridle.data.samples import (
    SAMPLE_VIDEOS,
    extract_samples,
    load_clips,
    synthetic_pans,
)
from keras_bridle.data.video_reader import VideoReader

SAMPLES = resources.files("keras_bridle.data") / "sample_files" / "video"


def frames(name, size):
    with resources.as_file(SAMPLES / name) as path:
        count = len(decode_all(path))
        return VideoReader(size, count, 1).read_at(str(path), 0)[0]


def test_clips_come_from_the_part_of_the_videos_they_should():
    city, concert = frames("city.mpg", 16), frames("concert.mp4", 16)
    assert len(city) == 190 and len(concert) == 1441
    options = {"num_frames": 4, "image_size": 16, "sampling_rate": 3, "stride": 5}
    train, test = load_clips("train", **options), load_clips("test", **options)
    assert train.shape[1:] == (4, 16, 16, 3) and train.dtype == np.uint8
    expected = {"train": [], "test": []}
    for video in (city, concert):
        border = int(0.7 * len(video))
        # A clip covers 10 frames. The last training clip ends 10 before the border.
        for start in range(0, border - 20 + 1, 5):
            expected["train"].append(video[start : start + 10 : 3])
        for start in range(border, len(video) - 10 + 1, 5):
            expected["test"].append(video[start : start + 10 : 3])
    np.testing.assert_array_equal(train, expected["train"])
    np.testing.assert_array_equal(test, expected["test"])


def test_default_stride_and_gray():
    clips = load_clips(num_frames=8, image_size=(8, 12), channels=1)
    assert clips.shape[1:] == (8, 8, 12, 1)
    assert len(clips) == len(load_clips(num_frames=8, image_size=8, stride=7))


def test_a_video_too_short_for_a_clip_gives_none():
    # 61 frames; the last 30 % of the street are 57.
    test = load_clips("test", num_frames=16, sampling_rate=4, image_size=8, stride=1)
    assert len(test) == 1441 - int(0.7 * 1441) - 61 + 1


@pytest.mark.parametrize("shape", [(8, 32), (5, 16), (21, 32)])
def test_pans_move_as_their_labels_say(shape):
    num_frames, size = shape
    clips, labels, names = synthetic_pans(
        "train", num_clips=48, num_frames=num_frames, image_size=size
    )
    assert clips.shape == (48, num_frames, size, size, 3) and clips.dtype == np.uint8
    assert labels.dtype == np.int32 and np.bincount(labels).tolist() == [6] * 8
    step = size // 16
    moves = {}
    for clip, label in zip(clips.astype(float), labels, strict=True):
        # Where the next frame was in this one, by how well the overlap fits.
        first, second = clip[0].mean(axis=-1), clip[1].mean(axis=-1)
        inner = second[4:-4, 4:-4]
        errors = {
            (down, right): np.abs(
                first[4 + down : size - 4 + down, 4 + right : size - 4 + right] - inner
            ).mean()
            for down in range(-3, 4)
            for right in range(-3, 4)
        }
        moves.setdefault(names[label], []).append(min(errors, key=errors.get))
    signs = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}
    found = 0
    for name, estimates in moves.items():
        expected = tuple(step * np.sum([signs[part] for part in name.split()], axis=0))
        found += estimates.count(expected)
    # The videos themselves move too.
    assert found > 0.75 * 48


def test_pans_of_the_two_parts_share_no_frame():
    train = synthetic_pans("train", num_clips=64, image_size=16, num_frames=4)[0]
    test = synthetic_pans("test", num_clips=64, image_size=16, num_frames=4)[0]
    seen = {frame.tobytes() for clip in train for frame in clip}
    assert not any(frame.tobytes() in seen for clip in test for frame in clip)


def test_the_place_does_not_tell_the_direction(monkeypatch):
    """With frames that show where they were cut out, paths have the same middles."""
    from keras_bridle.data import samples as video_samples

    rows, columns = np.meshgrid(np.arange(72), np.arange(100), indexing="ij")
    video = np.stack([rows, columns, 0 * rows], axis=-1).astype("uint8")
    monkeypatch.setattr(
        video_samples, "_frames", lambda *_: np.repeat(video[None], 200, axis=0)
    )
    clips, labels, _ = synthetic_pans(num_clips=4000, image_size=32)
    middles = clips[:, [0, -1], 0, 0, :2].astype(float).mean(axis=1)
    overall, spread = middles.mean(axis=0), middles.std(axis=0)
    for label in range(8):
        of_label = middles[labels == label].mean(axis=0)
        np.testing.assert_allclose(of_label, overall, atol=5 * spread.max() / 500**0.5)
    # All of the picture is used: the window's corner, less half of the path.
    assert clips[..., 0].min() == 0 and clips[..., 0].max() == 71


def test_seed():
    options = {"num_clips": 16, "num_frames": 4, "image_size": 16}
    first = synthetic_pans(seed=1, **options)[0]
    np.testing.assert_array_equal(first, synthetic_pans(seed=1, **options)[0])
    assert (first != synthetic_pans(seed=2, **options)[0]).any()


def test_pans_over_videos_of_ones_own(tmp_path):
    options = {"num_clips": 8, "num_frames": 4, "image_size": 16}
    path = write_video(tmp_path / "scene.mp4", "mpeg4", scene(60))
    clips, _, names = synthetic_pans(videos=[path], **options)
    assert clips.shape == (8, 4, 16, 16, 3) and len(names) == 8
    assert (clips != synthetic_pans(**options)[0]).any()
    extract_samples(tmp_path)
    copies = [tmp_path / "video" / name for name in SAMPLE_VIDEOS]
    np.testing.assert_array_equal(
        synthetic_pans(videos=copies, **options)[0], synthetic_pans(**options)[0]
    )
    short = write_video(tmp_path / "short.mp4", "mpeg4", scene(8))
    with pytest.raises(ValueError, match="too short for clips of 4 frames"):
        synthetic_pans(videos=[short], **options)


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (load_clips, {"split": "valid"}, "`split` must be 'train' or 'test'"),
        (load_clips, {"num_frames": 0}, "`num_frames` must be at least 1"),
        (load_clips, {"stride": 0}, "`stride` must be at least 1"),
        (load_clips, {"num_frames": 2000}, "shorter than 3999 frames"),
        (synthetic_pans, {"split": "valid"}, "`split` must be 'train' or 'test'"),
        (synthetic_pans, {"num_clips": 0}, "`num_clips` must be at least 1"),
        (synthetic_pans, {"num_frames": 22}, "`num_frames` must be at most 21"),
        (synthetic_pans, {"channels": 2}, "`channels` must be 1"),
    ],
)
def test_arguments_are_checked(function, arguments, message):
    with pytest.raises(ValueError, match=message):
        function(**{"image_size": 16, **arguments})
