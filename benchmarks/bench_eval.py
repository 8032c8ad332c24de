"""Images per second of evaluation, one at a time and in batches: on digit pages, and with random weights at real size.

    python benchmarks/bench_eval.py                                   # on a GPU
    python benchmarks/bench_eval.py --checkpoint DIR                  # digit pages with the quickstart's model in DIR
    python benchmarks/bench_eval.py --device cpu --dtype float32 --layers 2  # a small machine
    python benchmarks/bench_eval.py --checkpoint DIR --engine vllm --images 0  # and a server, by its URL or started

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

from llava.bench.arms import ArmModel, Side
from llava.data.schema import Dialogue, Turn
from llava.demo.digit_pages import KINDS, ask, draw_numbers, draw_page
from llava.demo.pages import rng_for
from llava.engine.engine import Engine
from llava.engine.read_ahead import read_ahead
from llava.errors import LlavaError
from llava.eval.questions import prompt_cost
from llava.eval.server.client import Server, server_at
from llava.eval.server.messages import messages_of
from llava.eval.server.own import check_own, own_server
from llava.eval.server.settings import REQUESTS, VLLM, ServerSettings

ARM = "grid_manager"
INPUTS = ("384x384", "640x480", "1000x1000")
QUESTION = "<image>\nRead row 1."


@dataclass
class Result:
    """One side on one set of images. seconds: median of the runs. same: answers as those of batch size 1.

    engine: of a server, whose batch_size is as many requests as it is sent at a time; "" for the model in this process.
    """

    case: str
    batch_size: int
    ahead: bool
    images: int
    crops: int
    tokens: int
    same: int
    seconds: float
    engine: str = ""

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
    model.use(Side(ARM, ARM))
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


def ask_all(server: Server, dialogues: list[Dialogue], new_tokens: int) -> tuple[list[str], float]:
    """As answer_all, of a server, by the clock; the pictures are written as PNG meanwhile."""

    def ask(index: int) -> str:
        payload = {"model": server.settings.model, "messages": messages_of(dialogues[index])}
        payload |= {"max_tokens": new_tokens, "temperature": 0}
        return server.completion(payload | ({"repetition_penalty": 1.0} if server.settings.plain else {})).strip()

    started, answers = time.perf_counter(), [""] * len(dialogues)
    for index, text, error in server.answers(range(len(dialogues)), ask):
        if error is not None:
            raise error
        answers[index] = text
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
    sides: list[tuple] = [(1, False), (options.batch_size, False), (options.batch_size, True)]
    in_process = set(sides)
    server = Server(settings) if settings else None
    if settings:
        sides.append((settings.requests, False, settings.engine))
        ask_all(server, dialogues, options.new_tokens)
    answer_all(engine, dialogues[: options.batch_size], options.batch_size, True, options.new_tokens)  # set up once
    seconds, answers = {side: [] for side in sides}, {}
    for run in range(options.runs):
        for side in sides[:: 1 if run % 2 == 0 else -1]:
            if side in in_process:
                answers[side], took = answer_all(engine, dialogues, *side, options.new_tokens, settings is not None)
            else:
                answers[side], took = ask_all(server, dialogues, options.new_tokens)
            seconds[side].append(took)
    same = {side: sum(map(str.__eq__, answers[sides[0]], answers[side])) for side in sides}
    for side in in_process:
        if engine.model.dtype == torch.float32 and same[side] != len(dialogues):
            raise LlavaError(f"{case}: batches of {side[0]} answer {same[side]} of {len(dialogues)} as one at a time")
    pictures = engine.processor.image_processor
    crops = sum(pictures.layout(dialogue.images[0].size, False).num_crops for dialogue in dialogues)
    tokens = sum(map(engine.count_tokens, dialogues))
    return [
        Result(case, *side[:2], len(dialogues), crops, tokens, same[side], median(seconds[side]), *side[2:])
        for side in sides
    ]


def table(results: list[Result], options: argparse.Namespace) -> str:
    """Images per second, and how many times those of batch size 1."""
    first = results[0]
    lines = [
        f"{first.case}: {first.images} images, {first.crops} crops, {first.tokens:,} prompt tokens, "
        f"answers of up to {options.new_tokens} tokens",
        f"{'batch':<12}{'seconds':>9}{'images/s':>10}{'ratio':>7}{'same answers':>14}",
    ]
    for result in results:
        ratio = result.images_per_second / first.images_per_second
        side = f"{result.engine} {result.batch_size}, ahead" if result.ahead else f"{result.engine} {result.batch_size}"
        lines.append(
            f"{side.strip():<12}{result.seconds:>9.2f}{result.images_per_second:>10.3g}{ratio:>7.2f}"
            f"{f'{result.same} of {result.images}':>14}"
        )
    return "\n".join(lines)


def parse_arguments() -> argparse.Namespace:
    parser = model_parser(__doc__)
    parser.add_argument("--batch_size", type=int, default=16)
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
        found = bench_case(name, engine, dialogues, options, settings if checkpoint else None)
        print(table(found, options), end="\n\n", flush=True)
        results += found
    if options.json:
        rows = [asdict(result) | {"images_per_second": result.images_per_second} for result in results]
        with open(options.json, "w") as file:
            json.dump({"options": vars(options), "results": rows}, file, indent=1)


if __name__ == "__main__":
    main()
