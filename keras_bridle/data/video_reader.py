"""Reader of video files."""

import itertools
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from keras_bridle.config import ArgumentError
from keras_bridle.data.clips import CENTER, Position
from keras_bridle.data.readers import as_size, check_channels

# Packet lists are kept for so many packets in all, about 32 bytes each.
_KEPT_PACKETS = 2_000_000


class VideoReader:
    """Reads clips of one shape from videos, pixels from 0 to 255.

    A clip is `num_frames` frames, every `sampling_rate`-th of the file, counted in the
    order in which they are shown. Of a long video only what lies between the clip and
    the keyframe before it is decoded. Frames are turned as the file says, as phones do.
    All frames of a clip are scaled, their proportions kept, until they cover the size
    (bicubic), and cropped alike.

    A video **shorter than a clip** ends in its last frame, repeated; a **broken** one
    serves as far as it can be decoded, if that is enough for a clip.
    `report.incomplete` lists both.

    To augment, let the model do it: read clips somewhat larger than needed (256 for
    224) and give them to `RandomMultiScaleCrop` and `RandomHorizontalFlip`.

    Args:
        image_size: int or `(height, width)` of the frames.
        num_frames: int. Frames per clip.
        sampling_rate: int. From one frame of a clip to the next, so many of the file.
        channels: 3 for color or 1 for gray.

    Call arguments:
        path: a file that FFmpeg can read (MP4, MPEG-1/2, WebM, AVI and more).
        position: tuple of floats in [0, 1]: where the clip lies in a longer video, and
            which part to keep of the longer side of the frames. 0.0 is the start, top
            or left, 0.5 the middle, 1.0 the end, bottom or right.
        segment: not used.
        report: optional `ReadReport`, to list an incomplete file in.

    Returns:
        uint8 array of shape `(num_frames, height, width, channels)`. A file that is no
        video, or of whose clip nothing can be decoded, raises a `ValueError`.

    Example:
    ```python
    import tempfile
    from keras_bridle.data.samples import extract_samples
    from keras_bridle.data.video_reader import VideoReader

    with tempfile.TemporaryDirectory() as folder:
        extract_samples(folder)
        reader = VideoReader(image_size=112, num_frames=8)
        clip = reader(folder + "/video/city.mpg")
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
        for name, value in (
            ("num_frames", num_frames),
            ("sampling_rate", sampling_rate),
        ):
            if value < 1:
                raise ArgumentError(name, "at least 1", value)
        size = as_size("image_size", image_size)
        self.shape = (num_frames, *size, check_channels(channels))
        self.num_frames = num_frames
        self.sampling_rate = sampling_rate
        # Frames of the file that a clip covers, those it leaves out included.
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
        if len(packets.sizes) < min(packets.announced, self.span):
            raise ValueError(
                f"broken off after {len(packets.sizes)} of {packets.announced} frames, "
                f"a clip needs {self.span}"
            )
        room = max(len(packets.sizes) - self.span, 0)
        start = min(math.floor(position[0] * (room + 1)), room)
        clip, missing = self.read_at(path, start, position[1:])
        if missing and report is not None:
            report.add_incomplete(path, missing)
        return clip

    def read_at(
        self, path: str, start: int, position: Sequence[float] = CENTER[1:]
    ) -> tuple[np.ndarray, str]:
        """Reads the clip that starts at a given frame, and says what it lacks."""
        packets = self._packets(path)
        wanted = start + self.sampling_rate * np.arange(self.num_frames)
        # A stream may hold fewer frames than packets; then only decoding tells.
        listed = np.minimum(wanted, len(packets.sizes) - 1)
        to_pixels = _pixel_maker(self.shape, position)
        decoded = _decode_from_keyframe(path, packets, set(listed.tolist()), to_pixels)
        if decoded is None:
            decoded = _decode_from_start(path, set(wanted.tolist()), to_pixels)
        if not decoded:
            raise ValueError(f"nothing can be decoded at frame {start}")
        # Frames that there are not are those before them.
        numbers = np.array(sorted(decoded))
        nearest = np.maximum(np.searchsorted(numbers, wanted, side="right") - 1, 0)
        clip = np.stack([decoded[int(number)] for number in numbers[nearest]])
        missing = []
        if packets.announced > len(packets.sizes):
            missing.append(
                f"broken off after {len(packets.sizes)} of {packets.announced} frames"
            )
        absent = int(np.count_nonzero(numbers[nearest] != wanted))
        if absent:
            missing.append(
                f"{absent} of a clip's {len(wanted)} frames repeat the one before"
            )
        return clip, "; ".join(missing)

    def _packets(self, path: str) -> "PacketList":
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
    """The packets of a file's video stream, in the order in which they are stored."""

    # Time stamps at which a packet's frame is shown, and at which it is to be decoded.
    stamps: np.ndarray
    decoding_stamps: np.ndarray
    # In bytes.
    sizes: np.ndarray
    # How many frames are shown before; `None` if a packet has no time stamp, or two
    # have the same.
    ranks: np.ndarray | None
    # Which packets are keyframes.
    keyframes: np.ndarray
    # How many frames the file's header says that there are; 0 if nothing.
    announced: int


def list_packets(path: str) -> PacketList:
    """Lists a file's video packets without decoding any."""
    with _Video(path) as video:
        rows = [
            (packet.pts, packet.dts, packet.size, packet.is_keyframe, packet.is_corrupt)
            for packet in video.packets()
            if packet.size
        ]
        announced = video.stream.frames
    # What a file breaks off in is worth nothing.
    while rows and rows[-1][4]:
        rows.pop()
    if not rows:
        raise ValueError("holds no frames")
    shown, decoding, sizes, key, _ = zip(*rows, strict=True)
    stamps = np.array([stamp or 0 for stamp in shown], "int64")
    is_ordered = None not in shown and len(set(shown)) == len(shown)
    return PacketList(
        stamps,
        np.array([stamp or 0 for stamp in decoding], "int64"),
        np.array(sizes, "int64"),
        np.argsort(np.argsort(stamps)) if is_ordered else None,
        np.flatnonzero(key),
        announced,
    )


class _Video:
    """An open file and its video stream; FFmpeg's errors become a `ValueError`."""

    def __init__(self, path: str) -> None:
        try:
            self.container = av.open(path)
        except av.FFmpegError as error:
            reason = f"{type(error).__name__}: {error.strerror or error}"
            raise ValueError(reason) from error
        stream: Any = self.container.streams.best("video")
        # Without a codec context, there is no decoder for the stream.
        if stream is None or stream.codec_context is None:
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

    def decode(self, packet: Any) -> list[Any]:
        """Returns the frames that come out when a packet goes in."""
        try:
            return self.stream.codec_context.decode(packet if packet.size else None)
        except av.FFmpegError:
            # Broken data: the frame before stays on the screen.
            return []


PixelMaker = Callable[[Any], np.ndarray]


def _pixel_maker(shape: Sequence[int], position: Sequence[float]) -> PixelMaker:
    """Makes a function that turns decoded frames into arrays of one size."""
    _, *size, channels = shape
    reformatter = VideoReformatter()

    def to_pixels(frame: Any) -> np.ndarray:
        turns = round(frame.rotation / 90) % 4
        sides = np.array([frame.height, frame.width])
        upright = sides[::-1] if turns % 2 else sides
        scale = max(size[0] / upright[0], size[1] / upright[1])
        # Not below the wanted size by rounding.
        scaled = [max(round(a * scale), b) for a, b in zip(upright, size, strict=True)]
        height, width = scaled[::-1] if turns % 2 else scaled
        frame = reformatter.reformat(
            frame,
            width=width,
            height=height,
            format="gray" if channels == 1 else "rgb24",
            interpolation=Interpolation.BICUBIC,
            # Threads of its own may block one another for minutes on a busy machine.
            threads=1,
        )
        pixels = np.rot90(frame.to_ndarray(), turns)
        top = round((scaled[0] - size[0]) * position[0])
        left = round((scaled[1] - size[1]) * position[1])
        pixels = pixels[top : top + size[0], left : left + size[1]]
        return pixels.reshape(*size, channels)

    return to_pixels


def _decode_from_keyframe(
    path: str, packets: PacketList, targets: set[int], to_pixels: PixelMaker
) -> dict[int, np.ndarray] | None:
    """Decodes from the last keyframe shown before the first target.

    Gives the targets' pixels by number, or `None` if the file is not as listed, or its
    frames do not come in the order of their time stamps.
    """
    ranks = packets.ranks
    if ranks is None:
        return None
    usable = packets.keyframes[ranks[packets.keyframes] <= min(targets)]
    if not len(usable):
        return None
    keyframe = int(usable[np.argmax(ranks[usable])])
    found: dict[int, np.ndarray] = {}
    with _Video(path) as video:
        landed = _seek(video, packets, keyframe) if keyframe else (0, video.packets())
        if landed is None:
            return None
        first, source = landed
        # Frames shown before the first keyframe may refer to what was not decoded.
        expected = int(ranks[first])
        for number, packet in enumerate(source, start=first):
            if packet.size:
                if number >= len(ranks):
                    # What the file breaks off in.
                    continue
                if packet.size != packets.sizes[number]:
                    return None
                # Decoders hand a packet's stamp on to its frame.
                packet.pts = int(ranks[number])
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


def _seek(
    video: _Video, packets: PacketList, keyframe: int
) -> tuple[int, Iterator[Any]] | None:
    """Goes to a keyframe, or to one before it.

    Gives the number of the packet where it landed, a keyframe, and the packets from
    there on; `None` if it can't get there.
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


def _decode_from_start(
    path: str, targets: set[int], to_pixels: PixelMaker
) -> dict[int, np.ndarray]:
    """Decodes a file from its start and counts its frames.

    Gives the pixels by number of those targets that exist; if none does, those of the
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
