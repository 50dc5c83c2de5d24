"""What is decoded decides, whatever a file announces, and what its pixels mean."""

import io
import struct

import av
import keras
import numpy as np
import pytest
import soundfile
from PIL import Image
from sound_files import noise, write
from video_files import decode_all, scene, write_video

from keras_bridle.data.files import ReadReport
from keras_bridle.data.layouts import list_files
from keras_bridle.data.readers import AudioReader, ImageReader
from keras_bridle.data.video_reader import VideoReader
from keras_bridle.models.converters import BridleImageConverter

pytestmark = pytest.mark.one_backend


def mp3(seconds, bit_rate, xing=False, layout="mono"):
    buffer = io.BytesIO()
    options = {"write_xing": str(int(xing)), "id3v2_version": "0"}
    options["write_id3v1"] = "0"
    with av.open(buffer, "w", format="mp3", options=options) as out:
        stream = out.add_stream("libmp3lame", rate=44100, layout=layout)
        stream.bit_rate = bit_rate
        sound = noise(seconds, 44100, highest=3000)[:, 0].astype("float32")
        for start in range(0, len(sound), 1152):
            piece = np.tile(sound[start : start + 1152], (stream.channels, 1))
            frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout=layout)
            frame.sample_rate, frame.pts = 44100, start
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return buffer.getvalue()


def id3_with_cover(size=30000):
    picture = b"\xff\xd8" + bytes(size)
    head = b"\0image/jpeg\0\3\0"
    frame = b"APIC" + (len(picture) + len(head)).to_bytes(4, "big") + b"\0\0"
    frame += head + picture
    length = bytes([(len(frame) >> shift) & 127 for shift in (21, 14, 7, 0)])
    return b"ID3\3\0\0" + length + frame


MP3 = {
    "announced too long": mp3(1.5, 32000) + mp3(1.5, 320000),
    "announced too short": mp3(1.5, 320000) + mp3(1.5, 32000),
    "constant rate": mp3(3, 128000),
    "with a cover": id3_with_cover() + mp3(3, 128000),
    "joined, with the length of the first": mp3(1.5, 128000, xing=True)
    + mp3(1.5, 128000),
    "with a cover and its length": id3_with_cover() + mp3(3, 128000, xing=True),
}


def check_clips(path, whole, num_samples, sample_rate, **tolerance):
    """Compares clips with what is decoded as a whole."""
    reader = AudioReader(num_samples=num_samples, sample_rate=sample_rate)
    room = len(whole) - num_samples
    for position in (0.0, 0.37, 0.8, 1.0):
        start = min(int(position * (room + 1)), room)
        expected = np.clip(whole[start : start + num_samples], -1, 1)
        clip = reader(str(path), (position, 0.5, 0.5))
        np.testing.assert_allclose(clip, expected, **tolerance)


@pytest.mark.parametrize("name", MP3)
def test_clips_of_mp3_are_those_of_a_plain_decoding(tmp_path, name):
    path = tmp_path / "a.mp3"
    path.write_bytes(MP3[name])
    if name.endswith("its length"):
        whole = soundfile.read(path, dtype="float32")[0]
    else:
        with av.open(str(path)) as container:
            frames = [x.to_ndarray()[0] for x in container.decode(audio=0)]
        whole = np.concatenate(frames)
    assert abs(len(whole) / 44100 - 3) < 0.2
    check_clips(path, whole, 22050, 44100, atol=1e-4)


FORMATS = (
    "WAV PCM_16, FLAC PCM_16, OGG VORBIS, MP3 MPEG_LAYER_III, WAV GSM610, WAV G721_32, "
    "WAV NMS_ADPCM_32, WAV IMA_ADPCM, RF64 PCM_16, W64 PCM_16, AU ULAW, AIFF PCM_24, "
    "CAF ALAC_16, CAF ALAC_20, OGG OPUS, XI DPCM_16, NIST PCM_16"
)


@pytest.mark.parametrize("name", FORMATS.split(", "))
def test_all_formats_give_that_part_of_the_whole(tmp_path, name):
    path, (kind, subtype) = tmp_path / "a.wav", name.split()
    # Seeks in this one miss the last packet of two channels.
    sound = noise(2.0, 8000, channels=2 if subtype == "ALAC_20" else 1)
    soundfile.write(path, sound, 8000, subtype, format=kind)
    with soundfile.SoundFile(path) as file:
        rate = file.samplerate
        whole = file.read(file.frames, dtype="float32", always_2d=True).mean(axis=1)
    check_clips(path, whole, 4000, rate, atol=1e-6)


def test_mp3_joined_of_mono_and_stereo(tmp_path):
    path, clips = tmp_path / "a.mp3", []
    reader = AudioReader(num_samples=22050, sample_rate=44100)
    for layout in ("mono", "stereo"):
        path.write_bytes(mp3(1.5, 128000) + mp3(1.5, 128000, layout=layout))
        clips.append(reader(str(path), (1.0, 0.5, 0.5)))
    assert np.corrcoef(*clips)[0, 1] > 0.99
    # Another file of the same name is not as long.
    path.write_bytes(mp3(1, 128000))
    assert reader(str(path), (1.0, 0.5, 0.5)).any()


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_ogg_of_several_streams(tmp_path, subtype):
    """As stations send: libsndfile would give the first stream alone."""
    parts = [io.BytesIO() for _ in range(2)]
    for number, part in enumerate(parts):
        sound = noise(1.0, 48000, seed=number, highest=3000)
        soundfile.write(part, sound, 48000, subtype, format="OGG")
    path = tmp_path / "a.ogg"
    path.write_bytes(b"".join(part.getvalue() for part in parts))
    with av.open(str(path)) as container:
        frames = [x.to_ndarray()[0] for x in container.decode(audio=0)]
    whole = np.concatenate(frames)
    assert len(whole) > 90000
    check_clips(path, whole, 12000, 48000, atol=1e-6)


@pytest.mark.parametrize("ending", ["flac", "wav"])
def test_headers_without_a_length(tmp_path, ending):
    sound = noise(2.0)
    path = write(tmp_path / f"a.{ending}", sound)
    content = bytearray((tmp_path / f"a.{ending}").read_bytes())
    if ending == "flac":
        # The last 36 bits before the checksum of the first block.
        content[21] &= 0xF0
        content[22:26] = bytes(4)
    else:
        # The recorder stopped before it wrote the sizes.
        content[4:8] = content[40:44] = bytes(4)
    (tmp_path / f"a.{ending}").write_bytes(content)
    clip = AudioReader(num_samples=8000)(path, (1.0, 0.5, 0.5))
    np.testing.assert_allclose(clip, sound[-8000:, 0], atol=1e-4)


@pytest.mark.parametrize("seconds", [0.1, 0.5, 6.0])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_flac_announced_too_short(tmp_path, share, seconds):
    sound = noise(seconds)
    path = write(tmp_path / "a.flac", sound)
    content = bytearray((tmp_path / "a.flac").read_bytes())
    content[22:26] = struct.pack(">I", int(share * len(sound)))
    (tmp_path / "a.flac").write_bytes(content)
    assert soundfile.info(path).frames != len(sound)
    check_clips(path, sound[:, 0], 1000, 16000, atol=1e-4)


ENDINGS = (
    "avif image, jp2 image, sph NIST, rf64 RF64, w64 W64, caf CAF, au AU, aiff AIFF"
)


@pytest.mark.parametrize("name", ENDINGS.split(", "))
def test_rare_endings_are_listed_and_read(tmp_path, name):
    ending, form = name.split()
    path = tmp_path / f"a.{ending}"
    if form == "image":
        picture = np.full((16, 24, 3), (200, 100, 50), "uint8")
        Image.fromarray(picture).save(path)
        (found,) = list_files("image", tmp_path).files
        np.testing.assert_allclose(ImageReader((16, 24))(found), picture, atol=4)
    else:
        sound = noise(0.2)
        soundfile.write(path, sound, 16000, "PCM_16", format=form)
        (found,) = list_files("audio", tmp_path).files
        clip = AudioReader(num_samples=3200)(found)
        np.testing.assert_allclose(clip, sound[:, 0], atol=1e-4)


def test_channels_that_cancel_give_the_loudest(tmp_path):
    sound, reader = noise(0.2)[:, 0], AudioReader(num_samples=3200)
    stereo = np.stack([0.5 * sound, -0.5 * sound, 0.02 * sound], axis=1)
    for channels, expected in ((2, 0.5 * sound), (3, stereo.mean(axis=1))):
        path = write(tmp_path / "a.wav", stereo[:, :channels], subtype="FLOAT")
        np.testing.assert_allclose(reader(path), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("matrix", "corners"),
    [
        ((1, 0, 0, 1), "rgbk"),
        ((-1, 0, 0, 1), "grkb"),
        ((1, 0, 0, -1), "bkrg"),
        ((-1, 0, 0, -1), "kbgr"),
        ((0, 1, -1, 0), "brkg"),
        ((0, -1, 1, 0), "gkrb"),
        ((0, 1, 1, 0), "rbgk"),
        ((0, -1, -1, 0), "kgbr"),
    ],
)
def test_display_matrices(tmp_path, matrix, corners):
    # Red and green above, blue and black below.
    picture = np.zeros((48, 64, 3), "uint8")
    picture[:24, :32, 0] = picture[:24, 32:, 1] = picture[24:, :32, 2] = 255
    path = tmp_path / "a.mp4"
    write_video(path, "libx264", picture[None].repeat(3, axis=0))
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 44
    a, b, c, d = (x << 16 for x in matrix)
    content[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    frame = VideoReader((32, 40), 1, 1)(str(path))[0].astype(int)
    pixels = [frame[row, column] for row in (8, 24) for column in (10, 30)]
    found = ["rgb"[pixel.argmax()] if pixel.max() > 150 else "k" for pixel in pixels]
    assert "".join(found) == corners


# The demuxer hides what is cut off, and leaves out whole groups of pictures.
@pytest.mark.parametrize(("b_frames", "cut_off"), [(0, 5), (2, 5), (0, 13), (2, 12)])
def test_frames_before_a_cut_are_hidden(tmp_path, b_frames, cut_off):
    """As phones trim videos: the packets stay, and an edit list hides them."""
    whole, cut = tmp_path / "whole.mp4", tmp_path / "cut.mp4"
    write_video(whole, "libx264", scene(36), b_frames=b_frames)
    options = {"avoid_negative_ts": "disabled"}
    with av.open(str(whole)) as source, av.open(str(cut), "w", options=options) as out:
        old = source.streams.video[0]
        new = out.add_stream_from_template(old)
        shift = round(cut_off / 25 / old.time_base)
        for packet in source.demux(old):
            if packet.dts is not None:
                packet.pts -= shift
                packet.dts -= shift
                packet.stream = new
                out.mux(packet)
    plain = np.stack(decode_all(cut, "gray"))
    assert len(plain) == 36 - cut_off
    reader = VideoReader((48, 64), 4, 1, channels=1)
    for start in (0, 3, 10, 19):
        clip, missing = reader.read_at(str(cut), start)
        assert not missing
        np.testing.assert_array_equal(clip[..., 0], plain[start : start + 4])
    # Longer than what is shown: the last frame is repeated.
    clip = VideoReader((48, 64), 19, 2, channels=1)(str(cut))
    np.testing.assert_array_equal(clip[-1, ..., 0], plain[-1])


@pytest.mark.parametrize(
    ("ending", "codec", "muxer"),
    [
        ("mkv", "libx264", None),
        # Without a duration and an index, as it is sent.
        ("mkv", "libx264", {"live": "1"}),
        ("mp4", "libx264", {"movflags": "frag_keyframe+empty_moov"}),
        ("mov", "mpeg4", None),
        ("webm", "libvpx", None),
        ("m2ts", "libx264", None),
        ("3gp", "mpeg4", None),
        ("wmv", "wmv2", None),
        ("flv", "libx264", None),
    ],
)
def test_all_containers_give_that_part_of_the_whole(tmp_path, ending, codec, muxer):
    path, b_frames = tmp_path / f"a.{ending}", 2 if codec == "libx264" else None
    write_video(path, codec, scene(30), b_frames=b_frames, muxer=muxer)
    plain, report = np.stack(decode_all(path, "gray")), ReadReport()
    assert len(plain) == 30
    reader = VideoReader((48, 64), 4, 2, channels=1)
    for position in (0.0, 0.45, 0.8, 1.0):
        start = min(int(position * 24), 23)
        clip = reader(str(path), (position, 0.5, 0.5), report=report)
        np.testing.assert_array_equal(clip[..., 0], plain[start : start + 7 : 2])
    assert not report.incomplete


RAMP = np.linspace(0, 1, 256)[None].repeat(16, 0)


@pytest.mark.parametrize(
    ("ending", "pixels"),
    [
        ("png", (RAMP * 65535).astype("uint16")),
        ("tif", (RAMP * 65535).astype("uint16")),
        ("tif", (RAMP * 65535).astype(">u2")),
        ("tif", (RAMP * 65535).astype("int32")),
        ("tif", (RAMP * 255).astype("int32")),
        ("tif", RAMP.astype("float32")),
        ("tif", (RAMP * 255).astype("float32")),
        ("tif", (RAMP * 65535).astype("float32")),
        ("bmp", (RAMP * 255).astype("uint8")),
        ("gif", (RAMP * 255).astype("uint8")),
    ],
)
def test_a_ramp_stays_a_ramp(tmp_path, ending, pixels):
    path = tmp_path / f"a.{ending}"
    if pixels.dtype == ">u2":
        Image.frombytes("I;16B", (256, 16), pixels.tobytes()).save(path)
    else:
        Image.fromarray(pixels).save(path)
    found = ImageReader((16, 256), channels=1)(str(path))[8, :, 0]
    np.testing.assert_allclose(found, 255 * RAMP[0], atol=1.01)


@pytest.mark.parametrize(
    "pixels",
    [
        (RAMP * 1_000_000).astype("int32"),
        (RAMP - 0.5).astype("float32"),
        np.where(RAMP > 0.5, np.nan, RAMP).astype("float32"),
        (RAMP * 1e6).astype("float32"),
        (RAMP * 100 - 50).astype("int32"),
    ],
)
def test_what_numbers_cannot_say_is_refused(tmp_path, pixels):
    Image.fromarray(pixels).save(tmp_path / "a.tif")
    with pytest.raises(ValueError):
        ImageReader(16)(str(tmp_path / "a.tif"))


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_arrays_mean_what_files_mean(data_format):
    convert, gray = BridleImageConverter(channels=3), (RAMP * 255).astype("uint8")
    gray = gray[..., None]
    keras.config.set_image_data_format(data_format)
    try:
        expected = convert(gray)
        assert BridleImageConverter((8, 8), channels=3)(gray).shape == (8, 8, 3)
    finally:
        keras.config.set_image_data_format("channels_last")
    for other in (gray.astype("int64"), gray.astype("uint16") * 257):
        np.testing.assert_array_equal(convert(other), expected)
    np.testing.assert_array_equal(convert(gray > 100), 255 * (expected > 100))
    clear = np.concatenate([gray] * 3 + [np.zeros_like(gray)], axis=-1)
    np.testing.assert_array_equal(convert(clear), np.full_like(expected, 255))
    with pytest.raises(ValueError):
        convert(np.zeros((2, 3, 16, 16), "uint8"))
