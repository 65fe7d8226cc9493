"""Video files are read as they are, and written whole or not at all."""

import logging
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
import videos
from av.stream import Disposition
from PIL import Image, features

from diffaccel.media.errors import MediaError
from diffaccel.media.video_reader import DecodedFrame, VideoReader
from diffaccel.media.video_writer import VideoWriter


def read(path: Path) -> list[DecodedFrame]:
    with VideoReader(path) as reader:
        return list(reader.frames())


def write(path: Path, count: int = 3, **options: object) -> None:
    given = {"rate": Fraction(25), "time_base": Fraction(1, 1000), **options}
    with VideoWriter(path, **given) as writer:
        writer.start(64, 48)
        for number in range(count):
            writer.write(videos.picture(number, 64, 48), Fraction(number, 25))


@pytest.mark.parametrize("times", [videos.STEADY, videos.UNEVEN], ids=["steady", "uneven"])
@pytest.mark.parametrize("size", [(64, 48), (66, 50)], ids=["aligned", "odd"])
def test_frames_come_with_their_own_times(tmp_path: Path, times: list[Fraction], size: tuple[int, int]) -> None:
    path = videos.make(tmp_path / "in.mp4", times=times, size=size)
    frames = read(path)
    assert [frame.time for frame in frames] == times
    for number, frame in enumerate(frames):
        assert frame.pixels.shape == (size[1], size[0], 3)
        assert np.abs(frame.pixels.astype(int) - videos.picture(number, *size)).mean() < 8


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("in.avi", {"codec": "mpeg4", "time_base": Fraction(1, 25), "audio": "mp3"}),
        ("in.avi", {"codec": "mjpeg", "pix_fmt": "yuvj420p", "time_base": Fraction(1, 25), "size": (65, 49)}),
        ("in.mkv", {"codec": "ffv1", "pix_fmt": "bgr0", "audio": "flac", "size": (65, 49)}),
        ("in.webm", {"codec": "libvpx-vp9", "audio": "libopus"}),
        ("in.ts", {"codec": "mpeg2video", "time_base": Fraction(1, 25), "audio": "mp2"}),
        ("in.mp4", {"pix_fmt": "yuv444p10le"}),
    ],
    ids=["avi", "mjpeg-odd", "mkv-lossless-odd", "webm", "transport-stream", "ten-bit"],
)
def test_what_cameras_and_programs_write_is_read(tmp_path: Path, name: str, options: dict) -> None:
    path = videos.make(tmp_path / name, **options)
    with VideoReader(path) as reader:
        assert (reader.width, reader.height) == options.get("size", (64, 48))
        assert reader.rate == 25
        frames = list(reader.frames())
    assert len(frames) == 12
    written = videos.times(path)
    assert [frame.time - frames[0].time for frame in frames] == [time - written[0] for time in written]
    assert np.abs(frames[5].pixels.astype(int) - videos.picture(5, reader.width, reader.height)).mean() < 12


@pytest.mark.parametrize(
    ("shape", "size", "turned"),
    [("16/11", (93, 48), False), ("3/4", (64, 64), False), ("4/3", (48, 85), True), ("200/1", (64, 48), False)],
)
def test_pixels_that_are_not_square_are_stretched(
    tmp_path: Path, shape: str, size: tuple[int, int], turned: bool
) -> None:
    path = videos.make(tmp_path / "in.mp4", shape=Fraction(shape))
    with VideoReader(videos.turn(path, 90) if turned else path) as reader:
        assert (reader.width, reader.height) == size
        frame = next(reader.frames())
    assert frame.pixels.shape[1::-1] == size
    expected = np.rot90(videos.picture(0, *size[::-1]), -1) if turned else videos.picture(0, *size)
    assert np.abs(frame.pixels.astype(int) - expected).mean() < 12


def test_a_recording_of_a_browser_tells_a_thousand_pictures_a_second_and_is_measured(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "in.webm"), "w") as container:
        stream = container.add_stream("libvpx", rate=1000)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(13):
            frame = av.VideoFrame.from_ndarray(videos.picture(number, 64, 48), format="rgb24")
            frame.pts, frame.time_base = round(number * 1000 / 30), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with VideoReader(tmp_path / "in.webm") as reader:
        assert reader.rate == 30
        assert len(list(reader.frames())) == 13


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_pictures_of_avi_are_at_even_times_though_it_stores_none(tmp_path: Path, codec: str) -> None:
    path = videos.make(tmp_path / "in.avi", codec=codec, audio=None, time_base=Fraction(1, 25), bf="2")
    frames = read(path)
    assert [frame.time for frame in frames] == videos.STEADY
    assert np.abs(frames[7].pixels.astype(int) - videos.picture(7, 64, 48)).mean() < 12


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [
        ("in.mov", "qtrle", "argb"),
        ("in.mov", "prores_ks", "yuva444p10le"),
        ("in.apng", "apng", "rgba"),
        ("in.webm", "libvpx-vp9", "yuva420p"),
    ],
)
def test_what_is_transparent_is_laid_on_white(tmp_path: Path, name: str, codec: str, pix_fmt: str) -> None:
    pixels = np.full((48, 64, 4), (0, 200, 0, 0), np.uint8)  # green lies under it, which nobody shall see
    pixels[:, 16:32] = (200, 0, 0, 128)
    pixels[:, 32:] = (0, 0, 200, 255)
    seen_through(tmp_path / name, codec, pix_fmt, pixels)
    seen_through(tmp_path / f"unfilled {name}", codec, pix_fmt, pixels * np.array([1, 1, 1, 0], np.uint8))
    found = read(tmp_path / name)[1].pixels.astype(int)[24]
    for column, expected in ((8, (255, 255, 255)), (24, (227, 127, 127)), (48, (0, 0, 200))):
        assert np.abs(found[column] - expected).max() <= 6
    assert np.abs(read(tmp_path / f"unfilled {name}")[1].pixels[24, 8].astype(int) - (0, 200, 0)).max() <= 6


def seen_through(path: Path, codec: str, pix_fmt: str, pixels: np.ndarray) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = pixels.shape[1], pixels.shape[0], pix_fmt
        for _ in range(2):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgba").reformat(format=pix_fmt, dst_colorspace=5)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def test_a_palette_tells_what_is_transparent_and_a_moving_avif_moves(tmp_path: Path) -> None:
    pictures = []
    for left in (8, 12, 16):
        picture = Image.new("RGBA", (64, 48), (0, 200, 0, 0))
        picture.paste((200, 0, 0, 255), (left, 8, left + 20, 40))
        pictures.append(picture)
    pictures[0].quantize(4, method=Image.Quantize.FASTOCTREE).save(tmp_path / "in.png")
    (frame,) = read(tmp_path / "in.png")
    assert [frame.pixels[at].tolist() for at in ((2, 2), (20, 20))] == [[255, 255, 255], [200, 0, 0]]
    if features.check("avif"):
        pictures[0].save(tmp_path / "in.avif", save_all=True, append_images=pictures[1:], duration=100)
        assert [float(frame.time) for frame in read(tmp_path / "in.avif")] == pytest.approx([0.0, 0.1, 0.2])


def test_of_several_videos_the_one_that_players_show_is_read(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "in.mkv"), "w") as container:
        for width in (64, 96):
            stream = container.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt = width, 48, "yuv420p"
            stream.disposition = Disposition.default if width == 96 else Disposition(0)
        for stream in container.streams.video:
            for frame in (av.VideoFrame.from_ndarray(videos.picture(1, stream.width, 48), format="rgb24"), None):
                container.mux(stream.encode(frame))
    assert [frame.pixels.shape for frame in read(tmp_path / "in.mkv")] == [(48, 96, 3)]


@pytest.mark.parametrize(("degrees", "turns"), [(90, -1), (180, 2), (270, 1)])
def test_a_camera_held_sideways_gives_upright_frames(tmp_path: Path, degrees: int, turns: int) -> None:
    path = videos.turn(videos.make(tmp_path / "in.mp4"), degrees)
    with VideoReader(path) as reader:
        frame = next(reader.frames())
        assert frame.pixels.shape == (reader.height, reader.width, 3)
    assert np.abs(frame.pixels.astype(int) - np.rot90(videos.picture(0, 64, 48), turns)).mean() < 8


def test_a_transport_stream_starts_at_its_own_beginning(tmp_path: Path) -> None:
    late = [time + 5 for time in videos.STEADY]
    path = videos.make(tmp_path / "in.ts", times=late, codec="mpeg2video", audio=None, time_base=Fraction(1, 25))
    assert videos.times(path)[0] >= 5
    with VideoReader(path) as reader:
        assert [frame.time for frame in reader.frames()] == videos.STEADY


def test_a_damaged_piece_is_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = videos.make(tmp_path / "in.avi", codec="png", pix_fmt="rgb24", audio=None, time_base=Fraction(1, 25))
    data = path.read_bytes()
    where = [k for k in range(len(data)) if data[k : k + 4] == b"IHDR"][5]
    path.write_bytes(data[:where] + b"\0" * 20 + data[where + 20 :])
    with caplog.at_level(logging.WARNING), VideoReader(path) as reader:
        assert len(list(reader.frames())) == 11
        assert reader.damaged == 1
    assert "left out a damaged piece" in caplog.text


def test_a_damaged_end_costs_no_whole_picture_before_it(tmp_path: Path) -> None:
    path = videos.make(tmp_path / "in.mp4", audio=None)
    with av.open(str(path)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    where, size = places[-1]
    data[where : where + size] = b"\xff" * size
    path.write_bytes(data)
    with VideoReader(path) as reader:
        assert (len(list(reader.frames())), reader.damaged) == (len(places) - 1, 1)


def nothing(path: Path) -> Path:
    return path


def folder(path: Path) -> Path:
    path.mkdir()
    return path


def text(path: Path) -> Path:
    path.write_text("not a video")
    return path


def cut(path: Path) -> Path:
    path.write_bytes(videos.make(path.with_suffix(".mov")).read_bytes()[:2000])
    return path


def hollow(path: Path) -> Path:
    path.write_bytes(b"\0\0\0\x14ftypisom\0\0\2\0isom\0\0\0\x08moov")
    return path


def sound_only(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=48000, layout="mono")
        videos.add_sound(container, sound, 0.2, np.random.default_rng(0))
    return path


def undecodable(path: Path) -> Path:
    data = videos.make(path, audio=None).read_bytes()
    start, end = data.index(b"mdat") + 4, data.index(b"moov") - 4
    path.write_bytes(data[:start] + b"\xff" * (end - start) + data[end:])
    return path


def numbered(path: Path) -> Path:
    return path.with_name("f%03d.png")


def unknown_codec(path: Path) -> Path:
    path.write_bytes(videos.make(path, audio=None).read_bytes().replace(b"avc1", b"zzz1").replace(b"avcC", b"zzzC"))
    return path


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (nothing, "no video file at"),
        (folder, r"is a folder, not a video file: make one of pictures with ffmpeg .* -i '.*\*\.png' clip\.mp4"),
        (numbered, r"no video file at .*: make one of pictures with ffmpeg -framerate 24 -i '.*f%03d\.png' clip\.mp4"),
        (text, "cannot read .*Invalid data"),
        (cut, "cannot read"),
        (hollow, "is empty: it holds neither pictures nor sound"),
        (sound_only, "holds no video, only audio"),
        (undecodable, "none of its h264 video can be decoded"),
        (unknown_codec, "cannot decode its video codec"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path: Path, broken, message: str) -> None:
    with pytest.raises(MediaError, match=message):
        VideoReader(broken(tmp_path / "in.mp4"))


@pytest.mark.parametrize("suffix", [".mp4", ".m4v", ".mov", ".mkv"])
def test_a_file_is_written_with_its_colours(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out{suffix}"
    write(path)
    assert videos.times(path) == [Fraction(k, 25) for k in range(3)]
    for number, pixels in enumerate(videos.pictures(path)):
        flat = pixels[:, 4:28].reshape(-1, 3).mean(0)
        assert np.abs(flat - videos.picture(number, 64, 48)[0, 0]).max() < 4
    assert list(tmp_path.iterdir()) == [path]


def interrupted(path: Path) -> None:
    with VideoWriter(path, rate=Fraction(25), time_base=Fraction(1, 25)) as writer:
        writer.start(64, 48)
        writer.write(videos.picture(0, 64, 48), 0)
        raise KeyboardInterrupt


def test_an_interrupt_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path / "out.mp4")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_replacement_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    path.write_bytes(b"precious")
    with pytest.raises(MediaError, match="no picture came"):
        write(path, count=0, overwrite=True)
    assert path.read_bytes() == b"precious"
    assert list(tmp_path.iterdir()) == [path]
    write(path, overwrite=True)
    assert len(videos.times(path)) == 3


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    import resource
    import signal

    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(MediaError, match=r"cannot write .*out.mp4: File too large"):
            write(tmp_path / "out.mp4", count=60)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("out.gif", "must end in .mp4"),
        ("missing/out.mp4", "there is no folder"),
        ("there.mp4", "exists.*--overwrite"),
        ("folder.mp4", "is a folder"),
    ],
)
def test_what_cannot_be_written_is_said_at_once(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "there.mp4").touch()
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(MediaError, match=message):
        write(tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.mp4", "there.mp4"]


def test_times_that_do_not_rise_are_made_to(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    with VideoWriter(path, rate=Fraction(25), time_base=Fraction(1, 100)) as writer:
        writer.start(64, 48)
        for time in (0.0, 0.04, 0.04, 0.02, 0.2):
            writer.write(videos.picture(0, 64, 48), time)
    assert videos.times(path) == [Fraction(k, 100) for k in (0, 4, 5, 6, 20)]


@pytest.mark.parametrize("name", videos.MATRICES)
def test_the_whole_display_matrix_is_honoured(tmp_path: Path, name: str) -> None:
    path = videos.shown_as(videos.make(tmp_path / "in.mp4", audio=None), videos.MATRICES[name])
    expected = videos.displayed(videos.picture(3, 64, 48), videos.MATRICES[name])
    with VideoReader(path) as reader:
        assert (reader.height, reader.width) == expected.shape[:2]
        pixels = list(reader.frames())[3].pixels
    assert np.abs(pixels.astype(int) - expected).mean() < 8


def test_a_slanted_frame_is_shown_by_the_nearest_quarter_turn_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = videos.shown_as(videos.make(tmp_path / "in.mp4", audio=None), (1, 0, 0, 1))
    data = bytearray(path.read_bytes())
    sine, cosine = round(0.5 * 65536), round(0.866 * 65536)
    at = data.index(b"tkhd") + 44
    for place, number in zip((0, 4, 12, 16), (cosine, sine, -sine, cosine), strict=True):
        data[at + place : at + place + 4] = number.to_bytes(4, "big", signed=True)
    path.write_bytes(data)
    frames = read(path)
    assert np.abs(frames[0].pixels.astype(int) - videos.picture(0, 64, 48)).mean() < 8
    assert "30" in caplog.text


@pytest.mark.parametrize("height", [240, 720])
def test_untagged_hd_is_of_bt709_as_browsers_take_it(tmp_path: Path, height: int) -> None:
    matrix = {240: 5, 720: 1}[height]  # numbers of libswscale: BT.601, BT.709
    pixels = np.full((height, 64, 3), (48, 192, 64), np.uint8)
    path = tmp_path / "in.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, height, "yuv420p"
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuv420p", dst_colorspace=matrix)
        frame.colorspace = frame.color_primaries = frame.color_trc = 2  # says nothing
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert np.abs(read(path)[0].pixels.astype(int) - pixels).max() <= 6


@pytest.mark.parametrize("codec", ["pcm_s16le", "pcm_s24le", "pcm_f32le", "pcm_u8"])
def test_a_gap_in_plain_sound_stays_one_though_a_mov_has_none(tmp_path: Path, codec: str) -> None:
    with av.open(str(tmp_path / "in.mkv"), "w") as container:
        pictures, sound = container.add_stream("libx264", rate=10), container.add_stream(codec, rate=8000)
        sound.layout = "stereo"
        pictures.width, pictures.height, pictures.pix_fmt = 64, 48, "yuv420p"
        for number in range(20):
            frame = av.VideoFrame.from_ndarray(videos.picture(number, 64, 48), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 10)
            container.mux(pictures.encode(frame))
        container.mux(pictures.encode())
        for start in (0, 800, 8000, 8800):  # a fifth of a second at the beginning, and another one after a second
            loud = av.AudioFrame.from_ndarray(np.full((1, 1600), 9000, np.int16), format="s16", layout="stereo")
            loud.sample_rate, loud.pts, loud.time_base = 8000, start, Fraction(1, 8000)
            container.mux(sound.encode(loud))
        container.mux(sound.encode())
    with (
        VideoReader(tmp_path / "in.mkv") as reader,
        VideoWriter(tmp_path / "out.mov", rate=reader.rate, time_base=reader.time_base, audio=reader.audio) as writer,
    ):
        assert writer.encoded == 0
        videos.write_again(reader, writer)
    left = videos.samples(tmp_path / "out.mov")[::2]
    assert left.size == pytest.approx(9600, abs=9)
    assert np.flatnonzero(np.diff(left)) == pytest.approx([1599, 7999], abs=9)


def joined(path: Path, *parts: Path) -> Path:
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


@pytest.mark.parametrize("audio", [None, "mp2"])
def test_joined_streams_go_on_from_the_last_frame(tmp_path: Path, audio: str | None) -> None:
    part = videos.make(tmp_path / "part.ts", codec="mpeg2video", time_base=Fraction(1, 25), audio=audio)
    with VideoReader(joined(tmp_path / "in.ts", part, part, part)) as reader:
        items = list(reader)
    frames = [item.time for item in items if isinstance(item, DecodedFrame)]
    assert [time - frames[0] for time in frames] == [Fraction(k, 25) for k in range(36)]
    if audio:
        sound = [item for item in items if not isinstance(item, DecodedFrame)]
        own = videos.sound(part)
        assert [bytes(packet) for packet in sound] == [data for _, data in own] * 3
        times = [packet.dts * packet.time_base for packet in sound]
        assert all(a < b for a, b in pairwise(times))
        for number in (1, 2):  # sound keeps its distance to the picture, but for a packet's length at the joint
            at = times[number * len(own) + 2] - frames[12 * number]
            assert abs(at - (times[2] - frames[0])) < Fraction(1, 1000)


@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
def test_sound_that_is_longer_makes_no_more_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    sound = videos.add_sound
    monkeypatch.setattr(videos, "add_sound", lambda *args: sound(*args[:2], 5 * args[2], args[3]))
    with VideoReader(videos.make(tmp_path / f"a.{suffix}")) as reader:
        assert reader.count == len(list(reader.frames())) == len(videos.STEADY)
