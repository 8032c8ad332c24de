"""`llava data check`: what is wrong with a mixture, before training finds out. `llava data preview`: one sample."""

import argparse
import sys
from pathlib import Path

from llava.data.conversation import LABEL_RULES, TEMPLATES
from llava.errors import LlavaError


def main(argv: list[str]) -> int:
    """Returns 0, or 1 when `check` finds a fault; raises LlavaError for wrong arguments."""
    arguments = _parser().parse_args(argv)
    return _check(arguments) if arguments.command == "check" else _preview(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="llava data")
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="read a mixture's records and image headers")
    check.add_argument("mixture", help="mixture YAML")
    preview = commands.add_parser("preview", help="show what a model sees of one sample: crops, tokens, supervision")
    preview.add_argument("--model", required=True, metavar="DIR", help="model folder; only its processor is read")
    preview.add_argument("--data", required=True, metavar="FILE", help="mixture YAML, or JSON or JSONL of samples")
    preview.add_argument("--index", required=True, type=int, metavar="N", help="which sample, counted from 0")
    preview.add_argument("--out", metavar="PNG", help="also draw it, crops included, to this file")
    preview.add_argument("--template", default="qwen_1_5", choices=TEMPLATES, help="(default qwen_1_5)")
    preview.add_argument("--label_rule", default="answers", choices=LABEL_RULES, help="(default answers)")
    preview.add_argument("--video_fps", type=float, default=1.0, help="frames taken per second of video (default 1)")
    preview.add_argument("--frames_upbound", type=int, default=32, help="most frames of a video; 0: all (default 32)")
    preview.add_argument("--force_sample", action="store_true", help="always take frames_upbound frames")
    preview.add_argument("--time_instruction", action="store_true", help="tell when the frames were taken")
    for command in (check, preview):
        command.add_argument("--image_folder", default=".", help="folder that image and video paths are relative to")
        command.add_argument("--seed", type=int, default=0, help="of `random` sampling strategies")
    return parser


def _check(arguments: argparse.Namespace) -> int:
    from llava.data.check import inspect_samples
    from llava.data.mixture import load_mixture

    mixture = load_mixture(arguments.mixture, arguments.seed)
    print(mixture)
    faults = inspect_samples(mixture.samples, arguments.image_folder).faults
    for fault in faults:
        print(f"fault: {fault}", file=sys.stderr)
    print(f"{len(faults)} of {len(mixture.samples)} samples are unusable")
    return 1 if faults else 0


def _preview(arguments: argparse.Namespace) -> int:
    from llava.data.preview import load_processor, preview_sample, read_sample, render_text
    from llava.data.video import VideoSampling

    if arguments.out and Path(arguments.out).suffix.lower() != ".png":
        raise LlavaError(f"--out {arguments.out}: the picture is a PNG; give a name that ends in .png")
    sample = read_sample(arguments.data, arguments.index, arguments.seed)
    sampling = VideoSampling(arguments.video_fps, arguments.frames_upbound, arguments.force_sample)
    preview = preview_sample(
        sample,
        load_processor(arguments.model),
        image_folder=arguments.image_folder,
        template=arguments.template,
        label_rule=arguments.label_rule,
        video_sampling=sampling,
        time_instruction=arguments.time_instruction,
    )
    print(render_text(preview, color=sys.stdout.isatty()))
    if arguments.out:
        from llava.data.preview_picture import draw_preview

        try:
            draw_preview(preview).save(arguments.out)
        except OSError as error:
            raise LlavaError(f"--out {arguments.out} cannot be written: {error.strerror}") from None
        print(f"picture: {arguments.out}")
    return 0
