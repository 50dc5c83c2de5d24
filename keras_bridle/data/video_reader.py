"""Reader of video files."""

import contextlib
import itertools
import math
import operator
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from keras_bridle.data.files import check
from keras_bridle.data.readers import CENTER, Position, as_size, check_channels

# The total number of packets to keep in lists, about 32 bytes each.
_KEPT_PACKETS = 2_000_000


class VideoReader:
    """Reads clips of one shape from videos, pixels from 0 to 255.

    A clip is `num_frames` frames, every `sampling_rate`-th of the file in display
    order. Frames are rotated as the file says, scaled until they cover the size
    (bicubic) and cropped alike. Short videos repeat their last frame; broken ones are
    read as far as possible, if that is enough for a clip.

    Args:
        image_size: int or `(height, width)` of the frames.
        num_frames: int. Frames per clip.
        sampling_rate: int. Step between frames of a clip, in frames of the file.
        channels: 3 for color or 1 for gray.

    Call arguments:
        path: a file that FFmpeg can read (MP4, MPEG-1/2, WebM, AVI and more).
        position: tuple of floats in [0, 1]: the place of the clip along time, height
            and width, from 0.0 (start, top or left).
        segment: not used.
        report: optional `ReadReport`, which lists short and broken files.

    Returns:
        uint8 array of shape `(num_frames, height, width, channels)`.

    Raises:
        ValueError: if the file is not a video, or no frame of the clip can be decoded.

    Example:
    ```python
    import tempfile
    from keras_bridle.data.samples import extract_samples
    from keras_bridle.data.video_reader import VideoReader

    with tempfile.TemporaryDirectory() as folder:
        extract_samples(folder)
        reader = VideoReader(image_size=112, num_frames=8)
        clip = reader(folder + "/video/city.mp4")
    print(clip.shape, clip.dtype)
    ```
    """

    dtype = "uint8"

    def __init__(
        self,
        image_size: int | Sequence[int],
        num_frames: int = 16,
        sampling_rate: int = 4,
        channels: int = 3,
    ) -> None:
        check(num_frames >= 1, "num_frames", "at least 1", num_frames)
        check(sampling_rate >= 1, "sampling_rate", "at least 1", sampling_rate)
        size = as_size("image_size", image_size)
        self.shape = (num_frames, *size, check_channels(channels))
        self.num_frames = num_frames
        self.sampling_rate = sampling_rate
        # The number of frames that a clip spans, including those between its own.
        self.span = (num_frames - 1) * sampling_rate + 1
        self._lists: OrderedDict[str, PacketList] = OrderedDict()
        self._kept_packets = 0
        self._lock = threading.Lock()

    def __call__(
        self,
        path: str,
        position: Position = CENTER,
        segment: Any = None,
        report: Any = None,
    ) -> np.ndarray:
        packets = self._packets(path)
        if len(packets.shown) < min(packets.announced, self.span):
            raise ValueError(f"{packets.breaks_off}, a clip needs {self.span}")
        room = max(len(packets.shown) - self.span, 0)
        start = min(math.floor(position[0] * (room + 1)), room)
        clip, missing = self.read_at(path, start, position[1:])
        if missing and report is not None:
            report.add_incomplete(path, missing)
        return clip

    def read_at(
        self, path: str, start: int, position: Sequence[float] = CENTER[1:]
    ) -> tuple[np.ndarray, str]:
        """Reads the clip from a frame on; returns it, and a text on what it lacks."""
        packets = self._packets(path)
        wanted = start + self.sampling_rate * np.arange(self.num_frames)
        # A stream may have fewer frames than packets, which only decoding shows.
        listed = np.minimum(wanted, len(packets.shown) - 1)
        to_pixels = _pixel_maker(self.shape, position)
        decoded = _decode_from_keyframe(path, packets, set(listed.tolist()), to_pixels)
        if decoded is None:
            decoded = _decode_from_start(path, set(wanted.tolist()), to_pixels)
        if not decoded:
            raise ValueError(f"nothing can be decoded at frame {start}")
        # Repeat the previous frame where one is missing.
        numbers = np.array(sorted(decoded))
        nearest = np.maximum(np.searchsorted(numbers, wanted, side="right") - 1, 0)
        clip = np.stack([decoded[int(number)] for number in numbers[nearest]])
        missing = []
        if packets.announced > len(packets.shown):
            missing.append(packets.breaks_off)
        absent = int(np.count_nonzero(numbers[nearest] != wanted))
        if absent:
            missing.append(
                f"{absent} of a clip's {len(wanted)} frames repeat the one before"
            )
        return clip, "; ".join(missing)

    def _packets(self, path):
        with self._lock:
            if path in self._lists:
                self._lists.move_to_end(path)
                return self._lists[path]
        packets = list_packets(path)
        with self._lock:
            if path not in self._lists:
                self._lists[path] = packets
                self._kept_packets += len(packets.sizes)
            while self._kept_packets > _KEPT_PACKETS:
                self._kept_packets -= len(self._lists.popitem(last=False)[1].sizes)
        return packets


class PacketList(NamedTuple):
    """The packets of a file's video stream, in storage order."""

    # When a packet's frame is shown.
    stamps: np.ndarray
    sizes: np.ndarray  # in bytes
    # How many frames are shown before; `None` if time stamps are missing or alike.
    ranks: np.ndarray | None
    keyframes: np.ndarray
    # The sorted ranks of the frames that no edit list hides.
    shown: np.ndarray
    # The number of frames that the header announces; 0 if it does not.
    announced: int

    @property
    def breaks_off(self):
        """A text that says where a broken file ends."""
        return f"broken off after {len(self.shown)} of {self.announced} frames"


def list_packets(path):
    """Lists a file's video packets without decoding any."""
    video = _Video(path)
    columns = ("pts", "size", "is_keyframe", "is_discard", "is_corrupt")
    row_of = operator.attrgetter(*columns)
    with video.container:
        rows = [row_of(packet) for packet in video.packets() if packet.size]
        announced = video.stream.frames
        if "mov" in video.container.format.name:
            # The header also counts frames that an edit list cuts off.
            announced = len(video.stream.index_entries)
    # Drop the truncated packet at the end of a broken file.
    while rows and rows[-1][-1]:
        rows.pop()
    if all(is_hidden for *_, is_hidden, _ in rows):
        raise ValueError("shows no frames")
    times, sizes, is_keyframe, is_hidden, _ = zip(*rows, strict=True)
    stamps = np.array([stamp or 0 for stamp in times], "int64")
    is_ordered = None not in times and len(set(times)) == len(times)
    ranks = np.argsort(np.argsort(stamps)) if is_ordered else None
    shown = np.flatnonzero(~np.array(is_hidden))
    return PacketList(
        stamps,
        np.array(sizes, "int64"),
        ranks,
        np.flatnonzero(is_keyframe),
        shown if ranks is None else np.sort(ranks[shown]),
        max(announced - sum(is_hidden), 0),
    )


class _Video:
    """An open file and its video stream; FFmpeg's errors become a `ValueError`."""

    def __init__(self, path):
        try:
            self.container = av.open(path)
        except av.FFmpegError as error:
            reason = f"{type(error).__name__}: {error.strerror or error}"
            raise ValueError(reason) from error
        streams: Any = self.container.streams
        picture = av.stream.Disposition.attached_pic
        for stream in (streams.best("video"), *streams.video):
            # Skip cover art, which is a stream, too, and streams without a decoder.
            if stream and stream.codec_context and not stream.disposition & picture:
                break
        else:
            self.container.close()
            raise ValueError("holds no video stream")
        # Files are decoded in parallel, so threads within one only slow that down.
        stream.thread_type, stream.thread_count = "NONE", 1
        self.stream = stream

    def packets(self):
        """Yields the remaining packets, up to the end or an unreadable one."""
        with contextlib.suppress(av.FFmpegError):
            # The last packet is empty and flushes the decoder.
            yield from self.container.demux(self.stream)

    def decode(self, packet):
        """Sends a packet to the decoder, and returns the frames that come out."""
        with contextlib.suppress(av.FFmpegError):
            return self.stream.codec_context.decode(packet if packet.size else None)
        # Broken data: the previous frame is repeated.
        return []


def _pixel_maker(shape, position):
    """Makes a function that resizes and crops decoded frames to arrays."""
    _, *size, channels = shape
    reformatter = VideoReformatter()

    def to_pixels(frame):
        (right, down), (across, along) = _display_matrix(frame)
        # The display matrix swaps rows and columns.
        turned = abs(down) > abs(right)
        sides = np.array([frame.height, frame.width])
        upright = sides[::-1] if turned else sides
        scale = max(size[0] / upright[0], size[1] / upright[1])
        # Rounding must not make it smaller than the wanted size.
        scaled = [max(round(a * scale), b) for a, b in zip(upright, size, strict=True)]
        height, width = scaled[::-1] if turned else scaled
        frame = reformatter.reformat(
            frame,
            width=width,
            height=height,
            format="gray" if channels == 1 else "rgb24",
            interpolation=Interpolation.BICUBIC,
            # Its threads may block each other for minutes on a busy machine.
            threads=1,
        )
        pixels = frame.to_ndarray()
        if turned:
            pixels, right, along = pixels.swapaxes(0, 1), across, down
        pixels = pixels[:: -1 if along < 0 else 1, :: -1 if right < 0 else 1]
        top = round((scaled[0] - size[0]) * position[0])
        left = round((scaled[1] - size[1]) * position[1])
        pixels = pixels[top : top + size[0], left : left + size[1]]
        return pixels.reshape(*size, channels)

    return to_pixels


def _display_matrix(frame):
    """Returns the directions on the screen of a frame's axes, right and down."""
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return np.eye(2)
    return np.frombuffer(bytes(data), "int32").reshape(3, 3)[:2, :2] / 2**16


def _decode_from_keyframe(path, packets, targets, to_pixels):
    """Decodes from the last keyframe shown before the first target.

    Returns the targets' pixels by number, or `None` if the file is not as listed.
    """
    ranks = packets.ranks
    if ranks is None:
        return None
    shown = packets.shown
    usable = packets.keyframes[ranks[packets.keyframes] <= shown[min(targets)]]
    if not len(usable):
        return None
    keyframe = int(usable[np.argmax(ranks[usable])])
    found: dict[int, np.ndarray] = {}
    # Frames shown before the keyframe may refer to frames that were not decoded.
    expected = int(np.searchsorted(shown, ranks[keyframe]))
    video, source = _open_at(path, packets, keyframe)
    with video.container:
        for number, packet in enumerate(source, start=keyframe):
            if packet.size:
                if number >= len(ranks):
                    # This is the truncated packet of a broken file.
                    continue
                if packet.size != packets.sizes[number]:
                    return None
                # Decoders copy a packet's time stamp to its frame.
                packet.pts = int(ranks[number])
            for frame in video.decode(packet):
                next_one = shown[expected] if expected < len(shown) else -1
                if frame.pts is None or frame.pts > next_one:
                    return None
                if frame.pts < next_one:
                    continue
                if expected in targets:
                    found[expected] = to_pixels(frame)
                    if len(found) == len(targets):
                        return found
                expected += 1
    return None


def _open_at(path, packets, keyframe):
    """Opens a video, and returns the packets from a keyframe on."""
    video = _Video(path)
    source = video.packets()
    if not keyframe:
        return video, source
    stamp, size = int(packets.stamps[keyframe]), packets.sizes[keyframe]
    with contextlib.suppress(av.FFmpegError):
        video.container.seek(stamp, stream=video.stream)
        packet = next(source, None)
        if packet and packet.pts == stamp and packet.size == size:
            return video, itertools.chain([packet], source)
    # A seek may land elsewhere, in MPEG program streams even within a frame.
    video.container.close()
    video = _Video(path)
    return video, itertools.islice(video.packets(), keyframe, None)


def _decode_from_start(path, targets, to_pixels):
    """Decodes a file from its start; returns the targets, or the last frame."""
    found: dict[int, np.ndarray] = {}
    number, last = 0, None
    video = _Video(path)
    with video.container:
        for packet in video.packets():
            for frame in video.decode(packet):
                if number in targets:
                    found[number] = to_pixels(frame)
                    if len(found) == len(targets):
                        return found
                number, last = number + 1, frame
        if last is not None and max(targets) >= number:
            found[number - 1] = to_pixels(last)
    return found
