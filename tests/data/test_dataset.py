import pytest
import torch

from llava.data.collator import Collator
from llava.data.dataset import SupervisedDataset
from llava.data.inspect import inspect_samples
from llava.data.schema import Sample, Turn, parse_sample
from llava.data.video import VideoSampling
from llava.errors import DataError, LlavaError
from llava.mllm.cost import Cost


@pytest.fixture
def samples(tmp_path, make_image):
    make_image(100, 70).save(tmp_path / "a.png")
    make_image(60, 60).save(tmp_path / "b.png")
    turns = (Turn("human", "<image>\nWhat?"), Turn("gpt", "A red car."))
    several = (Turn("human", "<image> <image>\nWhat?"), Turn("gpt", "A car."))
    text = (Turn("human", "What?"), Turn("gpt", "Nothing."))
    return [
        Sample("one", turns, ("a.png",), "d.json row 1"),
        Sample("two", several, ("a.png", "b.png"), "d.json row 2"),
        Sample("text", text, (), "d.json row 3"),
        Sample("gone", turns, ("gone.png",), "d.json row 4"),
    ]


def test_a_batch_of_one_several_and_no_images(samples, make_processor, make_model, tmp_path):
    dataset = SupervisedDataset(samples, make_processor(), image_folder=tmp_path)
    items = [dataset[index] for index in range(3)]
    batch = Collator(pad_token_id=7)(items)
    assert batch["batch_num_images"] == [1, 2, 0]
    assert batch["image_sizes"] == [[70, 100], [70, 100], [60, 60]]
    assert batch["pixel_values"].shape[0] == sum(len(item["pixel_values"]) for item in items[:2])
    for row, item in enumerate(items):
        length = len(item["input_ids"])
        assert batch["input_ids"][row, :length].tolist() == item["input_ids"]
        assert batch["labels"][row, :length].tolist() == item["labels"]
        assert (batch["input_ids"][row, length:] == 7).all()
        assert (batch["labels"][row, length:] == -100).all()
        assert batch["sequence_lengths"][row] == length
    assert "attention_mask" not in batch
    assert torch.isfinite(make_model()(**batch).loss)


def test_packed_samples_stand_one_behind_the_other(samples, make_processor, tmp_path):
    dataset = SupervisedDataset(samples, make_processor(), image_folder=tmp_path, label_rule="released")
    items = [dataset[0], dataset[2], dataset[None], dataset[1]]
    batch = Collator(pad_token_id=7, packing=True)(items)
    assert "attention_mask" not in batch
    row, begin = {key: batch[key].tolist() for key in ("input_ids", "labels", "position_ids")}, 0
    assert [len(rows) for rows in row.values()] == [1, 1, 1]
    for item in items:
        part = slice(begin, begin + len(item["input_ids"]))
        begin = part.stop
        assert row["input_ids"][0][part] == item["input_ids"]
        assert row["labels"][0][part] == [-100, *item["labels"][1:]]
        assert row["position_ids"][0][part] == list(range(len(item["input_ids"])))
    assert [len(rows[0]) for rows in row.values()] == [begin] * 3
    assert batch["batch_num_images"] == [1, 0, 0, 2]
    assert [origin.name.split("'")[1::2] for origin in batch["samples"]] == [["one"], ["text"], [], ["two"]]
    assert len(batch["pixel_values"]) == len(items[0]["pixel_values"]) + len(items[3]["pixel_values"])


def item(ids: list[int], labels: list[int], images=(), videos=()) -> dict:
    """An encoded sample; images and videos by where they stand."""
    made = {"input_ids": ids, "labels": labels, "num_images": len(images), "num_videos": len(videos)}
    if images:
        made |= {"pixel_values": torch.zeros(len(images), 3, 2, 2), "image_sizes": torch.tensor([[2, 2]] * len(images))}
    if videos:
        frames = [1] * len(videos)
        made |= {"pixel_values_videos": torch.zeros(len(videos), 3, 2, 2), "video_num_frames": torch.tensor(frames)}
    return made | {"image_spans": list(images), "video_spans": list(videos)}


def find(ids: torch.Tensor, sequences: list[tuple[int, int]], positions: torch.Tensor, lengths: list[int]) -> list:
    """A question of its own length for each image and video: the first tokens of its sequence."""
    firsts = positions[torch.tensor([0, *lengths[:-1]]).cumsum(0)].tolist()
    begins = [next(begin for begin, end in sequences if begin <= first < end) for first in firsts]
    return [torch.arange(begin, begin + number + 1) for number, begin in enumerate(begins)]


@pytest.mark.parametrize(
    ("packing", "lengths", "visual", "supervised", "questions"),
    [
        (False, [6, 2, 5], [1, 2, 4, 14, 12, 13], [2, 4, 6, 13, 15], [0, 0, 1, 12, 13, 14, 12, 13, 14, 15]),
        (True, [6, 2, 5], [1, 2, 4, 10, 8, 9], [2, 4, 6, 9, 11], [0, 0, 1, 8, 9, 10, 8, 9, 10, 11]),
    ],
)
def test_where_everything_stands(packing, lengths, visual, supervised, questions):
    """7 and 8 are images' and videos' placeholders; each sample's first label is predicted by nothing."""
    items = [
        item([5, 7, 7, 5, 7, 5], [1, -100, -100, 1, -100, 1], images=[(1, 2), (4, 1)]),
        item([5, 5], [1, 1]),
        item([8, 8, 7, 5, 5], [1, -100, 1, -100, 1], images=[(2, 1)], videos=[(0, 2)]),
    ]
    batch = Collator(0, packing, find)(items)
    assert batch["sequence_lengths"] == lengths
    assert batch["visual_positions"].dtype == batch["supervised_positions"].dtype == torch.int64
    assert batch["visual_positions"].tolist() == visual
    assert batch["supervised_positions"].tolist() == supervised
    assert batch["question_positions"].tolist() == questions
    assert batch["question_lengths"] == [1, 2, 3, 4]
    text = Collator(0, packing)(items[1:2])
    assert text["visual_positions"].shape == (0,)
    assert "question_positions" not in text


def test_a_bad_sample_is_an_error_with_its_name(samples, make_processor, tmp_path):
    dataset = SupervisedDataset(samples, make_processor(), image_folder=tmp_path)
    with pytest.raises(DataError, match=r"sample 'gone' \(d.json row 4\): image .*gone.png does not exist"):
        dataset[3]


def test_a_skipped_sample_says_so_and_trains_nothing(samples, make_processor, tmp_path, caplog):
    dataset = SupervisedDataset(samples, make_processor(), image_folder=tmp_path, on_bad_sample="skip")
    item = dataset[3]
    assert set(item["labels"]) == {-100}
    assert item["num_images"] == 0
    assert (item["sample"].skipped, item["sample"].shortened) == (True, False)
    assert [dataset[index]["sample"].skipped for index in (None, 2)] == [False, False]
    assert "sample 'gone'" in caplog.text
    with pytest.raises(LlavaError, match="unknown on_bad_sample 'replace'"):
        SupervisedDataset(samples, make_processor(), on_bad_sample="replace")


def test_sizes_hold_the_exact_number_of_crops_and_visual_tokens(samples, make_processor, tmp_path):
    dataset = SupervisedDataset(samples, make_processor(), image_folder=tmp_path)
    sizes = dataset.sizes(inspect_samples(samples, tmp_path))
    for index in range(3):
        item = dataset[index]
        text = sum(len(turn.text) for turn in samples[index].turns) // 4
        assert sizes.tokens[index] - text == item["input_ids"].count(dataset.processor.image_token_id)
        assert sizes.crops[index] == len(item.get("pixel_values", ()))
        assert sizes.supervised[index] == len(samples[index].turns[-1].text) // 4
    assert sizes.crops[3] == 0  # its image is gone
    assert dataset.is_multimodal.tolist() == [True, True, False, True]


def test_sizes_estimate_the_question_about_what_is_shown(samples, make_processor, tmp_path):
    """By its bytes without places, 4 a token: of two turns' questions the mean; an image asks itself where none is."""
    twice = (Turn("human", f"<image>\n{19 * '?'}"), Turn("gpt", "A."), Turn("human", 40 * "?"), Turn("gpt", "B."))
    caption = (Turn("human", "<image>\n"), Turn("gpt", 40 * "."))
    both = (Turn("human", f"<image><image>{9 * '?'}"), Turn("gpt", "A."))
    shown = [("a.png",), ("a.png",), ("a.png", "b.png"), ()]
    turns = [twice, caption, both, samples[2].turns]
    asking = [Sample("", some, images, "d.json row 1") for some, images in zip(turns, shown, strict=True)]
    inspection, processor = inspect_samples(asking, tmp_path), make_processor()
    sizes = SupervisedDataset(asking, processor).sizes(inspection)
    visual = sizes.visual_tokens.tolist()
    assert sizes.shown.tolist() == [1, 1, 2, 0]
    assert sizes.question.tolist() == [(20 + 40) // 2 // 4, 0, 9 // 4, len("What?") // 4]
    cost = Cost(crop=0, token=0, token_pair=0, supervised=0, question_token=1, question_pair=10**6)
    tokens, pairs = [7, visual[1], 2 * 2, 0], [7 * visual[0], visual[1] ** 2, 2 * visual[2], 0]
    assert sizes.costs(cost).tolist() == [one + 10**6 * pair for one, pair in zip(tokens, pairs, strict=True)]
    assert not SupervisedDataset(asking, processor, template="plain").sizes(inspection).question.any()


def test_over_long_samples_are_found_from_sizes_alone(samples, make_processor, tmp_path):
    inspection = inspect_samples(samples, tmp_path)
    processor = make_processor()
    whole = SupervisedDataset(samples, processor, image_folder=tmp_path)
    lengths = [len(whole[index]["input_ids"]) for index in range(3)]
    assert whole.over_long(inspection) == ([], [])
    dataset = SupervisedDataset(samples, processor, image_folder=tmp_path, max_length=max(lengths) - 1)
    (fault,), notes = dataset.over_long(inspection)
    assert notes == []
    longest = samples[lengths.index(max(lengths))]
    assert fault == f"{longest}: found {max(lengths)} tokens but max_length is {max(lengths) - 1}"


@pytest.fixture
def video_samples(make_clip, make_image, tmp_path):
    make_clip(24, fps=8)
    make_image(100, 70).save(tmp_path / "a.png")
    turns = [{"from": "human", "value": "<image>\nWhat happens?"}, {"from": "gpt", "value": "It grows brighter."}]
    mixed = [{"from": "human", "value": "<image> <video>\nWhat?"}, turns[1]]
    return [
        parse_sample({"id": "clip", "video": "clip.mp4", "conversations": turns}, "d.json row 1"),
        parse_sample({"id": "both", "video": "clip.mp4", "image": "a.png", "conversations": mixed}, "d.json row 2"),
        parse_sample({"id": "image", "image": "a.png", "conversations": turns}, "d.json row 3"),
        parse_sample({"id": "lost", "video": "gone.mp4", "conversations": turns}, "d.json row 4"),
        parse_sample({"id": "two", "video": ["clip.mp4"] * 2, "conversations": turns}, "d.json row 5"),
    ]


def test_a_batch_of_videos_and_images(video_samples, make_processor, make_model, tmp_path):
    processor = make_processor()
    dataset = SupervisedDataset(video_samples, processor, image_folder=tmp_path)
    batch = Collator(pad_token_id=7)([dataset[index] for index in range(3)])
    assert batch["batch_num_images"] == [0, 1, 1]
    assert batch["batch_num_videos"] == [1, 1, 0]
    assert batch["video_num_frames"] == [3, 3]  # one a second
    assert batch["pixel_values_videos"].shape == (6, 3, 56, 56)
    assert batch["pixel_values"].dtype == batch["pixel_values_videos"].dtype == torch.uint8
    levels = batch["pixel_values_videos"][:3].float().mean((1, 2, 3))
    assert levels.tolist() == pytest.approx([20, 60, 100], abs=3)  # frames 0, 8 and 16
    assert torch.isfinite(make_model()(**batch).loss)
    assert dataset.is_multimodal.tolist() == [True] * 5


def test_videos_are_inspected_before_training(video_samples, make_processor, tmp_path):
    processor = make_processor()
    inspection = inspect_samples(video_samples, tmp_path)
    assert [[len(video.times) for video in videos] for videos in inspection.videos] == [[3], [3], [], [], []]
    assert len(inspection.faults) == 2
    assert "sample 'lost' (d.json row 4): video" in inspection.faults[0]
    assert "found 1 <video> placeholders but 2 videos" in inspection.faults[1]
    timed = SupervisedDataset(video_samples, processor, image_folder=tmp_path, time_instruction=True)
    for dataset in (timed, SupervisedDataset(video_samples, processor, image_folder=tmp_path)):
        lengths = [len(dataset[index]["input_ids"]) for index in range(3)]
        dataset.encoding["max_length"] = min(lengths) - 1
        expected = [f"found {length} tokens but max_length is {min(lengths) - 1}" for length in lengths]
        assert [fault.partition(": ")[2] for fault in dataset.over_long(inspection)[0]] == expected
    sizes = dataset.sizes(inspection)
    assert sizes.tokens[0] == 3 * 4 + 1 + (len("<video>\nWhat happens?It grows brighter.")) // 4
    assert sizes.crops[0] == 3


def test_the_time_instruction_stands_behind_the_video_and_leaves_the_sample_alone(
    video_samples, make_processor, tmp_path
):
    processor = make_processor()
    sampling = VideoSampling(frames_upbound=2)
    settings = {"image_folder": tmp_path, "video_sampling": sampling, "time_instruction": True}
    dataset = SupervisedDataset(video_samples, processor, **settings)
    text = processor.tokenizer.decode(dataset[0]["input_ids"])
    times = "This is a video of 3.00 seconds, seen as 2 frames at 0.00, 2.88 seconds."
    assert f"user\n{'<video>' * 9}\n{times}\nWhat happens?" in text
    assert video_samples[0].turns[0].text == "<video>\nWhat happens?"
