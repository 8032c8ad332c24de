"""Random mixed micro-batches, different on every rank and micro-step, train two processes like one, and none hangs.

"It ran" proves nothing here: where one rank has no image ZeRO-3 can hang, and where none has it reuses the gradients of
the step before. So every micro-batch's loss and every gradient are compared with one process on the same batches.
--mixed-steps and --data-seed choose how many micro-steps each strategy takes, and which.
"""

import itertools
import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from llava.fusion.configs.manager import ManagerConfig
from tests.clips import write_clip
from tests.train.recorder import record_evaluation, record_mixed
from tests.train.run_ranks import run_ranks

RECIPE = "scripts/train/recipes/mllm/stage2.yaml"
TIMEOUT = 240  # seconds; a run takes 5 to 15 on an idle machine, and a hang is noticed by the ranks after 60
RANKS, BATCH_SIZE, ACCUMULATION = 2, 2, 2
MICRO_BATCHES = RANKS * ACCUMULATION  # of all ranks in an optimizer step
STRATEGIES = {"ddp": None, "zero2": 2, "zero3": 3}
# Every pair of settings occurs: managers' query, gradient checkpointing, tower trained.
CONFIGURATIONS = {
    "static-checkpointing-trained": ("none", True, True),
    "static-plain-frozen": ("none", False, False),
    "adaptive-checkpointing-frozen": ("cross", True, False),
    "adaptive-plain-trained": ("cross", False, True),
}
KINDS = ("text", "one tile", "many tiles", "several images", "video", "image and video")
TEXT_STEPS, TEXT_MICRO_BATCHES = 0.2, 0.35  # shares of steps, and of the other steps' micro-batches, without any image
ONE_TILE, MANY_TILES = [(56, 56), (40, 50)], [(100, 70), (60, 130), (112, 112), (200, 90), (50, 170)]
QUESTIONS = ("What is in the picture?", "What is 01 and 2?", "0123456789 and a red car, what is it?")


@pytest.fixture(scope="module")
def optimizer_steps(request) -> int:
    """Of each configuration; a strategy's configurations together take as many micro-steps as were asked for."""
    return math.ceil(request.config.getoption("--mixed-steps") / (len(CONFIGURATIONS) * ACCUMULATION))


@pytest.fixture(scope="module")
def mixed_kinds(data_seed, optimizer_steps) -> dict[str, list[list[str]]]:
    """By configuration, the samples' kinds of every micro-batch, in the order in which the ranks take them."""
    return {name: _kinds(random.Random(f"{data_seed}/{name}"), optimizer_steps) for name in CONFIGURATIONS}


def _kinds(rng: random.Random, optimizer_steps: int) -> list[list[str]]:
    micro_batches = []
    for step in range(optimizer_steps):
        text_step = rng.random() < TEXT_STEPS
        for _ in range(MICRO_BATCHES):
            text = text_step or rng.random() < TEXT_MICRO_BATCHES
            if len(micro_batches) < RANKS:  # the ranks differ in what ZeRO-3 remembers the order of modules from
                text = len(micro_batches) == 1
            if step in (1, 2):  # for certain one step with images and then one without
                text = step == 2
            micro_batches.append(["text"] * BATCH_SIZE if text else rng.choices(KINDS, k=BATCH_SIZE))
    return micro_batches


@pytest.fixture(scope="module")
def mixed_data(mixed_kinds, data_seed, tmp_path_factory) -> Path:
    """A folder with a mixture for each configuration, its records in the order of the micro-batches, and all images."""
    folder = tmp_path_factory.mktemp("mixed")
    random_pixels = np.random.default_rng(data_seed)
    for width, height in ONE_TILE + MANY_TILES:
        pixels = random_pixels.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{width}x{height}.png")
    for seconds in (1, 3):
        write_clip(folder / f"{seconds}.mp4", frames=8 * seconds, fps=8)
    for name, micro_batches in mixed_kinds.items():
        rng = random.Random(f"{data_seed}/{name}")
        kinds = [kind for micro_batch in micro_batches for kind in micro_batch]
        records = [_record(rng, index, kind) for index, kind in enumerate(kinds)]
        (folder / f"{name}.json").write_text(json.dumps(records))
        entries = [{"json_path": f"{name}.json", "sampling_strategy": "all"}]
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"datasets": entries}))
    return folder


def _record(rng: random.Random, index: int, kind: str) -> dict:
    """A sample of one to three turns with answers of unequal length."""
    images, videos = [], []
    if kind == "several images":
        images = rng.choices(ONE_TILE + MANY_TILES, k=rng.randint(2, 3))
    elif kind in ("one tile", "many tiles", "image and video"):
        images = [rng.choice(ONE_TILE if kind == "one tile" else MANY_TILES)]
    if "video" in kind:
        videos = [f"{rng.choice((1, 3))}.mp4"]
    placeholders = " ".join(["<image>"] * len(images) + ["<video>"] * len(videos))
    turns = []
    for turn in range(rng.randint(1, 3)):
        question = rng.choice(QUESTIONS)
        turns.append(
            {"from": "human", "value": f"{placeholders}\n{question}" if placeholders and not turn else question}
        )
        turns.append({"from": "gpt", "value": "A red car." * rng.randint(1, 4)})
    record = {"id": f"{index}: {kind}", "conversations": turns}
    record |= {"image": [f"{width}x{height}.png" for width, height in images]} if images else {}
    return record | ({"video": videos} if videos else {})


@pytest.fixture(scope="module")
def run_keys(mixed_data, tiny_keys, make_model, make_processor, tmp_path_factory):
    """A function: configuration, strategy, output folder and whether samples are packed to the keys of the run."""
    starts = {}
    for query in ("none", "cross"):
        starts[query] = tmp_path_factory.mktemp("start")
        managers = ManagerConfig(interval=2, query=None if query == "none" else query)
        model = make_model(fusion=managers)
        for manager in model.model.fusion.managers:
            if hasattr(manager, "gate"):
                torch.nn.init.normal_(manager.gate)
        model.save_pretrained(starts[query])
        make_processor().save_pretrained(starts[query])

    def keys(configuration: str, strategy: str | None, out: Path, packing: bool = False) -> dict:
        query, checkpointing, tower_trained = CONFIGURATIONS[configuration]
        changes = {
            "model.start_from": str(starts[query]),
            "fusion.query": query,
            "components.vision_tower.trained": tower_trained,
            "data.mixture": f"{mixed_data}/{configuration}.yaml",
            "data.image_folder": str(mixed_data),
            "data.packing": packing,
            "optim.global_batch_size": MICRO_BATCHES * BATCH_SIZE,
            "optim.batch_size": BATCH_SIZE,
            "optim.warmup": 0,
            "optim.max_grad_norm": 1e9,
            "run.gradient_checkpointing": checkpointing,
            "run.deepspeed": f"scripts/train/deepspeed/{strategy}.json" if STRATEGIES.get(strategy) else None,
            "run.output_dir": f"{out}/checkpoint",
        }
        return tiny_keys("2", **changes)

    return keys


@pytest.fixture(scope="module")
def run_configuration(run_keys, tmp_path_factory):
    """A function: configuration, strategy (None for neither torchrun nor DeepSpeed) and ranks to losses and tower
    passes of all micro-batches, in the order of the data, and the gradients by step and parameter."""

    def run(configuration: str, strategy: str | None, ranks: int | None, packing: bool = False) -> dict:
        out = tmp_path_factory.mktemp("run")
        keys = run_keys(configuration, strategy, out, packing)
        run_ranks(record_mixed, RECIPE, "grid_manager", keys, out, processes=ranks, folder=out, timeout=TIMEOUT)
        facts = [json.loads((out / f"facts-{rank}.json").read_text()) for rank in range(ranks or 1)]
        return {
            "engine": facts[0]["engine"],
            "zero_stage": facts[0]["zero_stage"],
            "gradients": load_file(out / "gradients.safetensors"),
            **{key: in_turns(of[key] for of in facts) for key in ("losses", "tower_forwards")},
        }

    return run


@pytest.fixture(scope="module")
def one_process(run_configuration):
    """A function: a configuration to what one process without a strategy makes of it, once."""
    found = {}

    def run(configuration: str) -> dict:
        if configuration not in found:
            found[configuration] = run_configuration(configuration, None, None)
        return found[configuration]

    return run


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_two_processes_equal_one(run_configuration, one_process, mixed_kinds, data_seed, configuration, strategy):
    two = run_configuration(configuration, strategy, RANKS)
    assert two["engine"] == ("DistributedDataParallel" if strategy == "ddp" else "DeepSpeedEngine")
    assert two["zero_stage"] == STRATEGIES[strategy]
    compare(one_process(configuration), two, mixed_kinds[configuration], data_seed)
    tower_trained = CONFIGURATIONS[configuration][2]
    blank = strategy == "zero3" or tower_trained
    assert two["tower_forwards"] == expected_forwards(mixed_kinds[configuration], blank)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_packed_samples_on_two_processes(run_configuration, one_process, mixed_kinds, data_seed):
    """Each micro-batch as one row equals the padded rows of one process."""
    configuration = "adaptive-plain-trained"
    two = run_configuration(configuration, "zero3", RANKS, packing=True)
    assert two["zero_stage"] == 3
    compare(one_process(configuration), two, mixed_kinds[configuration], data_seed)
    assert two["tower_forwards"] == expected_forwards(mixed_kinds[configuration], blank=True)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_one_wrapped_process(run_configuration, one_process, mixed_kinds, data_seed, strategy):
    """Without other ranks to wait for; yet DDP waits for all gradients, and ZeRO-3 would reuse those of a step before.

    torchrun's one process is wrapped as two are, so that it runs what they run where a micro-batch has no image.
    """
    configuration = "static-checkpointing-trained"
    one, kinds = one_process(configuration), mixed_kinds[configuration]
    wrapped = run_configuration(configuration, strategy, 1)
    assert wrapped["engine"] == ("DistributedDataParallel" if strategy == "ddp" else "DeepSpeedEngine")
    assert wrapped["zero_stage"] == STRATEGIES[strategy]
    compare(one, wrapped, kinds, data_seed)
    assert wrapped["tower_forwards"] == expected_forwards(kinds, blank=True)
    assert one["tower_forwards"] == expected_forwards(kinds, blank=False)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_evaluation_while_ranks_see_different_samples(run_keys, mixed_kinds, tmp_path, strategy):
    """The loss of each sample is that of one process, whatever the other rank has meanwhile."""
    kinds = [kind for micro_batch in mixed_kinds["adaptive-plain-trained"] for kind in micro_batch]
    text = [index for index, kind in enumerate(kinds) if kind == "text"]
    others = [index for index, kind in enumerate(kinds) if kind != "text"]
    pairs = [(others, text), (text, others), (text, text), (others, others)] * 4
    samples = [of_rank.pop() for pair in pairs for of_rank in pair]
    losses = {}
    for ranks in (None, RANKS):
        out = tmp_path / f"{ranks}"
        out.mkdir()
        keys = run_keys("adaptive-plain-trained", strategy if ranks else None, out) | {"optim.max_steps": 1}
        arguments = (RECIPE, "grid_manager", keys, samples, out)
        run_ranks(record_evaluation, *arguments, processes=ranks, folder=out, timeout=TIMEOUT)
        facts = [json.loads((out / f"facts-{rank}.json").read_text()) for rank in range(ranks or 1)]
        losses[ranks] = in_turns(of["losses"] for of in facts)
    assert len(losses[None]) == len(samples) == 32
    assert losses[RANKS] == pytest.approx(losses[None], abs=1e-5)


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_what_is_mixed(mixed_kinds, optimizer_steps, configuration):
    """The batches have what the comparison is for: all kinds, and ranks and whole steps without any image."""
    kinds = mixed_kinds[configuration]
    assert len(kinds) == optimizer_steps * MICRO_BATCHES
    has_image = [any(kind != "text" for kind in micro_batch) for micro_batch in kinds]
    assert {kind for micro_batch in kinds for kind in micro_batch} == set(KINDS)
    ranks = set(zip(has_image[::RANKS], has_image[1::RANKS]))
    assert ranks == {(True, True), (True, False), (False, True), (False, False)}
    steps = [any(has_image[begin : begin + MICRO_BATCHES]) for begin in range(0, len(has_image), MICRO_BATCHES)]
    assert (True, False) in itertools.pairwise(steps), "no step without images behind one with images"


def in_turns(of_ranks) -> list:
    """What each rank has of its micro-batches, in the order of the data."""
    return [item for of_one_micro_step in zip(*of_ranks) for item in of_one_micro_step]


def expected_forwards(kinds: list[list[str]], blank: bool) -> list[int]:
    """One pass for all images of a micro-batch; where it has none, one if a `blank` crop is needed."""
    return [1 if any(kind != "text" for kind in micro_batch) else int(blank) for micro_batch in kinds]


def compare(one: dict, other: dict, kinds: list[list[str]], seed: int) -> None:
    """Fails at the first step that differs, with the seed, the micro-batch or all of the step, and the parameter."""
    assert len(one["losses"]) == len(other["losses"]) == len(kinds)
    assert set(one["gradients"]) == set(other["gradients"])
    for step in range(len(kinds) // MICRO_BATCHES):
        indices = range(step * MICRO_BATCHES, (step + 1) * MICRO_BATCHES)
        for index in indices:
            where = f"loss of seed {seed}, step {step}, micro-batch {index} {kinds[index]}"
            assert other["losses"][index] == pytest.approx(one["losses"][index], abs=1e-5), where
        excess = {
            name: ((other["gradients"][name] - gradient).abs() - 1e-4 * gradient.abs()).max().item()
            for name, gradient in one["gradients"].items()
            if name.startswith(f"{step}/")
        }
        wrong = [name for name, difference in excess.items() if not difference <= 2e-6]
        assert not wrong, (
            f"seed {seed}, step {step} of micro-batches {[kinds[index] for index in indices]}: {len(wrong)} of "
            f"{len(excess)} gradients differ, most of all {max(excess, key=excess.get)} by {max(excess.values()):.2e}"
        )
        # What no image has reached has no gradient: a stale one would be of some size.
        projector = one["gradients"][f"{step}/model.multi_modal_projector.linear_2.weight"]
        assert bool(projector.count_nonzero()) == any(kind != "text" for index in indices for kind in kinds[index])
