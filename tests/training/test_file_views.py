"""Views of video files lie where views of the decoded frames do."""

import numpy as np
from video_files import decode_all, scene, write_video

from keras_bridle.data.files import ReadReport
from keras_bridle.data.layouts import VideoManifest
from keras_bridle.training.examples import file_views


def test_views_of_files(tmp_path):
    path = write_video(tmp_path / "a.mp4", "libx264", scene(12))
    frames = np.stack(decode_all(path))
    manifest = VideoManifest([path], labels=[0], class_names=["a"])
    views = file_views(
        manifest, image_size=48, num_frames=4, sampling_rate=2, segments=3, crops=2
    )
    found = [next(iter(view.batches_in_order(1)))[0][0] for view in views]
    assert len(found) == 6
    # A view covers 7 of the 12 frames, and 48 of the 64 columns.
    starts = [(start, left) for start in (0, 3, 5) for left in (0, 16)]
    for view, (start, left) in zip(found, starts, strict=True):
        expected = frames[start : start + 7 : 2, :, left : left + 48]
        error = np.abs(view.astype(int) - expected.astype(int)).mean()
        assert error < 2, (start, left, error)


def test_short_files_are_reported(tmp_path):
    path = write_video(tmp_path / "a.mp4", "libx264", scene(3))
    manifest = VideoManifest([path], labels=[0], class_names=["a"])
    report = ReadReport()
    views = file_views(
        manifest,
        image_size=48,
        num_frames=4,
        sampling_rate=1,
        segments=1,
        crops=1,
        read_report=report,
    )
    assert len(list(views[0].batches_in_order(1))) == 1
    assert [file.path for file in report.incomplete] == [path]
