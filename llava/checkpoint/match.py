"""Which parameter of a source becomes which parameter of the model, and what is left over on either side."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from llava.checkpoint.shards import TensorInfo, read_tensors, tensor_infos
from llava.errors import LlavaError
from llava.mllm.parts import EMBEDDINGS, HEAD, PREFIXES, VISION_TOWER
from llava.text_table import text_table

LISTED = 10  # names of one kind that the table shows; the error line shows the first
LAYER = re.compile(rf"{re.escape(VISION_TOWER)}encoder\.layers?\.(\d+)\..+")
TIED, UNUSED_LAYER = "tied to the embeddings", "vision layer above the used ones"


@dataclass(frozen=True)
class Rules:
    """How a source calls things, as data; the first pattern that matches a whole name decides.

    Attributes:
        renames: (pattern, replacement).
        ignored: (pattern, reason), of names that have no place in the model and may be there.
    """

    renames: tuple[tuple[str, str], ...]
    ignored: tuple[tuple[str, str], ...] = ()

    def reason_to_ignore(self, name: str) -> str | None:
        """Why a name of the source has no place in the model; None for one that is to have one."""
        return next((reason for pattern, reason in self.ignored if re.fullmatch(pattern, name)), None)

    def rename(self, name: str) -> str | None:
        """Our name of the source's parameter; None if there is none."""
        for pattern, replacement in self.renames:
            if re.fullmatch(pattern, name):
                return re.sub(pattern, replacement, name)
        return None


def whole(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """A tensor as its one piece, for sources whose tensors are one of ours each."""
    return {name: tensor}


def unchanged(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself, for sources whose shapes are ours."""
    return tensor


@dataclass(frozen=True)
class Part:
    """Weights of one folder or file and how to read them.

    Attributes:
        path: The folder or file.
        rules: How it calls things.
        infos: {its name: shape and dtype}, of pieces.
        convert: (its name, tensor) to the tensor in our shape.
        apart: (its name, tensor) to {name of a piece: tensor}, of what is several tensors of ours; rules, infos and
            convert know pieces alone.
    """

    path: Path
    rules: Rules
    infos: dict[str, TensorInfo]
    convert: Callable[[str, torch.Tensor], torch.Tensor] = unchanged
    apart: Callable[[str, torch.Tensor], dict[str, torch.Tensor]] = whole

    @classmethod
    def open(cls, path: Path, rules: Rules, convert: Callable = unchanged, apart: Callable = whole) -> "Part":
        """Reads the headers; raises LlavaError for weights that are not whole."""
        infos = {
            piece: TensorInfo(tuple(tensor.shape), tensor.dtype)
            for name, info in tensor_infos(path).items()
            for piece, tensor in apart(name, torch.empty(info.shape, dtype=info.dtype, device="meta")).items()
        }
        return cls(path, rules, infos, convert, apart)

    def read(self, names: Mapping[str, str]) -> Iterator[tuple[str, torch.Tensor]]:
        """(our name, tensor) of those in names, {its name: our name}, one at a time in the order of the files."""
        for whole_name, whole_tensor in read_tensors(self.path):
            for name, tensor in self.apart(whole_name, whole_tensor).items():
                if name in names:
                    yield names[name], self.convert(name, tensor)

    def converted_shape(self, name: str) -> tuple[int, ...]:
        """The shape of one of its tensors once it is ours; no data is read."""
        return tuple(self.convert(name, torch.empty(self.infos[name].shape, device="meta")).shape)

    def num_vision_layers(self) -> int:
        """How many layers of the tower the weights hold, counted from the first."""
        names = [self.rules.rename(name) for name in self.infos]
        return 1 + max((int(layer[1]) for name in names if name and (layer := LAYER.fullmatch(name))), default=-1)


@dataclass
class KeyMatch:
    """What became of the names on both sides.

    Attributes:
        mapped: {our name: (part, its name)}.
        ignored: {reason: the source's names}.
        new: Ours that start afresh.
        missing: Ours that the source lacks and must have.
        unexpected: The source's that have no place here, or a taken one.
        mismatched: The source's of another shape, with both.
    """

    mapped: dict[str, tuple[Part, str]] = field(default_factory=dict)
    ignored: dict[str, list[str]] = field(default_factory=dict)
    new: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)

    @property
    def faults(self) -> dict[str, list[str]]:
        """What does not match, by kind; empty where all does."""
        faults = {"missing": self.missing, "unexpected": self.unexpected, "of another shape": self.mismatched}
        return {kind: names for kind, names in faults.items() if names}

    def check(self, source: str) -> None:
        """Raises LlavaError, one line, unless every parameter is accounted for on both sides."""
        if self.faults:
            named = (
                f"{len(names)} {kind} ({names[0]}, ...)" if len(names) > 1 else f"1 {kind} ({names[0]})"
                for kind, names in self.faults.items()
            )
            raise LlavaError(f"{source}: its keys do not fit: {'; '.join(named)}")

    def dtype(self, name: str) -> torch.dtype:
        """In which the source has one of our parameters."""
        part, name_there = self.mapped[name]
        return part.infos[name_there].dtype

    def counts(self) -> dict:
        """Numbers of keys, for the record."""
        ignored = {reason: len(names) for reason, names in self.ignored.items()}
        return {"mapped": len(self.mapped), "new": len(self.new), "ignored": ignored}

    def table(self, components: Mapping[str, tuple[str, ...]] = PREFIXES) -> str:
        """The keys per component of the model, then what was ignored and what does not fit, by name.

        components: beginnings of their names.
        """
        rows = [("component", "mapped", "new", "missing", "")]
        for component, prefixes in components.items():
            counts = [
                sum(name.startswith(prefixes) for name in names) for names in (self.mapped, self.new, self.missing)
            ]
            if any(counts):
                mapped, new, missing = map(str, counts)
                rows.append((component, mapped, new, missing, ""))
        rows.append(("unexpected", str(len(self.unexpected)), "", "", ""))
        rows.append(("another shape", str(len(self.mismatched)), "", "", ""))
        rows += [("ignored", str(len(names)), "", "", reason) for reason, names in self.ignored.items()]
        lines = [text_table(rows, right=(False, True, True, True, False))]
        for kind, names in self.faults.items():
            lines += [f"{kind}: {name}" for name in names[:LISTED]]
            if len(names) > LISTED:
                lines.append(f"{kind}: and {len(names) - LISTED} more")
        return "\n".join(lines)


def match_keys(parts: Sequence[Part], expected: Mapping[str, torch.Size], may_be_new: tuple[str, ...]) -> KeyMatch:
    """Matches the parts' parameters with the model's.

    Args:
        parts: Where the weights come from; of two that hold the same parameter the second's is unexpected.
        expected: {our name: shape}, without lm_head.weight where it is tied to the embeddings.
        may_be_new: Beginnings of names of our parameters that the parts need not have.

    Returns:
        What became of every name on both sides, faults among them, see KeyMatch.check.

    Raises:
        LlavaError: A weight is quantised.
    """
    match = KeyMatch()
    used_layers = len({layer[1] for name in expected if (layer := LAYER.fullmatch(name))})
    for part in parts:
        for name, info in part.infos.items():
            reason = part.rules.reason_to_ignore(name)
            ours = part.rules.rename(name)
            layer = LAYER.fullmatch(ours or "")
            if reason is None and layer and int(layer[1]) >= used_layers:
                reason = UNUSED_LAYER
            if reason is None and ours == HEAD and HEAD not in expected:
                reason = TIED
            if reason is not None:
                match.ignored.setdefault(reason, []).append(name)
            elif ours is None or ours not in expected or ours in match.mapped:
                match.unexpected.append(name)
            elif not info.dtype.is_floating_point or info.dtype.itemsize < 2:
                raise LlavaError(f"{part.path}: {name} is {info.dtype}; quantised weights cannot be converted")
            else:
                match.mapped[ours] = (part, name)
                shape = part.converted_shape(name)
                if shape != tuple(expected[ours]):
                    match.mismatched.append(f"{name}: found {shape}, expected {tuple(expected[ours])}")
    for name in expected.keys() - match.mapped.keys():
        (match.new if name.startswith(may_be_new) else match.missing).append(name)
    match.new.sort()
    match.missing.sort()
    return match


def read_matched(match: KeyMatch, parts: Sequence[Part]) -> Iterator[tuple[str, torch.Tensor]]:
    """(our name, tensor) of everything that was mapped, part by part."""
    for part in parts:
        yield from part.read({name: ours for ours, (owner, name) in match.mapped.items() if owner is part})


def check_tied_head(match: KeyMatch, parts: Sequence[Part], source: str) -> None:
    """Raises LlavaError when a head that is to be tied to the embeddings differs from them."""
    owner, embeddings = match.mapped[EMBEDDINGS]
    for part in parts:
        for head in set(match.ignored.get(TIED, [])) & part.infos.keys():
            ((_, head_weight),) = part.read({head: HEAD})
            ((_, embedding_weight),) = owner.read({embeddings: EMBEDDINGS})
            if not torch.equal(head_weight, embedding_weight):
                raise LlavaError(f"{source}: tie_word_embeddings is true, but {head} differs from {embeddings}")
