from importlib import resources

import av
import numpy as np
import pytest
from video_files import decode_all, scene, write_sound, write_video

from keras_bridle.data import video_reader as video_file
from keras_bridle.data.files import ReadReport
from keras_bridle.data.video_reader import VideoReader, list_packets

pytestmark = pytest.mark.one_backend


def native(path):
    """The size of a video's frames."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return stream.height, stream.width


def read_clip(path, start=0, num_frames=16, size=None, sampling_rate=1, channels=3):
    """Reads the clip that starts at a frame, by default as large as it is."""
    reader = VideoReader(size or native(path), num_frames, sampling_rate, channels)
    return reader.read_at(str(path), start)[0]


SAMPLES = resources.files("keras_bridle.data") / "sample_files" / "video"
VPX = {"auto-alt-ref": "1", "lag-in-frames": "12"}
# Name, codec, B-frames, encoder options, whether time stamps tell the order of frames.
FILES = {
    "h264.mp4": ("libx264", 2, {}, True),
    "h264_open.mp4": ("libx264", 3, {"x264-params": "open-gop=1:keyint=12"}, True),
    "h264.mkv": ("libx264", 2, {}, True),
    "mpeg4.mp4": ("mpeg4", 2, {}, True),
    "mpeg1.mpg": ("mpeg1video", 2, {}, True),
    "mpeg2.mpg": ("mpeg2video", 0, {}, True),
    "mpeg2_b.mpg": ("mpeg2video", 2, {}, None),
    "vp8.webm": ("libvpx", None, VPX, None),
    "vp9.webm": ("libvpx-vp9", None, VPX, True),
    "mpeg4.avi": ("mpeg4", 2, {}, True),
    "h264_b.avi": ("libx264", 2, {}, False),
    "mjpeg.avi": ("mjpeg", None, {}, True),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("videos")
    for name, (codec, b_frames, options, _) in FILES.items():
        write_video(path / name, codec, scene(80), b_frames=b_frames, options=options)
    return path


def count_calls(monkeypatch, name, owner=video_file):
    calls = []
    original = getattr(owner, name)

    def counted(*arguments):
        calls.append(arguments)
        return original(*arguments)

    monkeypatch.setattr(owner, name, counted)
    return calls


def check_against_plain_decoding(path, starts, num_frames=4, rate=3):
    everything = decode_all(path)
    reader = VideoReader(native(path), num_frames, rate)
    for start in starts:
        clip = reader.read_at(str(path), start)[0]
        numbers = np.minimum(start + rate * np.arange(num_frames), len(everything) - 1)
        for frame, number in zip(clip, numbers, strict=True):
            np.testing.assert_array_equal(frame, everything[number])


@pytest.mark.parametrize("name", FILES)
def test_clips_are_frame_accurate(folder, name, monkeypatch):
    sequential = count_calls(monkeypatch, "_decode_from_start")
    starts = [0, 1, 5, 11, 12, 13, 23, 24, 25, 40, 47, 59, 60, 66, 70, 78, 79]
    check_against_plain_decoding(folder / name, starts)
    expected = FILES[name][3]
    if expected is not None:
        # It seeks wherever the file tells enough to do so.
        assert len(sequential) == (0 if expected else len(starts))


def test_clips_are_decoded_from_the_keyframe_before(monkeypatch):
    check_against_plain_decoding(SAMPLES / "city.mp4", [0, 95, 189], rate=2)
    # It is not far before; decoders hold a few frames back.
    decoded = count_calls(monkeypatch, "decode", video_file._Video)
    read_clip(SAMPLES / "city.mp4", start=180, num_frames=2)
    assert len(decoded) < 12


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", "libx264"), ("b.mkv", "libx264"), ("c.webm", "libvpx")],
)
def test_varying_frame_rate_counts_frames(tmp_path, name, codec):
    stamps = np.cumsum(np.random.default_rng(0).integers(1, 9, 60))
    path = write_video(tmp_path / name, codec, scene(60), stamps=stamps)
    assert len(decode_all(path)) == 60
    check_against_plain_decoding(path, [0, 7, 24, 31, 50])


def test_sizes_positions_and_gray(tmp_path):
    # The left half is black, the right half white.
    frames = np.zeros((4, 40, 80, 3), "uint8")
    frames[:, :, 40:] = 255
    path = write_video(tmp_path / "a.mp4", "mpeg4", frames)
    reader = VideoReader(20, 3, 1, channels=1)
    left, middle, right = (
        reader.read_at(path, 0, (0.5, place))[0] for place in (0.0, 0.5, 1.0)
    )
    assert left.shape == (3, 20, 20, 1) and left.dtype == np.uint8
    assert left.max() < 20 and right.min() > 235
    assert middle[:, :, :8].max() < 20 and middle[:, :, 12:].min() > 235
    odd = write_video(tmp_path / "a.webm", "libvpx", scene(2)[:, :45, :61])
    for video, size in ((path, (37, 51)), (path, (90, 33)), (odd, (45, 61))):
        assert read_clip(video, num_frames=2, size=size).shape == (2, *size, 3)


def test_positions_reach_from_the_first_to_the_last_clip(tmp_path):
    path = write_video(tmp_path / "a.mp4", "libx264", scene(20))
    reader = VideoReader((48, 64), 3, 4)
    for position, start in ((0.0, 0), (0.5, 6), (0.999, 11), (1.0, 11)):
        report = ReadReport()
        clip = reader(path, (position, 0.5, 0.5), report=report)
        np.testing.assert_array_equal(clip, reader.read_at(path, start)[0])
        assert not report.incomplete


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("name", ["a.mp4", "b.avi"])
def test_short_videos_end_in_their_last_frame(tmp_path, name, count):
    path = write_video(tmp_path / name, "libx264", scene(count))
    frames, report = decode_all(path), ReadReport()
    clip = VideoReader((48, 64), 8, 2)(path, report=report)
    for number, frame in enumerate(clip):
        np.testing.assert_array_equal(frame, frames[min(2 * number, count - 1)])
    (listed,) = report.incomplete
    repeated = 8 - (count + 1) // 2
    assert f"{repeated} of a clip's 8 frames repeat" in listed.reason
    assert (read_clip(path, start=99, num_frames=3) == frames[-1]).all()


def cut(path, source, share):
    contents = source.read_bytes()
    path.write_bytes(contents[: int(share * len(contents))])
    return str(path)


@pytest.mark.parametrize("name", ["mpeg2.mpg", "vp9.webm", "mpeg4.avi"])
def test_truncated_files_serve_as_far_as_they_go(folder, tmp_path, name):
    # Encoders make files of other lengths with other numbers of threads.
    path = cut(tmp_path / name, folder / name, 0.7)
    whole, reader = decode_all(folder / name), VideoReader((48, 64), 4, 2)
    packets = len(list_packets(path).sizes)
    assert 20 < packets < 80
    start = (packets - 7 + 1) // 2
    for number, frame in enumerate(reader(path)):
        np.testing.assert_array_equal(frame, whole[start + 2 * number])


def test_truncated_files_that_are_too_short_for_a_clip_are_errors(folder, tmp_path):
    path = cut(tmp_path / "a.avi", folder / "mpeg4.avi", 0.5)
    with pytest.raises(ValueError, match=r"broken off after \d+ of 80 frames, a clip"):
        VideoReader(16)(path)
    report = ReadReport()
    VideoReader(16, 4, 2)(path, report=report)
    assert "broken off after" in report.incomplete[0].reason


def test_no_videos(folder, tmp_path):
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.avi").write_text("no video in here" * 100)
    write_sound(tmp_path / "sound.mp4")
    # Its index comes last.
    cut(tmp_path / "cut.mp4", folder / "h264.mp4", 0.5)
    for path in tmp_path.iterdir():
        with pytest.raises(ValueError):
            read_clip(path, size=16)


def test_random_damage_gives_a_clip_or_a_value_error(folder, tmp_path):
    generator = np.random.default_rng(0)
    clips = 0
    for name in ("h264.mp4", "mpeg2.mpg", "vp9.webm", "mpeg4.avi"):
        contents = np.frombuffer((folder / name).read_bytes(), "uint8")
        for trial in range(12):
            damaged = contents.copy()
            places = generator.integers(0, len(damaged), 20)
            damaged[places] = generator.integers(0, 256, 20)
            path = tmp_path / f"{trial}{name}"
            path.write_bytes(damaged.tobytes())
            try:
                frames = VideoReader(16, 4, 3)(str(path), (0.6, 0.5, 0.5))
            except ValueError:
                continue
            assert frames.shape == (4, 16, 16, 3)
            clips += 1
    assert clips > 20


def test_a_file_that_changes_is_read_as_it_is_now(folder, tmp_path):
    path = tmp_path / "a.mp4"
    write_video(path, "libx264", scene(40))
    reader = VideoReader((48, 64), 4, 1)
    reader.read_at(str(path), 20)
    write_video(path, "libx264", scene(40)[::-1].copy(), gop=7)
    clip = reader.read_at(str(path), 20)[0]
    np.testing.assert_array_equal(clip, decode_all(path)[20:24])
    # Nor does the name tell what it is.
    path.write_bytes((folder / "vp9.webm").read_bytes())
    check_against_plain_decoding(path, [13])


def test_packet_lists_are_kept_up_to_a_number_of_packets(folder, monkeypatch):
    listed = count_calls(monkeypatch, "list_packets")
    monkeypatch.setattr(video_file, "_KEPT_PACKETS", 200)
    reader = VideoReader(8, 1)
    names = [str(folder / name) for name in ("h264.mp4", "vp9.webm", "mpeg4.avi")]
    for name in (names[0], names[1], names[0], names[2], names[0], names[1]):
        reader.read_at(name, 3)
    # The third one takes the place of the second.
    assert [arguments[0] for arguments in listed] == [*names, names[1]]
