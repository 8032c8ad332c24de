"""An analysis from start to pictures: what is done already is read, the rest is recorded, model after model.

OUT/progress/     what is recorded of each sample, see progress.py: the same command goes on
OUT/NAME.npz      of each model, the arrays of all samples, by the names in probes.py; `samples` names them
OUT/curves.json   the lines of every figure
OUT/figure_19.png, ...
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from llava.analysis.curves import Analysed, Curve, curves_of
from llava.analysis.data import Encoded, Source
from llava.analysis.figures import FIGURES
from llava.analysis.progress import Progress
from llava.checkpoint.folder import weights_id
from llava.engine.read_ahead import read_ahead
from llava.errors import LlavaError
from llava.files import whole_file
from llava.text_files import read_json

FORMAT = "llava analyze 2"
CURVES = "curves.json"
VERSION = 1  # to be raised when the same model gives other arrays, by a change of our code


@dataclass(frozen=True)
class Options:
    """What is asked. figures: names of FIGURES. attention: `renormalised` or `raw`, which the picture of 20 shows."""

    figures: Sequence[str]
    out: Path
    batch_size: int
    device: str
    dtype: str
    attention: str

    @property
    def probes(self) -> list[str]:
        """What must be recorded."""
        return sorted({FIGURES[name].probe for name in self.figures})


def model_names(folders: Sequence[Path]) -> list[str]:
    """The folders' names without what all paths begin and end with. Raises LlavaError for one folder twice."""
    paths = [folder.resolve().parts for folder in folders]
    if len(set(paths)) < len(paths):
        raise LlavaError("one model is named twice; name each once")
    if len(paths) == 1:
        return [paths[0][-1]]
    while len({path[-1] for path in paths}) == 1:
        paths = [path[:-1] for path in paths]
    while len({path[0] for path in paths}) == 1:
        paths = [path[1:] for path in paths]
    return ["-".join(path) for path in paths]


def analyse(folders: Sequence[Path], source: Source, options: Options) -> list[str]:
    """Records what is missing and writes everything. Returns lines that tell what was written and how to read it.

    Raises LlavaError for data that show nothing, for models that have none of the figures, and for a folder that shows
    other data.
    """
    named = dict(zip(model_names(folders), folders, strict=True))
    weights = {name: weights_id(folder) for name, folder in named.items()}
    _check_alike(options.out / CURVES, weights, source.identity)
    models = [_analysed(folder, name, weights[name], source, options) for name, folder in named.items()]
    of_models = [{name: curves_of(name, model) for name in options.figures} for model in models]
    figures = {name: [curve for of_model in of_models for curve in of_model[name]] for name in options.figures}
    lacking = [[FIGURES[name].lacking for name, curves in of_model.items() if not curves] for of_model in of_models]
    if not any(figures.values()):
        raise LlavaError(f"{models[0].folder}: {'; '.join(lacking[0])}")
    notes = [f"note: {model.name} {why}" for model, of_model in zip(models, lacking, strict=True) for why in of_model]
    for model in models:
        with whole_file(options.out / f"{model.name}.npz", "wb") as stream:
            np.savez_compressed(stream, **model.arrays)
    _write_curves(options.out / CURVES, models, figures, source)
    return [*notes, *_pictures(models, figures, options)]


def _check_alike(file: Path, weights: dict[str, str], data: dict[str, Any]) -> None:
    """Raises LlavaError where the curves of an earlier command are of other data, or of a model's other weights.

    Its pictures are beside them, and would stand beside ours.
    """
    if not file.exists():
        return
    before = read_json(file)
    try:
        if before["format"] != FORMAT:
            raise LlavaError(f"{file} has the format {before['format']!r}, ours is {FORMAT!r}; name another --out")
        shown, models = before["data"], {name: model["weights"] for name, model in before["models"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise LlavaError(f"{file}: damaged ({type(error).__name__}: {error}); name another --out") from error
    if shown != data:
        raise LlavaError(f"{file.parent} shows other data: {_differing(shown, data)}; name another --out")
    for name, before_id in models.items():
        if weights.get(name, before_id) != before_id:
            raise LlavaError(
                f"{file.parent} shows a model {name} with the weights {before_id}, this one has {weights[name]}; name "
                "another --out"
            )


def _differing(before: dict[str, Any], now: dict[str, Any]) -> str:
    """What differs between two identities of data, in words; of files which."""
    differences = []
    for key in {**before, **now}:
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            differences += [f"{name} has changed since" for name in old if name in new and old[name] != new[name]]
            old, new = ([name for name in one if name not in other] for one, other in ((old, new), (new, old)))
        if old != new:
            differences.append(f"{key} {json.dumps(old)}, this is {json.dumps(new)}")
    return "; ".join(differences)


def _analysed(folder: Path, name: str, weights: str, source: Source, options: Options) -> Analysed:
    settings = {"version": VERSION, "weights": weights, "data": source.identity, "probes": options.probes}
    settings |= {"device": options.device, "dtype": options.dtype}
    progress = Progress(options.out / "progress", name, settings)
    missing = [place for place, sample in enumerate(source.names) if sample not in progress.samples]
    if missing:
        with tqdm(total=len(source.names), initial=len(source.names) - len(missing), desc=name, unit="sample") as bar:
            _record(folder, source, missing, options, progress, bar)
    shown = {sample: progress.samples[sample] for sample in source.names}
    arrays = {sample: of_one for sample, of_one in shown.items() if of_one is not None}
    if not arrays:
        raise LlavaError(f"none of the {len(source.names):,} examples shows an image or a video")
    names = next(iter(arrays.values()))
    stacked = {key: np.stack([of_one[key] for of_one in arrays.values()]) for key in names}
    return Analysed(name, str(folder), weights, progress.facts or {}, {"samples": np.array(list(arrays)), **stacked})


def _record(folder: Path, source: Source, missing: list[int], options: Options, progress: Progress, bar: tqdm) -> None:
    """Runs the examples that are missing, a thread encoding one batch ahead."""
    encoder, recorder = source.open(folder, options.device, options.dtype, options.probes)
    size = options.batch_size
    batches = [missing[first : first + size] for first in range(0, len(missing), size)]
    for places, encoded in read_ahead(lambda places: (places, source.encode(encoder, places)), batches):
        recorded = _recorded(recorder, encoded, source.names)
        if recorded:
            progress.note_facts(recorder.facts())
        for place in places:
            progress.add(source.names[place], recorded.get(place))
        bar.update(len(places))


def _recorded(recorder: Any, encoded: Encoded, names: Sequence[str]) -> Mapping[int, dict[str, np.ndarray]]:
    """The arrays of each place that shows something."""
    if encoded.inputs is None:
        return {}
    device = recorder.model.device
    inputs = {key: one.to(device) if isinstance(one, torch.Tensor) else one for key, one in encoded.inputs.items()}
    try:
        return dict(zip(encoded.shown, recorder.record(inputs), strict=True))
    except torch.OutOfMemoryError:
        raise LlavaError(
            f"{names[encoded.shown[0]]}: the memory of {device} does not hold a batch of {len(encoded.shown)}; what is "
            "recorded stays: go on with a smaller --batch_size"
        ) from None


def _write_curves(file: Path, models: list[Analysed], figures: dict[str, list[Curve]], source: Source) -> None:
    content: dict[str, Any] = {
        "format": FORMAT,
        "data": source.identity,
        "models": {
            model.name: {"folder": model.folder, "weights": model.weights, "samples": len(model.arrays["samples"])}
            | model.facts
            for model in models
        },
        "figures": {
            name: {"title": figure.title, "x": figure.x, "y": figure.y, "reading": figure.reading}
            | {"curves": list(map(asdict, figures[name]))}
            for name, figure in FIGURES.items()
            if figures.get(name)
        },
    }
    with whole_file(file) as stream:
        json.dump(content, stream, indent=1)
        stream.write("\n")


def _pictures(models: list[Analysed], figures: dict[str, list[Curve]], options: Options) -> list[str]:
    drawn = {name: curves for name, curves in figures.items() if curves}
    written = [f"{options.out}/{CURVES} and {', '.join(f'{model.name}.npz' for model in models)}"]
    if find_spec("matplotlib") is None:
        return [*written, "no picture is drawn: matplotlib is not installed (pip install matplotlib)"]
    from llava.analysis.plots import draw  # imports matplotlib, which nothing else here needs

    for name, curves in drawn.items():
        figure, file = FIGURES[name], options.out / FIGURES[name].file(name)
        with whole_file(file, "wb") as stream:
            draw(name, curves, models, options.attention).savefig(stream, format="png", dpi=150)
        number = f"figure {name}: " if name.isdecimal() else ""
        written.append(f"{file}  {number}{figure.title}. {figure.reading}")
    return written
