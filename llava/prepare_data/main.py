"""`llava data`: download, prepare and check the data of a mixture, and preview one sample."""

import shlex
import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from llava.arguments import ArgumentParser
from llava.data.conversation import TEMPLATES, LabelRule
from llava.data.image_folder import ImageFolder
from llava.data.over_long import OnOverLong
from llava.data.schema import OutsidePaths
from llava.errors import LlavaError

if TYPE_CHECKING:
    from PIL.Image import Image

    from llava.data.video import VideoSampling


def main(argv: list[str]) -> int:
    """Returns 0, or 1 when `check` finds a fault; raises LlavaError for wrong arguments."""
    arguments = _parser().parse_args(argv)
    return COMMANDS[arguments.command](arguments)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="llava data", description="Training data: from the hub to what the model sees.")
    commands = parser.add_commands()
    check = commands.add_parser("check", help="find what is wrong with a mixture's records, images and videos")
    check.add_argument("mixture", help="mixture YAML, also one of pairs")
    check.add_argument("--out", metavar="DIR", help="report folder; a check that was killed goes on from there")
    check.add_argument("--decode", action="store_true", help="decode images and videos instead of reading headers")
    check.add_argument("--model", metavar="DIR", help="model folder, to find samples of more than --max_length tokens")
    check.add_argument("--workers", type=int, metavar="N", help="processes (default: one per core)")
    download = commands.add_parser("download", help="print or run the hub commands that fetch a mixture's data sets")
    download.add_argument("mixture", help="mixture YAML, whose entries tell the hub's repository and folder")
    download.add_argument("--to", default="playground/snapshots", metavar="DIR", help="(default playground/snapshots)")
    download.add_argument("--run", action="store_true", help="run the commands instead of printing them")
    prepare = commands.add_parser("prepare", help="turn a local snapshot of a hub data set into JSON and images")
    prepare.add_argument("source", help="folder of one repository: parquet files, or JSON(L) with images, videos")
    prepare.add_argument("--out", required=True, metavar="DIR", help="image folder; writes DIR/REPOSITORY/SET.json")
    prepare.add_argument("--set", action="append", metavar="NAME", help="only this set; can be given again")
    prepare.add_argument("--drop_missing", action="store_true", help="drop rows whose image is not in the snapshot")
    prepare.add_argument("--headers", action="store_true", help="read images' headers instead of decoding every image")
    prepare.add_argument("--workers", type=int, default=1, metavar="N", help="processes for parquet files (default 1)")
    preview = commands.add_parser("preview", help="show what a model sees of one sample: crops, tokens, supervision")
    preview.add_argument("--model", required=True, metavar="DIR", help="model folder; only its processor is read")
    preview.add_argument("--data", required=True, metavar="FILE", help="mixture YAML, or JSON or JSONL of samples")
    preview.add_argument("--index", required=True, type=int, metavar="N", help="which sample, counted from 0")
    preview.add_argument("--split", metavar="NAME", help="of a mixture of pairs (default: its first)")
    preview.add_argument("--out", metavar="PNG", help="also draw it, crops included, to this file")
    preview.add_argument("--label_rule", default="answers", choices=get_args(LabelRule), help="(default answers)")
    preview.add_argument("--time_instruction", action="store_true", help="tell when the frames were taken")
    for command in (check, preview):
        command.add_argument("--max_length", type=int, default=16384, metavar="N", help="(default 16384)")
        command.add_argument(
            "--on_over_long",
            default="error",
            choices=get_args(OnOverLong),
            help="what training makes of longer samples (default error)",
        )
        command.add_argument("--template", default="qwen_1_5", choices=TEMPLATES, help="(default qwen_1_5)")
        command.add_argument("--video_fps", type=float, default=1.0, help="frames per second of video (default 1)")
        command.add_argument("--frames_upbound", type=int, default=32, help="most frames; 0: all (default 32)")
        command.add_argument("--force_sample", action="store_true", help="always take frames_upbound frames")
        command.add_argument("--image_folder", default=".", help="folder that image and video paths are relative to")
        command.add_argument(
            "--outside_paths",
            default="refuse",
            choices=get_args(OutsidePaths),
            help="which may lead out of it: none, through links in it, or any (default refuse)",
        )
        command.add_argument("--seed", type=int, default=0, help="of `random` sampling strategies")
    return parser


def _check(arguments: Namespace) -> int:
    from llava.data.mixture import mixture_entries, repeated_files
    from llava.prepare_data.check import CheckOptions, check_mixture
    from llava.prepare_data.check_report import BadRowFile, BadRowPrinter, render_table
    from llava.prepare_data.pair_data import is_pair_data

    workers = _workers(arguments)
    if arguments.on_over_long != "error" and arguments.model is None:
        raise LlavaError(f"--on_over_long {arguments.on_over_long} needs --model, whose tokens are counted")
    options = CheckOptions(
        image_folder=arguments.image_folder,
        outside_paths=arguments.outside_paths,
        seed=arguments.seed,
        decode=arguments.decode,
        model=arguments.model,
        max_length=arguments.max_length,
        template=arguments.template,
        on_over_long=arguments.on_over_long,
        video_sampling=_video_sampling(arguments),
    )
    out = Path(arguments.out) if arguments.out else None
    bad_rows = BadRowFile(out) if out else BadRowPrinter(sys.stderr)
    repeated = []
    if is_pair_data(arguments.mixture, arguments.model):
        from llava.prepare_data.check_pairs import check_pairs  # imports pyarrow

        reports = check_pairs(arguments.mixture, options, bad_rows, workers)
    else:
        reports = check_mixture(arguments.mixture, options, bad_rows, out and out / "progress", workers)
        repeated = repeated_files(mixture_entries(arguments.mixture))
    print(render_table(reports))
    for warning in [report.warning for report in reports if report.warning] + repeated:
        print(f"warning: {warning}", file=sys.stderr)
    bad_rows.finish(reports)
    unread = sum(not report.complete for report in reports)
    if unread:
        print(f"{unread} of {len(reports)} data files cannot be read")
    print(f"{sum(report.bad for report in reports)} of {sum(report.taken for report in reports)} samples are unusable")
    return 1 if bad_rows.count else 0


def _download(arguments: Namespace) -> int:
    from llava.data.mixture import mixture_entries
    from llava.prepare_data.download import download_commands, prepare_commands, run_commands

    entries = mixture_entries(arguments.mixture)
    commands = download_commands(entries, arguments.to)
    if arguments.run:
        run_commands(commands)
    else:
        print("\n".join(map(shlex.join, commands)))
    print("\n# then", *prepare_commands(entries, arguments.to), sep="\n")
    return 0


def _prepare(arguments: Namespace) -> int:
    from llava.data.inspect_store import keep_index
    from llava.data.workers import Workers
    from llava.prepare_data.archives import left_archives
    from llava.prepare_data.prepare import prepare
    from llava.prepare_data.snapshot import find_sets

    for file in find_sets(Path(arguments.source))[1]:
        print(f"left: {file} holds no conversations")
    for line in left_archives(Path(arguments.source)):
        print(f"left: {line}")
    for prepared in prepare(
        arguments.source,
        arguments.out,
        arguments.set,
        arguments.drop_missing,
        _workers(arguments),
        decode=not arguments.headers,
    ):
        print(prepared, flush=True)
        with Workers() as workers:
            keep_index(prepared.file, arguments.out, workers)
    return 0


def _workers(arguments: Namespace) -> int | None:
    if arguments.workers is not None and arguments.workers < 1:
        raise LlavaError(f"--workers must be at least 1, found {arguments.workers}")
    return arguments.workers


def _video_sampling(arguments: Namespace) -> "VideoSampling":
    from llava.data.video import VideoSampling

    return VideoSampling(arguments.video_fps, arguments.frames_upbound, arguments.force_sample)


def _preview(arguments: Namespace) -> int:
    from llava.data.notes import notes_of
    from llava.prepare_data.pair_data import is_pair_data
    from llava.prepare_data.preview import (
        describe_length,
        load_processor,
        model_positions,
        preview_sample,
        read_sample,
        render_text,
    )

    if arguments.out and Path(arguments.out).suffix.lower() != ".png":
        raise LlavaError(f"--out {arguments.out}: the picture is a PNG; give a name that ends in .png")
    if is_pair_data(arguments.data, arguments.model):
        return _preview_pair(arguments)
    if arguments.split is not None:
        raise LlavaError(f"--split {arguments.split} is of a mixture of pairs; {arguments.data} has none")
    sample = read_sample(arguments.data, arguments.index, arguments.seed)
    processor = load_processor(arguments.model)
    options = {
        "image_folder": ImageFolder(Path(arguments.image_folder), arguments.outside_paths),
        "template": arguments.template,
        "label_rule": arguments.label_rule,
        "video_sampling": _video_sampling(arguments),
        "time_instruction": arguments.time_instruction,
    }
    preview = preview_sample(sample, processor, **options)
    lengths = {
        "max_length": arguments.max_length,
        "on_over_long": arguments.on_over_long,
        "positions": model_positions(arguments.model),
    }
    too_long = describe_length(sample, processor, **options, **lengths)
    print(render_text(preview, color=sys.stdout.isatty()))
    for message in (*(note.message for note in notes_of(sample, arguments.template)), too_long):
        if message is not None:
            print(f"note: {message}", file=sys.stderr)
    if arguments.out:
        from llava.prepare_data.preview_picture import draw_preview

        _save_picture(draw_preview(preview), arguments.out)
    return 0


def _save_picture(picture: "Image", out: str) -> None:
    try:
        picture.save(out)
    except OSError as error:
        raise LlavaError(f"--out {out} cannot be written: {error.strerror}") from None
    print(f"picture: {out}")


def _preview_pair(arguments: Namespace) -> int:
    from llava.prepare_data.preview_pairs import draw_pair, preview_pair

    folder = ImageFolder(Path(arguments.image_folder), arguments.outside_paths)
    preview = preview_pair(arguments.data, arguments.split, arguments.index, arguments.model, folder, arguments.seed)
    print(preview)
    if arguments.out:
        _save_picture(draw_pair(preview), arguments.out)
    return 0


COMMANDS = {"download": _download, "prepare": _prepare, "check": _check, "preview": _preview}
