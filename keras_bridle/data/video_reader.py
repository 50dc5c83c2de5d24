"""Reader of video files."""

import itertools
import math
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from keras_bridle.data.readers import as_size, check_channels

# Packet lists are kept for so many packets in all, about 32 bytes each.
_KEPT_PACKETS = 2_000_000


class PacketList(NamedTuple):
    """The packets of a file's video stream, in the order in which they are stored.

    Attributes:
        stamps: int64 array, time stamp at which a packet's frame is shown.
        decoding_stamps: int64 array, time stamp at which it is to be decoded.
        sizes: int64 array, bytes.
        ranks: int64 array, how many frames are shown before; `None` if a packet has no
            time stamp, or two have the same.
        keyframes: int64 array, which packets are keyframes.
        announced: how many frames the file's header says that there are; 0 if nothing.
    """

    stamps: np.ndarray
    decoding_stamps: np.ndarray
    sizes: np.ndarray
    ranks: np.ndarray | None
    keyframes: np.ndarray
    announced: int

    def __len__(self) -> int:
        return len(self.sizes)


class Clip(NamedTuple):
    """A clip, and what was missing of it.

    Attributes:
        frames: uint8 array of shape `(num_frames, height, width, channels)`.
        missing: text, empty if nothing was missing.
    """

    frames: np.ndarray
    missing: str


def read_video_clip(
    path: str | Path,
    start: int = 0,
    num_frames: int = 16,
    sampling_rate: int = 1,
    image_size: int | Sequence[int] | None = None,
    channels: int = 3,
) -> np.ndarray:
    """Reads a clip that starts at a given frame, pixels from 0 to 255.

    Frames are numbered in the order in which they are shown, and pictures are turned as
    the file says (as phones do). After the end of the video its last frame is repeated.

    Args:
        path: a file that FFmpeg can read (MP4, MPEG-1/2, WebM, AVI and more).
        start: int. Number of the first frame, from 0.
        num_frames: int. Frames in the clip.
        sampling_rate: int. From one frame of the clip to the next, so many frames of
            the file.
        image_size: int or `(height, width)`. Frames are scaled, their proportions kept,
            until they cover this size (bicubic), and what stands over on either side
            is cut off. `None` leaves them as they are.
        channels: 3 for color or 1 for gray.

    Returns:
        uint8 array of shape `(num_frames, height, width, channels)`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no video, nothing of the clip can be decoded, or an
            argument is out of range.

    Example:
    ```python
    import tempfile
    from keras_bridle.data.samples import extract_samples
    from keras_bridle.data.video_reader import read_video_clip

    with tempfile.TemporaryDirectory() as folder:
        extract_samples(folder)
        clip = read_video_clip(folder + "/video/city.mpg", start=100, image_size=112)
    print(clip.shape, clip.dtype)
    ```
    """
    reader = VideoReader(num_frames, sampling_rate, image_size, channels)
    if start < 0:
        raise ValueError(f"`start` must be at least 0. Received: {start}")
    return reader.read_at(str(path), start).frames


class VideoReader:
    """Reads clips of one shape and remembers files' packet lists.

    Args:
        num_frames: see `read_video_clip`, as the arguments after it.
        sampling_rate: as above.
        image_size: as above.
        channels: as above.
    """

    def __init__(
        self,
        num_frames: int,
        sampling_rate: int,
        image_size: int | Sequence[int] | None,
        channels: int,
    ) -> None:
        for name, value in (
            ("num_frames", num_frames),
            ("sampling_rate", sampling_rate),
        ):
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1. Received: {value}")
        check_channels(channels)
        self.num_frames = num_frames
        self.sampling_rate = sampling_rate
        self.image_size = None
        if image_size is not None:
            self.image_size = as_size("image_size", image_size)
        self.channels = channels
        self._lists: OrderedDict[str, PacketList] = OrderedDict()
        self._kept_packets = 0
        self._lock = threading.Lock()

    @property
    def span(self) -> int:
        """Frames of the file that a clip covers, those it leaves out included."""
        return (self.num_frames - 1) * self.sampling_rate + 1

    def read(self, path: str, position: tuple[float, float, float]) -> Clip:
        """Reads the clip at a place given in shares of the room that there is.

        Args:
            path: the file.
            position: `(time, vertical, horizontal)`, each in [0, 1]: where the clip
                lies in the video, and what to keep of the frames.

        Returns:
            A `Clip`. If the video is shorter than the clip, its last frame is repeated.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is no video, or nothing of the clip can be decoded; or if
                it ends before its header says and is too short for a clip.
        """
        packets = self._packets(path)
        if len(packets) < min(packets.announced, self.span):
            raise ValueError(
                f"broken off after {len(packets)} of {packets.announced} frames, a "
                f"clip needs {self.span}"
            )
        room = max(len(packets) - self.span, 0)
        start = min(math.floor(position[0] * (room + 1)), room)
        return self.read_at(path, start, position[1:])

    def read_at(
        self, path: str, start: int, position: tuple[float, float] = (0.5, 0.5)
    ) -> Clip:
        """Reads the clip that starts at a given frame.

        Args:
            path: the file.
            start: int. Number of its first frame.
            position: `(vertical, horizontal)`, each in [0, 1]: what to keep of the
                frames.

        Returns:
            A `Clip`.
        """
        packets = self._packets(path)
        wanted = start + self.sampling_rate * np.arange(self.num_frames)
        # A stream may hold fewer frames than packets; then only decoding tells.
        last = max(len(packets) - 1, 0)
        to_pixels = _PixelMaker(self.image_size, self.channels, position)
        decoded: dict[int, np.ndarray] | None = None
        if packets.ranks is not None:
            targets = set(np.minimum(wanted, last).tolist())
            decoded = _decode_from_keyframe(path, packets, targets, to_pixels)
        if decoded is None:
            decoded = _decode_from_start(path, set(wanted.tolist()), to_pixels)
        if not decoded:
            raise ValueError(f"nothing can be decoded at frame {start}")
        return _assemble(wanted, decoded, packets)

    def _packets(self, path: str) -> PacketList:
        with self._lock:
            if path in self._lists:
                self._lists.move_to_end(path)
                return self._lists[path]
        packets = list_packets(path)
        with self._lock:
            if path not in self._lists:
                self._lists[path] = packets
                self._kept_packets += len(packets)
            while self._kept_packets > _KEPT_PACKETS:
                self._kept_packets -= len(self._lists.popitem(last=False)[1])
        return packets


def list_packets(path: str) -> PacketList:
    """Lists a file's video packets without decoding any.

    Args:
        path: the file.

    Returns:
        A `PacketList`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no video or holds no packet.
    """
    with _Video(path) as video:
        rows = list(video.rows())
        announced = video.stream.frames
    # What a file breaks off in is worth nothing.
    while rows and rows[-1][4]:
        rows.pop()
    if not rows:
        raise ValueError("holds no frames")
    shown, decoding, sizes, key, _ = zip(*rows, strict=True)
    complete = None not in shown and len(set(shown)) == len(shown)
    stamps = np.array([stamp or 0 for stamp in shown], "int64")
    ranks = np.empty(len(stamps), "int64")
    ranks[np.argsort(stamps)] = np.arange(len(stamps))
    return PacketList(
        stamps,
        np.array([stamp or 0 for stamp in decoding], "int64"),
        np.array(sizes, "int64"),
        ranks if complete else None,
        np.flatnonzero(key),
        announced,
    )


class _Video:
    """An open file and its video stream; FFmpeg's errors become a `ValueError`."""

    def __init__(self, path: str) -> None:
        if not Path(path).is_file():
            raise FileNotFoundError("no such file")
        try:
            self.container = av.open(path)
        except av.FFmpegError as error:
            raise ValueError(_explain(error)) from error
        stream: Any = self.container.streams.best("video")
        if stream is None:
            self.container.close()
            raise ValueError("holds no video stream")
        # FFmpeg itself finds where frames begin, and may start in the middle of one.
        self.splits_frames = self.container.format.name.startswith("mpeg")
        # Files are decoded side by side; threads within one only get in the way.
        stream.thread_type, stream.thread_count = "NONE", 1
        self.stream = stream

    def __enter__(self) -> "_Video":
        return self

    def __exit__(self, *_: object) -> None:
        self.container.close()

    def packets(self) -> Iterator[Any]:
        """Yields the packets from here on, up to the end or what cannot be read."""
        try:
            for packet in self.container.demux(self.stream):
                # The last one is empty and makes the decoder give out what it holds.
                if not packet.is_discard or not packet.size:
                    yield packet
        except av.FFmpegError:
            return

    def rows(self) -> Iterator[tuple[int | None, int | None, int, bool, bool]]:
        """Yields `(stamp, decoding stamp, size, is_keyframe, is_corrupt)`."""
        for packet in self.packets():
            if packet.size:
                yield (
                    packet.pts,
                    packet.dts,
                    packet.size,
                    packet.is_keyframe,
                    packet.is_corrupt,
                )

    def decode(self, packet: Any) -> list[Any]:
        """Returns the frames that come out when a packet goes in."""
        try:
            return self.stream.codec_context.decode(packet if packet.size else None)
        except av.FFmpegError:
            # Broken data: the frame before stays on the screen.
            return []


class _PixelMaker:
    """Turns decoded frames into arrays of one size."""

    def __init__(
        self,
        size: tuple[int, int] | None,
        channels: int,
        position: tuple[float, float],
    ) -> None:
        self._size = size
        self._format = "gray" if channels == 1 else "rgb24"
        self._position = position
        self._reformatter = VideoReformatter()

    def __call__(self, frame: Any) -> np.ndarray:
        turns = round(frame.rotation / 90) % 4
        height, width = frame.height, frame.width
        if turns % 2:
            height, width = width, height
        size = (height, width) if self._size is None else self._size
        scale = max(size[0] / height, size[1] / width)
        # Not below the wanted size by rounding.
        scaled = (
            max(round(height * scale), size[0]),
            max(round(width * scale), size[1]),
        )
        before_turn = scaled[::-1] if turns % 2 else scaled
        frame = self._reformatter.reformat(
            frame,
            width=before_turn[1],
            height=before_turn[0],
            format=self._format,
            interpolation=Interpolation.BICUBIC,
            # Threads of its own may block one another for minutes on a busy machine.
            threads=1,
        )
        pixels = np.rot90(frame.to_ndarray(), turns)
        top = round((scaled[0] - size[0]) * self._position[0])
        left = round((scaled[1] - size[1]) * self._position[1])
        pixels = pixels[top : top + size[0], left : left + size[1]]
        return pixels.reshape(*size, 1) if self._format == "gray" else pixels


def _decode_from_keyframe(
    path: str, packets: PacketList, targets: set[int], to_pixels: _PixelMaker
) -> dict[int, np.ndarray] | None:
    """Decodes from the last keyframe shown before the first target.

    Returns:
        The targets' pixels by number, or `None` if the file is not as listed, or its
        frames do not come in the order of their time stamps.
    """
    ranks = packets.ranks
    if ranks is None:
        return None
    usable = packets.keyframes[ranks[packets.keyframes] <= min(targets)]
    if not len(usable):
        return None
    keyframe = int(usable[np.argmax(ranks[usable])])
    with _Video(path) as video:
        landed = _seek(video, packets, keyframe) if keyframe else (0, video.packets())
        if landed is None:
            return None
        number, source = landed
        shown = ranks[number:].tolist()
        sizes = packets.sizes[number:].tolist()
        return _decode_ranked(video, source, shown, sizes, targets, to_pixels)


def _seek(
    video: _Video, packets: PacketList, keyframe: int
) -> tuple[int, Iterator[Any]] | None:
    """Goes to a keyframe, or to one before it.

    Returns:
        A tuple of the number of the packet where it landed, a keyframe, and the packets
        from there on; `None` if it can't get there.
    """
    before = packets.keyframes[packets.keyframes < keyframe]
    # Where a file's index goes by decoding stamps, the first seek may land behind; in
    # MPEG program streams, seeks land anywhere, often in the middle of a frame.
    decoding = packets.decoding_stamps
    stamps = [decoding[max(keyframe - back, 0)] for back in (1, 4)]
    stamps += decoding[before[:-3:-1]].tolist()
    if not video.splits_frames:
        stamps = [packets.stamps[keyframe], decoding[keyframe], *stamps]
    limit = 64 + keyframe - (int(before[-1]) if len(before) else 0)
    for stamp in stamps:
        try:
            video.container.seek(int(stamp), stream=video.stream)
        except av.FFmpegError:
            continue
        source = video.packets()
        for packet in itertools.islice(source, limit):
            if not packet.is_keyframe:
                continue
            number = _recognize(packet, packets, video.splits_frames)
            if number is not None and number <= keyframe:
                return number, itertools.chain([packet], source)
            if number is not None:
                break
    return None


def _recognize(packet: Any, packets: PacketList, splits_frames: bool) -> int | None:
    """Returns a packet's number in the list, or `None` if it can't be told for sure."""
    same = packets.keyframes[packets.sizes[packets.keyframes] == packet.size]
    if not len(same) or packet.pts is None:
        return None
    distances = np.abs(packets.stamps[same] - packet.pts)
    nearest = int(same[np.argmin(distances)])
    if not splits_frames:
        return nearest if distances.min() == 0 else None
    # Some stamps may belong to the frame before, so the size must tell frames apart.
    others = packets.sizes[max(nearest - 8, 0) : nearest + 9]
    return nearest if np.count_nonzero(others == packet.size) == 1 else None


def _decode_ranked(
    video: _Video,
    source: Iterator[Any],
    ranks: list[int],
    sizes: list[int],
    targets: set[int],
    to_pixels: _PixelMaker,
) -> dict[int, np.ndarray] | None:
    """Decodes packets, of which the list knows ranks and sizes, and picks frames."""
    # Frames shown before the first keyframe may refer to what was not decoded.
    expected = ranks[0]
    found: dict[int, np.ndarray] = {}
    for number, packet in enumerate(source):
        if packet.size:
            if number >= len(sizes):
                # What the file breaks off in.
                continue
            if packet.size != sizes[number]:
                return None
            # Decoders hand a packet's stamp on to its frame.
            packet.pts = ranks[number]
        for frame in video.decode(packet):
            if frame.pts is None or frame.pts > expected:
                return None
            if frame.pts < expected:
                continue
            if expected in targets:
                found[expected] = to_pixels(frame)
                if len(found) == len(targets):
                    return found
            expected += 1
    return None


def _decode_from_start(
    path: str, targets: set[int], to_pixels: _PixelMaker
) -> dict[int, np.ndarray]:
    """Decodes a file from its start and counts its frames.

    Returns:
        The pixels by number of those targets that exist; if none does, those of the
        last frame.
    """
    found: dict[int, np.ndarray] = {}
    number, last = 0, None
    with _Video(path) as video:
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


def _assemble(
    wanted: np.ndarray, decoded: dict[int, np.ndarray], packets: PacketList
) -> Clip:
    """Puts a clip together; frames that there are not are those before them."""
    numbers = np.array(sorted(decoded))
    nearest = np.maximum(np.searchsorted(numbers, wanted, side="right") - 1, 0)
    frames = np.stack([decoded[int(number)] for number in numbers[nearest]])
    missing = ""
    absent = int(np.count_nonzero(numbers[nearest] != wanted))
    if absent:
        missing = f"{absent} of a clip's {len(wanted)} frames repeat the one before"
    if packets.announced > len(packets):
        broken = f"broken off after {len(packets)} of {packets.announced} frames"
        missing = f"{broken}; {missing}" if missing else broken
    return Clip(frames, missing)


def _explain(error: av.FFmpegError) -> str:
    return f"{type(error).__name__}: {error.strerror or error}"
