"""Images per second of evaluation, one at a time and in batches: on digit pages, and with random weights at real size.

    python benchmarks/bench_eval.py                                   # on a GPU
    python benchmarks/bench_eval.py --checkpoint DIR                  # digit pages with the quickstart's model in DIR
    python benchmarks/bench_eval.py --device cpu --dtype float32 --layers 2  # a small machine
    python benchmarks/bench_eval.py --checkpoint DIR --engine vllm --images 0  # and a server, by its URL or started
    python benchmarks/bench_eval.py --pages 0 --inputs 640x480 --batch_size 8 16    # several sizes in one run

The real size is SigLIP so400m and Qwen2-0.5B, arm grid_manager, with noise for images. As `llava eval` does it, batches
hold questions of similar cost, the most costly first. `ahead` is what it does: threads cut a batch's images into uint8
crops while the batch before is answered. The other sides cut and normalise them in one thread, in turn with the model.
All sides take turns, so that what else the machine does hits all; printed are medians. Random weights never end an
answer, so that all answers are equally long; in float32 all sides must answer the same. Decoding files is not part of
it, tiling is. On a CPU seconds are processor time, all threads together, which reading ahead does not save. With
--engine a server is asked the digit pages, too, as `llava eval --engine` asks it, so many requests at a time, which
takes its turn; seconds are then the clock's on all sides, and the server's answers are counted, not checked.
"""

import argparse
import json
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import torch
from bench_sides import model_parser
from PIL import Image
from transformers import BatchFeature

from llava.bench.arms import ArmModel
from llava.bench.arms import Side as ArmSide
from llava.data.schema import Dialogue, Turn
from llava.demo.digit_pages import KINDS, ask, draw_numbers, draw_page
from llava.demo.pages import rng_for
from llava.engine.engine import Engine
from llava.engine.read_ahead import read_ahead
from llava.errors import LlavaError
from llava.eval.messages import Settings
from llava.eval.questions import Question, prompt_cost
from llava.eval.server.ask import ask_all
from llava.eval.server.client import Server, server_at
from llava.eval.server.own import check_own, own_server
from llava.eval.server.settings import REQUESTS, VLLM, ServerSettings
from llava.text_table import text_table

ARM = "grid_manager"
INPUTS = ("384x384", "640x480", "1000x1000")
QUESTION = "<image>\nRead row 1."


@dataclass(frozen=True)
class Side:
    """Who answers the images, and how many at a time.

    engine: of a server, whose batch_size is as many requests as it is sent at a time; "" for the model in this process.
    """

    batch_size: int
    ahead: bool = False
    engine: str = ""

    @property
    def name(self) -> str:
        return f"{self.engine} {self.batch_size}{', ahead' if self.ahead else ''}".strip()


@dataclass(frozen=True)
class Result:
    """One side on one set of images. seconds: median of the runs. same: answers as those of batch size 1."""

    case: str
    side: Side
    images: int
    crops: int
    tokens: int
    same: int
    seconds: float

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds


def digit_pages(number: int) -> list[Dialogue]:
    """The first test pages, with a question each."""
    dialogues = []
    for index in range(number):
        rng = rng_for(0, "test", index)
        numbers = draw_numbers(rng)
        page = draw_page(rng, numbers, test=True).convert("RGB")
        question = ask(rng, numbers, KINDS[index % len(KINDS)])
        dialogues.append(Dialogue([Turn("human", f"<image>\n{question.text}")], [page]))
    return dialogues


def noise_images(number: int, inputs: list[str]) -> list[Dialogue]:
    """Images of the sizes in turn, all with the same question."""
    rng, dialogues = np.random.default_rng(0), []
    for index in range(number):
        width, height = map(int, inputs[index % len(inputs)].split("x"))
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        dialogues.append(Dialogue([Turn("human", QUESTION)], [image]))
    return dialogues


def random_engine(options: argparse.Namespace, tiny: bool) -> Engine:
    """Random weights with the demo's tokenizer; its answers never end by themselves."""
    model = ArmModel(
        options.device,
        options.dtype,
        vision_layers=options.vision_layers or options.layers,
        text_layers=options.text_layers or options.layers,
        tiny=tiny,
    )
    model.use(ArmSide(ARM, ARM))
    return model.engine(ARM)


def answer_all(
    engine: Engine, dialogues: list[Dialogue], batch_size: int, ahead: bool, new_tokens: int, by_clock: bool = False
) -> tuple[list[str], float]:
    """All answers, in the order of the dialogues, and the seconds that they took.

    On a CPU they are seconds of processor time, all threads together, so that other processes' work does not count,
    unless they are to be the clock's.
    """
    encode = engine.prepare if ahead else engine.processor.encode_prompts

    def prepared(batch: list[int]) -> tuple[list[int], BatchFeature]:
        return batch, encode([dialogues[index] for index in batch])

    on_gpu = engine.device.type == "cuda"
    clock = time.perf_counter if on_gpu or by_clock else time.process_time
    started, answers = clock(), [""] * len(dialogues)
    costs = [prompt_cost(engine, dialogue) for dialogue in dialogues]
    ranked = sorted(range(len(dialogues)), key=costs.__getitem__, reverse=True)
    batches = [ranked[first : first + batch_size] for first in range(0, len(ranked), batch_size)]
    for batch, inputs in read_ahead(prepared, batches) if ahead else map(prepared, batches):
        texts = engine.generate([dialogues[index] for index in batch], inputs=inputs, max_new_tokens=new_tokens)
        for index, text in zip(batch, texts):
            answers[index] = text
    if on_gpu:
        torch.cuda.synchronize(engine.device)
    return answers, clock() - started


def ask_server(server: Server, dialogues: list[Dialogue], new_tokens: int) -> tuple[list[str], float]:
    """As answer_all, of a server, by the clock; the pictures are written as PNG meanwhile."""
    greedy = Settings(max_new_tokens=new_tokens, temperature=0.0, top_p=None, num_beams=1, stop=())
    started, answers = time.perf_counter(), [""] * len(dialogues)
    questions = [
        Question(index, f"image {index}", str(index), index, dialogue) for index, dialogue in enumerate(dialogues)
    ]
    for question, text, error in ask_all(server, questions, greedy):
        if text is None:
            raise LlavaError(f"{question.name}: {error}")
        answers[question.index] = text
    return answers, time.perf_counter() - started


def bench_case(
    case: str,
    engine: Engine,
    dialogues: list[Dialogue],
    options: argparse.Namespace,
    settings: ServerSettings | None = None,
) -> list[Result]:
    """One at a time, in batches, in batches that are read ahead, and by a server, in turns.

    Raises LlavaError when those in this process answer differently in float32.
    """
    in_process = [Side(1), *(Side(size, ahead) for size in options.batch_size for ahead in (False, True))]
    sides = list(in_process)
    if settings:
        sides.append(Side(settings.requests, engine=settings.engine))
        server = Server(settings)
        ask_server(server, dialogues, options.new_tokens)
    for size in options.batch_size:  # set up once
        answer_all(engine, dialogues[:size], size, True, options.new_tokens)
    seconds, answers = {side: [] for side in sides}, {}
    for run in range(options.runs):
        for side in sides[:: 1 if run % 2 == 0 else -1]:
            if side.engine:
                answers[side], took = ask_server(server, dialogues, options.new_tokens)
            else:
                answers[side], took = answer_all(
                    engine, dialogues, side.batch_size, side.ahead, options.new_tokens, settings is not None
                )
            seconds[side].append(took)
    same = {side: sum(map(str.__eq__, answers[sides[0]], answers[side])) for side in sides}
    for side in in_process:
        if engine.model.dtype == torch.float32 and same[side] != len(dialogues):
            raise LlavaError(
                f"{case}: batches of {side.batch_size} answer {same[side]} of {len(dialogues)} as one at a time"
            )
    pictures = engine.processor.image_processor
    crops = sum(pictures.layout(dialogue.images[0].size, False).num_crops for dialogue in dialogues)
    tokens = sum(map(engine.count_tokens, dialogues))
    return [Result(case, side, len(dialogues), crops, tokens, same[side], median(seconds[side])) for side in sides]


def as_row(result: Result) -> dict:
    """For --json: the side's fields beside the others."""
    row = asdict(result)
    side = row.pop("side")
    return row | side | {"images_per_second": result.images_per_second}


def table(results: list[Result], options: argparse.Namespace) -> str:
    """Images per second, and how many times those of batch size 1."""
    first = results[0]
    head = (
        f"{first.case}: {first.images} images, {first.crops} crops, {first.tokens:,} prompt tokens, "
        f"answers of up to {options.new_tokens} tokens"
    )
    rows = [("batch", "seconds", "images/s", "ratio", "same answers")]
    for result in results:
        rate, ratio = result.images_per_second, result.images_per_second / first.images_per_second
        same = f"{result.same} of {result.images}"
        rows.append((result.side.name, f"{result.seconds:.2f}", f"{rate:.3g}", f"{ratio:.2f}", same))
    return f"{head}\n{text_table(rows, right=(False, True))}"


def parse_arguments() -> argparse.Namespace:
    parser = model_parser(__doc__)
    parser.add_argument("--batch_size", type=int, nargs="+", default=[16], metavar="N", help="default 16; also several")
    parser.add_argument("--new_tokens", type=int, default=16, help="the longest answer (default 16)")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--checkpoint", metavar="DIR", help="model for the digit pages; default: tiny, random weights")
    parser.add_argument("--pages", type=int, default=64, help="digit pages (default 64), 0 to leave them out")
    parser.add_argument("--images", type=int, default=48, help="images at real size (default 48), 0 to leave them out")
    parser.add_argument("--inputs", nargs="+", default=INPUTS, metavar="WIDTHxHEIGHT", help="their sizes, in turn")
    parser.add_argument("--tiny", action="store_true", help="tiny widths for the real size, to try this script out")
    parser.add_argument("--engine", metavar="NAME", help="vllm, or the base URL of a server that has the checkpoint")
    parser.add_argument("--requests", type=int, default=REQUESTS, help=f"to it at a time (default {REQUESTS})")
    parser.add_argument("--json", help="also write the numbers to this file")
    return parser.parse_args()


def served(options: argparse.Namespace, stack: ExitStack) -> ServerSettings | None:
    """The server that --engine says; one that is started ends with the stack."""
    if options.engine is None:
        return None
    if options.checkpoint is None:
        raise LlavaError("--engine needs --checkpoint, of which a server can have the weights")
    if options.engine != VLLM:
        return server_at(options.engine, options.checkpoint, options.requests)
    check_own(Path(options.checkpoint))
    out = Path(stack.enter_context(TemporaryDirectory(prefix="bench_eval_")))
    own = argparse.Namespace(
        model=options.checkpoint, out=out, dtype=options.dtype, requests=options.requests, options=[]
    )
    return stack.enter_context(own_server(own))


def main() -> None:
    options = parse_arguments()
    with ExitStack() as stack:
        bench(options, served(options, stack))


def bench(options: argparse.Namespace, settings: ServerSettings | None) -> None:
    """Every case on every side. settings: of a server that has the checkpoint."""
    cases = []
    if options.pages:
        name = f"digit pages, {options.checkpoint or 'tiny random weights'}"
        cases.append((name, options.checkpoint, True, digit_pages(options.pages)))
    if options.images:
        name = f"noise of {', '.join(options.inputs)}, random weights"
        cases.append((name, None, options.tiny, noise_images(options.images, options.inputs)))
    results = []
    for name, checkpoint, tiny, dialogues in cases:
        if checkpoint:
            engine = Engine.from_pretrained(checkpoint, device=options.device, dtype=options.dtype)
        else:
            engine = random_engine(options, tiny)
        config = engine.model.config
        print(
            f"{engine.describe()}, {config.vision_config.num_hidden_layers} vision layers of width "
            f"{config.vision_config.hidden_size}, {config.text_config.num_hidden_layers} text layers of width "
            f"{config.text_config.hidden_size}, medians of {options.runs} runs"
        )
        case_results = bench_case(name, engine, dialogues, options, settings if checkpoint else None)
        print(table(case_results, options), end="\n\n", flush=True)
        results += case_results
    if options.json:
        rows = [as_row(result) for result in results]
        with open(options.json, "w") as file:
            json.dump({"options": vars(options), "results": rows}, file, indent=1)


if __name__ == "__main__":
    main()
