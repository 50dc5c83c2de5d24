"""Videos that tests write and recognize."""

from fractions import Fraction

import av
import numpy as np


def scene(num_frames, height=48, width=64):
    """A pattern that moves to the right by 4 pixels a frame, each frame unlike others.

    Returns:
        uint8 array of shape `(num_frames, height, width, 3)`.
    """
    pattern = np.random.default_rng(0).integers(0, 256, (height // 4, width // 4, 3))
    coarse = np.stack([np.roll(pattern, i, axis=1) for i in range(num_frames)])
    return coarse.repeat(4, axis=1).repeat(4, axis=2).astype("uint8")


def write_video(
    path, codec, frames, *, b_frames=None, stamps=None, gop=12, options=None, muxer=None
):
    """Encodes frames; `stamps` are the times they are shown at, in 1/25 s."""
    with av.open(str(path), "w", options=muxer or {}) as container:
        stream = container.add_stream(codec, rate=25, options=options or {})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.gop_size = gop
        if b_frames is not None:
            stream.codec_context.max_b_frames = b_frames
        if stamps is not None:
            stream.codec_context.time_base = Fraction(1, 25)
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = number if stamps is None else int(stamps[number])
            frame.time_base = Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return str(path)


def write_sound(path):
    """Writes a file that holds sound and no picture."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), "float32"), format="fltp", layout="mono"
        )
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return str(path)


def decode_all(path, pixel_format="rgb24"):
    """Decodes a file from start to end, by the plainest use of PyAV."""
    with av.open(str(path)) as container:
        return [
            frame.reformat(
                format=pixel_format, interpolation="BICUBIC", threads=1
            ).to_ndarray()
            for frame in container.decode(video=0)
        ]
