"""What vLLM's plugin knows without vLLM."""

import importlib
import logging
import random
import subprocess
import sys
import tomllib
import types
from importlib.metadata import PackageNotFoundError

import psutil
import pytest

from llava.constants import SYSTEM_MESSAGE
from llava.data.conversation import encode_prompt
from llava.data.schema import Turn
from llava.errors import DataError, LlavaError
from llava.fusion.configs.cli_reconstruction import CliReconstructionConfig
from llava.fusion.configs.cross_attention import CrossAttentionConfig
from llava.fusion.configs.manager import ManagerConfig
from llava.fusion.configs.tgif import TgifConfig
from llava.fusion.methods import METHODS
from llava.vllm_plugin import entry
from llava.vllm_plugin.checks import check_ranks, check_static
from llava.vllm_plugin.entry import misfit, register
from llava.vllm_plugin.requests import check_places, most_image_tokens, questions_of_prompt
from tests.conftest import GRID
from tests.paths import ROOT
from tests.serving.small_models import MODELS, SQUARE


def test_it_is_an_entry_point_of_vllm():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, _, function = project["entry-points"]["vllm.general_plugins"]["llava_ov_manager"].partition(":")
    assert getattr(importlib.import_module(module), function) is register


@pytest.mark.parametrize(
    ("release", "fits"), [("0.32.0", True), ("0.33.1+cpu", True), ("0.31.2", False), ("0.34.0", False), ("1.0", False)]
)
def test_which_releases_fit(release, fits):
    assert (misfit(release) is None) == fits
    if not fits:
        assert f"fits vLLM 0.32 to 0.33, and this is vLLM {release}" in misfit(release)


@pytest.mark.parametrize(("release", "told"), [("0.31.0", "0.31.0"), (None, "0")])
def test_a_release_that_does_not_fit_runs_on_without_our_model(release, told, monkeypatch, caplog):
    """One line; nothing of vLLM is imported: it is not installed here, and what stands in for it is not asked."""

    class Vllm(types.ModuleType):
        __path__ = ()

        def __getattr__(self, name):
            raise AssertionError(f"vllm.{name} was asked for")

    def version(distribution):
        if distribution == "vllm" and release is not None:
            return release
        raise PackageNotFoundError(distribution)

    monkeypatch.setitem(sys.modules, "vllm", Vllm("vllm"))
    monkeypatch.setattr(entry, "version", version)
    with caplog.at_level(logging.DEBUG):
        register()
    ((logger, level, line),) = caplog.record_tuples
    assert (logger, level) == ("vllm", logging.ERROR)
    assert line == (
        f"llava-ov-manager's plugin fits vLLM 0.32 to 0.33, and this is vLLM {told}: its models are not known here"
    )
    assert [name for name in sys.modules if name.startswith(("vllm.", "llava.vllm_plugin.media"))] == []


CHILD = """
import multiprocessing, os, sys, time
from llava.vllm_plugin.entry import end_with_parent
def engine(pids):
    end_with_parent()
    pids.send(os.getpid())
    time.sleep(600)
if __name__ == "__main__":
    reader, writer = multiprocessing.Pipe()
    multiprocessing.get_context("spawn").Process(target=engine, args=(writer,)).start()
    print(reader.recv(), flush=True)
    end_with_parent()  # of no process of multiprocessing
    time.sleep(600)
"""


def test_an_engine_ends_with_a_server_that_is_killed(tmp_path):
    script = tmp_path / "server.py"
    script.write_text(CHILD)
    server = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    engine = psutil.Process(int(server.stdout.readline()))
    assert engine.is_running()
    server.kill()
    server.communicate()
    assert psutil.wait_procs([engine], timeout=60)[1] == []


def test_methods_that_read_hidden_states_are_refused():
    refused = {name for name, kind in METHODS.items() if not kind().static}
    assert refused == {"cross_attention", "cli_reconstruction"}
    assert {fusion.method for _, fusion in MODELS.values()} >= set(METHODS) - refused
    for fusion in (ManagerConfig(query="self"), CrossAttentionConfig(), CliReconstructionConfig()):
        with pytest.raises(LlavaError, match=r"reads the hidden states.*llava eval --engine transformers"):
            check_static(fusion.resolved(26, 24))
    check_static(ManagerConfig().resolved(26, 24))


@pytest.mark.parametrize(
    ("sizes", "ranks", "fault"),
    [
        ({}, 2, None),
        ({}, 4, None),  # two ranks have the same heads of keys and values
        ({"num_key_value_heads": 3}, 3, "its 320 tokens, in steps of 64, cannot be divided by 3"),
        ({"num_attention_heads": 9, "num_key_value_heads": 9, "vocab_size": 192}, 3, None),
        ({"num_attention_heads": 12, "num_key_value_heads": 6}, 4, "6 heads of keys and values"),
        ({"intermediate_size": 322}, 4, "322 features inside a layer"),
        ({"num_attention_heads": 10}, 4, "its 10 heads of attention cannot be divided by 4"),
    ],
)
def test_what_ranks_cannot_share_is_told(sizes, ranks, fault):
    text = {"num_attention_heads": 12, "num_key_value_heads": 2, "intermediate_size": 480, "vocab_size": 300} | sizes
    if fault is None:
        check_ranks(text, ranks)
        return
    with pytest.raises(LlavaError, match=f"among {ranks} ranks.*{fault}"):
        check_ranks(text, ranks)


@pytest.mark.parametrize("tiling", [SQUARE, GRID])
def test_no_image_has_more_tokens_than_the_most(make_processor, tiling):
    processor = make_processor(tiling).image_processor
    most, size = most_image_tokens(processor)
    assert most * 0.8 <= processor.layout(size, several_images=False).num_tokens <= most
    rng = random.Random(0)
    sizes = [(rng.randint(1, 900), rng.randint(1, 900)) for _ in range(3000)]
    assert max(processor.layout(one, several).num_tokens for one in sizes for several in (False, True)) <= most


def test_questions_are_found_before_placeholders_are_expanded(make_processor, make_config):
    """By the text of the turn, without placeholders."""
    processor, config = make_processor(SQUARE), make_config(SQUARE, TgifConfig())
    turns = [Turn("human", "<image>\nA red car?"), Turn("gpt", "Yes."), Turn("human", "<image> <image>\nWhat 12?")]
    tokenizer = processor.tokenizer
    prompt = encode_prompt(tokenizer, tuple(turns), SYSTEM_MESSAGE, images=3, videos=0)
    questions = questions_of_prompt(prompt, config)["image"]
    assert [tokenizer.decode(question).strip() for question in questions] == ["A red car?", "What 12?", "What 12?"]


def test_placeholders_without_pictures_are_refused(make_config):
    config = make_config(SQUARE)
    prompt = [1, config.image_token_id, 2, config.video_token_id]
    check_places(prompt, {"image": 1, "video": 1}, config)
    check_places([1, 2], {}, config)
    with pytest.raises(DataError, match="found 1 <image> placeholders in the prompt but 0 images"):
        check_places(prompt, {}, config)
    with pytest.raises(DataError, match="found 1 <video> placeholders in the prompt but 2 videos"):
        check_places(prompt, {"image": 1, "video": 2}, config)
