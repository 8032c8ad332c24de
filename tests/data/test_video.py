"""Frames of clips whose grey level tells the index, and what is refused."""

import pickle
import sys
from fractions import Fraction

import av
import numpy as np
import pytest
from torch.utils.data import DataLoader

from llava.data.video import (
    Video,
    VideoSampling,
    VideoTimes,
    choose_frames,
    choose_shown,
    probe_video,
    read_video,
    time_instruction,
)
from llava.errors import DataError, LlavaError
from tests.clips import turn, write_timed


def seen_indices(video: Video) -> list[int]:
    """The indices of make_clip's grey frames, from their pixels."""
    levels = [np.asarray(frame).mean() for frame in video.frames]
    assert all(abs(level - 20 - 5 * round((level - 20) / 5)) < 2 for level in levels), levels
    return [round((level - 20) / 5) for level in levels]


@pytest.mark.parametrize(
    ("frames", "fps", "sampling", "expected"),
    [
        (40, 8, VideoSampling(), [0, 8, 16, 24, 32]),
        (40, 8, VideoSampling(fps=2), list(range(0, 40, 4))),
        (40, 8, VideoSampling(fps=3), list(range(0, 40, 3))),  # 2.67 rounds to 3
        (20, 8, VideoSampling(fps=30), list(range(20))),  # never less than one frame on
        (40, 8, VideoSampling(frames_upbound=5), [0, 8, 16, 24, 32]),  # as many as the bound: no need to choose anew
        (40, 8, VideoSampling(frames_upbound=4), [0, 13, 26, 39]),
        (40, 8, VideoSampling(frames_upbound=3), [0, 19, 39]),  # 19.5 rounds down
        (40, 8, VideoSampling(frames_upbound=1), [0]),
        (40, 8, VideoSampling(frames_upbound=5, force_sample=True), [0, 9, 19, 29, 39]),
        (3, 8, VideoSampling(frames_upbound=6, force_sample=True), [0, 0, 0, 1, 1, 2]),
        (40, 8, VideoSampling(fps=8, frames_upbound=0), list(range(40))),
        (1, 8, VideoSampling(), [0]),
    ],
)
def test_the_frames_that_are_chosen_are_the_frames_that_are_seen(make_clip, frames, fps, sampling, expected):
    assert choose_frames(frames, fps, sampling) == expected
    clip = make_clip(frames, fps)
    video = read_video(clip, sampling)
    assert seen_indices(video) == expected
    assert probe_video(clip, sampling) == VideoTimes(video.times, video.duration)
    assert video.duration == pytest.approx(frames / fps)
    assert video.times == pytest.approx([index / fps for index in expected])


@pytest.mark.parametrize(
    ("begin", "end", "expected"),
    [(1.0, 3.0, [8, 16]), (1.0, None, [8, 16, 24, 32]), (0.0, 0.5, [0]), (4.9, 99.0, [39])],
)
def test_frames_of_a_part(make_clip, begin, end, expected):
    """Every eighth frame of 40, counted from where the part begins."""
    video = read_video(make_clip(), VideoSampling(), begin, end)
    assert seen_indices(video) == expected
    assert video.times == pytest.approx([index / 8 for index in expected])


@pytest.mark.parametrize(("begin", "end"), [(5.0, None), (2.0, 2.0), (3.0, 1.0)])
def test_an_empty_part_is_refused(make_clip, begin, end):
    with pytest.raises(DataError, match=rf"clip.mp4 has 40 frames at 8 per second, none from second {begin} to {end}"):
        read_video(make_clip(), VideoSampling(), begin, end)


def test_a_bound_spaces_the_frames_evenly():
    """Against exact fractions; numpy's doubles may fall below a whole number by one."""
    for frames in (33, 100, 901, 12345):
        for bound in (2, 8, 32):
            chosen = choose_frames(frames, 1.0, VideoSampling(frames_upbound=bound))
            assert len(chosen) == bound
            assert (chosen[0], chosen[-1]) == (0, frames - 1)
            for number, index in enumerate(chosen):
                exact = Fraction(number * (frames - 1), bound - 1)
                assert index == int(exact) or (exact.denominator == 1 and index == exact - 1)


def test_a_common_frame_rate_below_a_whole_number():
    assert choose_frames(90, 29.97, VideoSampling()) == [0, 30, 60]


def test_frames_are_rgb_images_of_the_video_s_size(make_clip):
    red, blue = (np.full((32, 80, 3), color, np.uint8) for color in ((200, 30, 30), (30, 30, 200)))
    video = read_video(make_clip([red] * 4 + [blue] * 4, fps=4, size=(80, 32)), VideoSampling())
    assert [(frame.mode, frame.size) for frame in video.frames] == [("RGB", (80, 32))] * 2
    for frame, color in zip(video.frames, ((200, 30, 30), (30, 30, 200))):
        assert np.abs(np.asarray(frame).astype(int) - color).max() < 12


def test_times_are_those_of_the_container(tmp_path):
    """Frames at uneven times, the first one late."""
    path = write_timed(tmp_path / "uneven.mkv", [500, 600, 1100, 3500])
    video = read_video(path, VideoSampling(frames_upbound=4, force_sample=True))
    assert video.times == pytest.approx([0, 0.1, 0.6, 3.0], abs=1e-3)
    assert video.duration == pytest.approx(3.0, abs=2e-3)


UNEVEN = [*range(0, 1000, 50), *range(2000, 11000, 1000)]  # twenty frames a second, then one, as a phone in the dark


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (VideoSampling(), [0, 19, *range(20, 29)]),  # the last of the twenty is still on screen after a second
        (VideoSampling(fps=2), [0, 10, 19, *range(20, 29)]),
        (VideoSampling(fps=0.25), [0, 22, 26]),
        (VideoSampling(fps=1000), list(range(29))),
        (VideoSampling(frames_upbound=6), [0, 20, 22, 24, 26, 28]),
        (VideoSampling(frames_upbound=5, force_sample=True), [0, 20, 23, 25, 28]),
        (VideoSampling(frames_upbound=29, force_sample=True), list(range(29))),
        (VideoSampling(frames_upbound=30, force_sample=True), [0, *range(28), 28]),
    ],
)
def test_a_second_of_a_variable_rate_is_a_second(tmp_path, sampling, expected):
    """By its average rate, 2.9 frames a second, the first second would be taken seven times."""
    path = write_timed(tmp_path / "phone.mkv", UNEVEN)
    video = read_video(path, sampling)
    assert video.times == pytest.approx([UNEVEN[index] / 1000 for index in expected], abs=2e-3)
    assert seen_indices(video) == expected
    assert probe_video(path, sampling) == VideoTimes(video.times, video.duration)


def test_a_part_of_a_variable_rate(tmp_path):
    path = write_timed(tmp_path / "phone.mkv", UNEVEN)
    assert seen_indices(read_video(path, VideoSampling(), 0.5, 3.2)) == [10, 19, 20]  # on screen at 0.5, 1.5 and 2.5
    assert seen_indices(read_video(path, VideoSampling(), 4.0)) == [22, 23, 24, 25, 26, 27, 28]
    with pytest.raises(DataError, match=r"none from second 8\.2 to 8\.8"):
        read_video(path, VideoSampling(), 8.2, 8.8)


@pytest.mark.parametrize("seed", range(20))
def test_the_frames_of_a_variable_rate_are_those_on_screen(seed):
    """Against the plain search, tick by tick."""
    rng = np.random.default_rng(seed)
    gaps = rng.integers(1, 40, rng.integers(1, 60)) * 0.05
    begins, end = 3 + np.append(0, np.cumsum(gaps[:-1])), 3 + gaps.sum()
    sampling = VideoSampling(fps=float(rng.choice([0.5, 1, 2, 7])), frames_upbound=0)
    expected, tick = [], 0
    while tick / sampling.fps < end - 3 - 1e-9:
        on_screen = max(index for index, begin in enumerate(begins) if begin - 3 <= tick / sampling.fps + 1e-9)
        expected += [on_screen] * (on_screen not in expected)
        tick += 1
    assert choose_shown(begins, end, sampling) == expected


@pytest.mark.parametrize("size", [(64, 48), (128, 96), (192, 108), (40, 72)])  # turned, 48 and 96 are narrow for decord
@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_video_is_upright(make_clip, size, degrees):
    """As a phone marks it that was held upright; each quarter of the picture has a color of its own."""
    stored = np.zeros((size[1], size[0], 3), np.uint8)
    stored[: size[1] // 2, : size[0] // 2], stored[size[1] // 2 :, size[0] // 2 :] = (220, 20, 20), (20, 20, 220)
    clip = make_clip([stored] * 8, fps=4, size=size)
    turn(clip, degrees)
    expected = np.rot90(stored, -degrees // 90).astype(int)
    video = read_video(clip, VideoSampling())
    assert (len(video.frames), len(probe_video(clip, VideoSampling()).times)) == (2, 2)
    for frame in video.frames:
        assert frame.size == expected.shape[1::-1]
        assert np.abs(np.asarray(frame) - expected).mean() < 8


def test_a_narrow_video(make_clip):
    stripes = np.zeros((64, 48, 3), np.uint8)
    stripes[:, ::16] = stripes[:, 1::16] = 250
    (frame,) = read_video(make_clip([stripes], size=(48, 64)), VideoSampling()).frames
    assert frame.size == (48, 64)
    assert np.abs(np.asarray(frame).astype(int) - stripes).mean() < 12


def test_the_time_instruction_tells_duration_number_and_times(make_clip):
    text = time_instruction(read_video(make_clip(20, fps=8), VideoSampling()))
    assert text == "This is a video of 2.50 seconds, seen as 3 frames at 0.00, 1.00, 2.00 seconds."


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fps": 0}, "video fps must be a positive number, found 0"),
        ({"fps": float("inf")}, "video fps must be a positive number, found inf"),
        ({"frames_upbound": -1}, r"video frames_upbound must be at least 0 \(no bound\), found -1"),
        ({"force_sample": True, "frames_upbound": 0}, "force_sample takes frames_upbound frames, but .* is 0"),
    ],
)
def test_settings_that_cannot_be_meant(settings, message):
    with pytest.raises(LlavaError, match=message):
        VideoSampling(**settings)


def audio_only(path):
    with av.open(path, "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def zero_frames(path):
    with av.open(path, "w", format="matroska") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()


def cut_in_half(path, make_clip, **options):
    whole = make_clip(name="whole.mp4", **options).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


@pytest.mark.parametrize("reader", [read_video, probe_video])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path, _: None, "bad.mp4 does not exist"),
        (lambda path, _: path.mkdir(), "bad.mp4 is a folder"),
        (lambda path, _: path.write_text("no pixels here"), "bad.mp4 is not a whole video"),
        (lambda path, _: path.write_bytes(b""), "bad.mp4 is not a whole video"),
        (lambda path, _: audio_only(path), "bad.mp4 is not a whole video .*cannot find video stream"),
        (lambda path, _: zero_frames(path), "bad.mp4 is not a whole video"),
        (cut_in_half, "bad.mp4 is not a whole video"),
        (lambda path, clip: cut_in_half(path, clip, movflags="+faststart"), "bad.mp4 is not a whole video"),
    ],
    ids=["missing", "folder", "text", "empty", "audio", "zero frames", "cut", "cut behind its index"],
)
def test_files_that_are_no_video_are_named_in_one_line(tmp_path, make_clip, reader, spoil, message):
    path = tmp_path / "bad.mp4"
    spoil(path, make_clip)
    with pytest.raises(DataError, match=message) as error:
        reader(path, VideoSampling())
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < len(str(path)) + 250


def test_damaged_frames_are_an_error(make_clip):
    noise = np.random.default_rng(0).integers(0, 256, (40, 48, 64, 3), dtype=np.uint8)
    clip = make_clip(list(noise), movflags="+faststart")
    content = bytearray(clip.read_bytes())
    middle = (content.find(b"mdat") + len(content)) // 2
    content[middle : middle + 20_000] = bytes(20_000)
    clip.write_bytes(content)
    with pytest.raises(DataError, match=r"clip.mp4 cannot be decoded: \S"):
        read_video(clip, VideoSampling(fps=8))


@pytest.mark.parametrize(("frames", "fps"), [(0, 30.0), (10, 0.0), (10, float("nan"))])
def test_a_video_without_frames_or_rate(frames, fps):
    with pytest.raises(DataError, match=f"found {frames} frames at {fps} per second"):
        choose_frames(frames, fps, VideoSampling())


def test_without_decord_the_extra_is_named(make_clip, monkeypatch):
    monkeypatch.setitem(sys.modules, "decord", None)
    with pytest.raises(LlavaError, match=r"videos need decord2: pip install 'llava-ov-manager\[video\]'"):
        read_video(make_clip(), VideoSampling())


class _Clips:
    def __init__(self, path):
        self.path = path

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return read_video(self.path, VideoSampling(fps=index + 1))


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_data_loader_workers_read_what_their_parent_reads(make_clip, start):
    clips = _Clips(make_clip())
    expected = [pickle.dumps(clips[index]) for index in range(len(clips))]
    loader = DataLoader(clips, batch_size=None, num_workers=2, multiprocessing_context=start)
    assert [pickle.dumps(video) for video in loader] == expected
