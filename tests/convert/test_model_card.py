"""The card of an exported folder, and its way to the hub, which is a fake one here."""

import json
import re

import pytest
import yaml
from huggingface_hub.utils import filter_repo_objects
from transformers import AutoModelForImageTextToText

from llava.convert.export import FORMATS
from llava.errors import LlavaError
from llava.mllm import LlavaOVManagerForConditionalGeneration
from tests.conftest import GRID

RUN = {
    "recipe": {
        "stage": "2",
        "arm": "grid_manager",
        "model": {"start_from": "/home/me/secret/stage1_5"},
        "fusion": {"method": "manager", "layer_set": "paper", "vision_start": None},
        "optim": {"lr": 1e-05, "global_batch_size": 256},
        "run": {"output_dir": "/home/me/secret/out"},
    },
    "mixture": [
        {"json_path": "/home/me/secret/docvqa.json", "sampling_strategy": "first:10%", "rows": 39463, "taken": 3946}
    ],
    "steps": 15273,
    "tokens_seen": 871687000,
    "train_loss": 0.731234,
    "versions": {"torch": "2.13.0"},
}


LOG = "step,epoch,loss,eval_loss\n1,0.5,1.5,\n2,1.0,,2.25\n"
EVENTS = "runs/Nov29_host/events.out.tfevents.1"


def scored(**runs) -> dict:
    score = {"documents": 5349, "interval": "bootstrap", "percent": True}
    of_run = {run: {"value": value, "low": value - 1, "high": value + 1, **score} for run, value in runs.items()}
    return {"rows": [{"task": "docvqa_val", "metric": "anls", "scores": of_run, "differences": {}}]}


def add_logs(folder) -> None:
    """What a stage with run.report_to tensorboard leaves beside its model."""
    (folder / "log.csv").write_text(LOG)
    (folder / EVENTS).parent.mkdir(parents=True)
    (folder / EVENTS).write_bytes(b"events")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, save_model):
    """A checkpoint with the manifest of its run."""
    folder = tmp_path_factory.mktemp("card") / "trained"
    save_model(folder, GRID, "paper")
    (folder / "run.json").write_text(json.dumps(RUN))
    add_logs(folder)
    return folder


def parts(card: str) -> tuple[dict, dict]:
    """The fields in front, and the sections by their titles."""
    _, front, text = card.split("---\n", 2)
    pieces = re.split(r"^## (.+)\n", text, flags=re.MULTILINE)
    return yaml.safe_load(front), dict(zip(pieces[1::2], pieces[2::2]))


def test_a_card_tells_the_run_and_its_lines_load_the_model(trained, tmp_path, export, hub, monkeypatch):
    (tmp_path / "scores.json").write_text(json.dumps(scored(grid=91.25)))
    options = ("--format", "remote_code", "--license", "apache-2.0", "--scores", tmp_path / "scores.json")
    assert export(trained, "--out", tmp_path / "out", *options) == 0
    card = (tmp_path / "out/README.md").read_text()
    front, sections = parts(card)
    assert (front["license"], front["pipeline_tag"]) == ("apache-2.0", "image-text-to-text")
    assert list(sections) == ["How to load", "Recipe", "Data", "Scores", "Licence", "Limits"]
    assert "| docvqa_val | anls | 91.2 [90.2, 92.2] | 5,349 |" in sections["Scores"]
    assert "| docvqa.json | first:10% | 39,463 | 3,946 |" in sections["Data"]
    assert "- steps: 15,273\n- tokens seen: 871,687,000\n- mean training loss: 0.7312\n" in sections["Recipe"]
    told = yaml.safe_load(sections["Recipe"].split("```yaml\n")[1].split("```")[0])
    assert told["fusion"] == {"method": "manager", "layer_set": "paper"}
    assert told["optim"] == RUN["recipe"]["optim"]
    assert "secret" not in card
    assert hub.calls == []  # nothing is uploaded unasked

    lines = sections["How to load"].split("```python\n")[1].split("\n```")[0]
    assert lines.count("\n") == 2
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(lines, names)
    assert type(names["model"]) is LlavaOVManagerForConditionalGeneration
    expected = AutoModelForImageTextToText.from_pretrained(trained).state_dict()
    assert all(tensor.equal(expected[name]) for name, tensor in names["model"].state_dict().items())
    assert names["processor"](text="A")["input_ids"].shape[0] == 1


def test_what_is_not_known_is_told_as_that(tmp_path, save_model, export):
    save_model(tmp_path / "model", GRID)
    assert export(tmp_path / "model", "--out", tmp_path / "out", "--format", "remote_code") == 0
    front, sections = parts((tmp_path / "out/README.md").read_text())
    assert "license" not in front
    for title, words in (("Licence", "Not told"), ("Data", "Not known"), ("Scores", "None were told")):
        assert words in sections[title]
    assert "no run.json" in sections["Recipe"]
    assert "log.csv" not in sections["Recipe"]
    assert not {"log.csv", "runs"} & {path.name for path in (tmp_path / "out").iterdir()}


@pytest.mark.parametrize("format_name", FORMATS)
def test_what_was_logged_stands_beside_the_card(format_name, tmp_path, save_model, export):
    save_model(tmp_path / "model", GRID)
    add_logs(tmp_path / "model")
    out = tmp_path / "out"
    assert export(tmp_path / "model", "--out", out, "--format", format_name, "--accept_differences") == 0
    assert (out / "log.csv").read_text() == LOG
    assert (out / EVENTS).read_bytes() == b"events"
    assert parts((out / "README.md").read_text())[1]["Recipe"].count("(log.csv)") == 1


def test_it_is_uploaded_when_asked(trained, tmp_path, export, hub, capsys):
    out = tmp_path / "out"
    assert export(trained, "--out", out, "--format", "remote_code", "--push", "me/model", "--private") == 0
    assert [name for name, _, _ in hub.calls] == ["whoami", "create_repo", "upload_folder"]
    assert hub.calls[1][2] == {"private": True, "exist_ok": True}
    upload = hub.calls[2][2]
    assert (upload["repo_id"], upload["folder_path"]) == ("me/model", out)
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    uploaded = set(filter_repo_objects(files, ignore_patterns=upload["ignore_patterns"]))
    assert files - uploaded == {EVENTS}  # which tells paths of this machine
    assert 'from_pretrained("me/model", trust_remote_code=True)' in (out / "README.md").read_text()
    printed = capsys.readouterr().out
    assert "uploaded to https://huggingface.co/me/model" in printed
    assert f"note: {out}/runs was not uploaded: it tells paths and shows held-out samples" in printed


@pytest.mark.parametrize(
    ("arguments", "token", "refusing", "message"),
    [
        (
            ["--push", "me/model"],
            None,
            "",
            "--push me/model: nobody is logged in to the hub; log in with",
        ),
        (["--push", "me/model"], "hf_x", "whoami", r"the hub does not let you in \(401 Unauthorized\)"),
        (["--push", "me//model"], "hf_x", "", "--push me//model: "),
        (["--private"], "hf_x", "", "--private is about the repository that --push makes"),
        (["--scores", "two.json"], "hf_x", "", "the scores of one run; found 2: grid, square"),
        (["--scores", "other.json"], "hf_x", "", "not what llava eval report --json writes"),
        (["--scores", "none.json"], "hf_x", "", "none.json: cannot be read"),
    ],
)
def test_it_is_refused_before_any_work(
    trained, tmp_path, export, hub, monkeypatch, arguments, token, refusing, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "two.json").write_text(json.dumps(scored(grid=1.0, square=2.0)))
    (tmp_path / "other.json").write_text('{"rows": [{"task": "a"}]}')
    hub.token, hub.refusing = token, {refusing}
    with pytest.raises(LlavaError, match=message) as caught:
        export(trained, "--out", "out", "--format", "remote_code", *arguments)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_an_upload_that_fails_leaves_the_folder(trained, tmp_path, export, hub):
    hub.refusing = {"upload_folder"}
    with pytest.raises(LlavaError, match=r"out is written, but could not be uploaded: 401 Unauthorized"):
        export(trained, "--out", tmp_path / "out", "--format", "remote_code", "--push", "me/model")
    assert (tmp_path / "out/README.md").is_file()
