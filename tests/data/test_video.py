"""Frames of clips whose grey level tells the index, and what is refused."""

import pickle
import sys
from fractions import Fraction

import av
import numpy as np
import pytest
from torch.utils.data import DataLoader

from llava.data.video import Video, VideoSampling, VideoTimes, choose_frames, probe_video, read_video, time_instruction
from llava.errors import DataError, LlavaError


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
    path = tmp_path / "uneven.mkv"
    times = [500, 600, 1100, 3500]
    with av.open(path, "w") as container:
        stream = container.add_stream("mpeg4", rate=1000)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for time in times:
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), time % 200, np.uint8), format="rgb24")
            frame.pts = time
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    video = read_video(path, VideoSampling(frames_upbound=4, force_sample=True))
    assert video.times == pytest.approx([0, 0.1, 0.6, 3.0], abs=1e-3)
    assert video.duration == pytest.approx(3.0, abs=2e-3)


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
    with pytest.raises(LlavaError, match=r"videos need decord: pip install 'llava-ov-manager\[video\]'"):
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
