"""What the hub's data sets need before LLaVA can be trained on them, as a table of named rules.

The facts are the authors' data scripts and the discussions of lmms-lab/LLaVA-OneVision-Data on the hub.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

from llava.constants import IMAGE_TOKEN, VIDEO_TOKEN

RECAP_PROMPT = "Please generate detailed descriptions of the given image."
RAVEN_SIDE = 500  # pixels
MATHV360K = "MathV360K"
MATHV360K_FILE = "train_samples_all_tuning"  # all of MathV360K in one file; a row's subset is its image's first folder
MATHV360K_MISSING = ("TQA", "PlotQA", "VQA-AS", "VQA-RAD")
DROPPED = {  # rows of any set that cannot be used
    "no_conversation": "rows that are no record with turns of 'from' and 'value', or 'role' and 'content', are dropped",
    "placeholder": "rows without an answer, or without one place for each image and video, are dropped",
    "unreadable_image": "rows with an image that cannot be decoded, or of suspiciously many pixels, are dropped",
    "refused_file": "rows with an image of more than 64 MiB or a video of more than 1 GiB are dropped, and those whose "
    "file has the name of another's folder",
    "unsafe_path": "rows whose path leaves the snapshot are dropped",
    "missing_file": "rows whose image or video is in no archive and no folder are dropped",
}


class Row(NamedTuple):
    """A row on its way. record: LLaVA's. image_sizes: gives the (width, height) of its images, read when asked for."""

    record: dict
    image_sizes: Callable[[], list[tuple[int, int]]]

    @property
    def images(self) -> list[str]:
        """The paths of its images."""
        return self._files("image")

    @property
    def videos(self) -> list[str]:
        """The paths of its videos."""
        return self._files("video")

    def _files(self, key: str) -> list[str]:
        files = self.record.get(key)
        return [] if files is None else [files] if isinstance(files, str) else files


class Rule(NamedTuple):
    """A repair.

    sets: which REPOSITORY/SET it is for. apply: returns the row's record, another one, or None to drop it; a record
    that is returned as it came counts as untouched. selects: it chooses rows by their record alone, so that images of
    other rows need not be unpacked.
    """

    name: str
    sets: str
    summary: str
    apply: Callable[[Row], dict | None]
    selects: bool = False

    def concerns(self, repository: str, name: str) -> bool:
        """Whether the rule is for this data set of a repository."""
        return re.fullmatch(self.sets, f"{repository}/{name}") is not None


def _with_placeholder(row: Row) -> dict:
    """One `<image>` per image, or `<video>` per video, at the start of the first human turn, where no turn has any."""
    turns = row.record["conversations"]
    if any(token in turn["value"] for turn in turns for token in (IMAGE_TOKEN, VIDEO_TOKEN)):
        return row.record
    places = f"{IMAGE_TOKEN}\n" * len(row.images) + f"{VIDEO_TOKEN}\n" * len(row.videos)
    return _with_first_question(row.record, lambda text: places + text)


def _with_recap_prompt(row: Row) -> dict:
    return _with_first_question(
        row.record, lambda text: text if RECAP_PROMPT in text else f"{text.rstrip()}\n{RECAP_PROMPT}"
    )


def _with_first_question(record: dict, change: Callable[[str], str]) -> dict:
    turns = record["conversations"]
    for number, turn in enumerate(turns):
        if turn["from"].strip().lower() in ("human", "user"):
            changed = change(turn["value"])
            if changed == turn["value"]:
                return record
            return record | {"conversations": [*turns[:number], turn | {"value": changed}, *turns[number + 1 :]]}
    return record


def _of_whole_sequence(row: Row) -> dict | None:
    whole = all(min(size) >= RAVEN_SIDE for size in row.image_sizes())
    return row.record if whole else None


def _of_subset(subset: str) -> Callable[[Row], dict | None]:
    return lambda row: row.record if row.images and row.images[0].split("/")[0] == subset else None


RULES = (
    *(
        Rule(
            "mathv360k_missing",
            re.escape(f"{MATHV360K}/{subset}({MATHV360K})"),
            f"other subsets than {subset} are dropped: lmms-lab/LLaVA-OneVision-Data lacks "
            f"{', '.join(MATHV360K_MISSING)}, and holds the others",
            _of_subset(subset),
            selects=True,
        )
        for subset in MATHV360K_MISSING
    ),
    Rule(
        "raven_small",
        r"LLaVA-OneVision-Data/raven\(cauldron\)",
        f"images of less than {RAVEN_SIDE} px are dropped: their question is about a second image, which the hub lacks",
        _of_whole_sequence,
    ),
    Rule(
        "image_placeholder",
        ".*",
        f"rows with files and no {IMAGE_TOKEN} or {VIDEO_TOKEN} get them at the start of their first question",
        _with_placeholder,
    ),
    Rule(
        "recap_prompt",
        "LLaVA-ReCap-.*",
        f'the question becomes "{IMAGE_TOKEN}", a new line and "{RECAP_PROMPT}"',
        _with_recap_prompt,
    ),
)


def rules_of(repository: str, name: str) -> list[Rule]:
    """The rules for a set, in the order in which they are applied."""
    return [rule for rule in RULES if rule.concerns(repository, name)]
