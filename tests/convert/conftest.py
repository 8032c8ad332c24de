"""Checkpoint folders to export, and the command without the CLI around it."""

import argparse

import pytest
import torch

from llava.convert.export import add_arguments, run
from tests.conftest import GRID


@pytest.fixture(scope="session")
def save_model(make_model, make_processor, tiny_tokenizer):
    """A function: folder, and what make_model takes, to the model saved there, every weight random."""

    def save(folder, tiling=GRID, managers=None, dtype=torch.float32, **text):
        model = make_model(tiling, managers, **text).to(dtype)
        model.config.turn_start_token_id = tiny_tokenizer.convert_tokens_to_ids("<|im_start|>")
        model.config.turn_end_token_id = tiny_tokenizer.convert_tokens_to_ids("<|im_end|>")
        model.config.newline_token_id = tiny_tokenizer("\n")["input_ids"][0]
        for manager in model.model.managers.managers if model.model.managers is not None else ():
            for parameter in manager.parameters():
                torch.nn.init.normal_(parameter, std=0.3)
        model.save_pretrained(folder)
        make_processor(tiling).save_pretrained(folder)
        return model

    return save


@pytest.fixture(scope="session")
def export():
    """A function: the command's arguments to its exit status."""

    def call(*arguments) -> int:
        parser = argparse.ArgumentParser()
        add_arguments(parser)
        return run(parser.parse_args([str(argument) for argument in arguments]))

    return call
