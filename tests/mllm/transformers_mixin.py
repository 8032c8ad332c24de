"""transformers' GenerationTesterMixin on our class: which of its tests run, which do not and why, and the running.

    python tests/mllm/transformers_mixin.py CHECKOUT QUERY

runs those that run from a source checkout of transformers (the wheel has no tests) and prints {test: outcome} as JSON.
It is a process of its own because the checkout's package is called `tests` too.
"""

import io
import json
import os
import sys
import unittest
import unittest.mock
from fnmatch import fnmatch

FLASH = "needs flash-attn and a GPU"
# Patterns of test names; "" where the test runs and must pass, else the reason why it does not.
TABLE = {
    "test_greedy_generate": "",
    "test_greedy_generate_dict_outputs": "",
    "test_greedy_generate_dict_outputs_use_cache": "",
    "test_cached_decode_matches_cacheless": "",
    "test_sample_generate": "",
    "test_sample_generate_dict_output": "",
    "test_beam_search_generate": "",
    "test_beam_search_generate_dict_output": "",
    "test_beam_search_generate_dict_outputs_use_cache": "",
    "test_beam_sample_generate": "",
    "test_beam_sample_generate_dict_output": "",
    "test_generate_without_input_ids": "",
    "test_assisted_decoding_matches_greedy_search_*": "",
    "test_assisted_decoding_sample": "",
    "test_prompt_lookup_decoding_matches_greedy_search": "",
    "test_prompt_lookup_decoding_stops_at_eos": "",
    "test_left_padding_compatibility": "",
    "test_past_key_values_format": "",
    "test_generate_from_random_inputs_embeds": "",
    "test_generate_from_inputs_embeds_[01]_*": "",
    "test_generate_from_inputs_embeds_with_static_cache": "",
    "test_generate_continue_from_past_key_values": "",
    "test_generate_with_static_cache": "",
    "test_generate_compile_model_forward_fullgraph": "",
    "test_generate_compilation_all_outputs": "",
    "test_static_cache_no_recompile_with_smaller_length": "",
    "test_generate_methods_with_logits_to_keep": "",
    "test_forward_with_logits_to_keep": "",
    "test_inherits_generation_mixin": "",
    "test_prepare_inputs_for_generation_kwargs_forwards": "",
    "test_eager_matches_sdpa_generate": "",
    "test_eager_padding_matches_padding_free_with_position_ids": "",
    "test_sdpa_padding_matches_padding_free_with_position_ids": "",
    "test_custom_4d_attention_mask": "",
    "test_generate_with_and_without_position_ids": "",
    "test_eager_matches_fa[234]_generate": FLASH,
    "test_flash_attention_*": FLASH,
    "test_model_parallel_beam_search": "needs several accelerators; device maps are tested in test_ecosystem.py",
    "test_generate_with_quant_cache": "needs optimum-quanto, which is not among our requirements",
    "test_generate_continue_from_inputs_embeds": "skips every composite configuration; ours is in "
    "test_transformers_generation.py",
    "test_recurrent_layers_mask_padding_on_continued_forward": "Qwen2 has no recurrent layers",
    "test_generate_with_mtp": "no multi-token prediction layers",
    "test_*export*": "export to ONNX, ExecuTorch and the like is no feature of this repository",
}


def entry_of(test: str) -> str | None:
    """The pattern of TABLE that stands for a test; None for a test that the table does not know."""
    return next((pattern for pattern in TABLE if fnmatch(test, pattern)), None)


def markdown() -> str:
    """TABLE for the documentation."""
    lines = ["| test of GenerationTesterMixin | runs | why not |", "|---|---|---|"]
    lines += [f"| `{pattern}` | {'no' if reason else 'yes'} | {reason} |" for pattern, reason in TABLE.items()]
    return "\n".join(lines)


def make_case(mixin: type, query: str | None) -> type[unittest.TestCase]:
    """The mixin's tests on the tiniest model, whose managers have random weights, so that they do something."""
    import torch
    from transformers import Qwen2Config, SiglipVisionConfig

    from llava.fusion.configs.manager import ManagerConfig
    from llava.fusion.managers import AdaptiveManager, StaticManager
    from llava.mllm import LlavaOVManagerConfig, LlavaOVManagerForConditionalGeneration
    from llava.mllm.modeling import LlavaOVManagerPreTrainedModel

    plain_init = LlavaOVManagerForConditionalGeneration._init_weights

    @torch.no_grad()
    def init_with_random_managers(model, module):
        plain_init(model, module)
        if isinstance(module, (AdaptiveManager, StaticManager)):
            for parameter in module.parameters(recurse=False):
                torch.nn.init.normal_(parameter, std=0.5)

    class ModelTester:
        """What the mixin asks for: a configuration, inputs and numbers about them. Ids are low: it draws from 0 up."""

        batch_size, seq_length, num_hidden_layers = 4, 12, 2
        image_token_id, is_training = 4, False

        def prepare_config_and_inputs_for_common(self):
            config = LlavaOVManagerConfig(
                vision_config=SiglipVisionConfig(
                    hidden_size=32,
                    intermediate_size=48,
                    num_hidden_layers=2,
                    num_attention_heads=2,
                    image_size=28,
                    patch_size=14,
                ),
                text_config=Qwen2Config(
                    vocab_size=99,
                    hidden_size=32,
                    intermediate_size=48,
                    num_hidden_layers=2,
                    num_attention_heads=4,
                    num_key_value_heads=2,
                    pad_token_id=0,
                    bos_token_id=1,
                    eos_token_id=2,
                    tie_word_embeddings=True,
                ),
                fusion=ManagerConfig(vision_layers=(1, 2), injection_layers=(0, 1), query=query),
                image_token_id=self.image_token_id,
                video_token_id=6,
                turn_start_token_id=7,
                turn_end_token_id=8,
                newline_token_id=9,
            )
            # A place for padding, <|im_start|>, role, \n, 2 x 2 patches, two words of question, <|im_end|>, a word
            ids = torch.randint(10, 99, (self.batch_size, self.seq_length))
            ids[:, 1], ids[:, 3], ids[:, 4:8], ids[:, 10] = 7, 9, self.image_token_id, 8
            mask = torch.ones_like(ids)
            ids[0, 0], mask[0, 0] = 0, 0
            return config, {
                "input_ids": ids,
                "attention_mask": mask,
                "pixel_values": torch.randn(self.batch_size, 3, 28, 28),
                "image_sizes": torch.tensor([[28, 28]] * self.batch_size),
            }

    class GenerationTest(mixin, unittest.TestCase):
        has_attentions = True
        all_generative_model_classes = (LlavaOVManagerForConditionalGeneration,)

        def setUp(self):
            self.model_tester = ModelTester()
            patch = unittest.mock.patch.object(
                LlavaOVManagerPreTrainedModel, "_init_weights", init_with_random_managers
            )
            patch.start()
            self.addCleanup(patch.stop)

    return GenerationTest


def run(case: type[unittest.TestCase]) -> dict[str, str]:
    """Runs what TABLE says runs. {test: "passed", "not run", "unknown", or what else it came to}."""
    outcomes = {}
    for test in unittest.TestLoader().getTestCaseNames(case):
        entry = entry_of(test)
        if entry is None or TABLE[entry]:
            outcomes[test] = "unknown" if entry is None else "not run"
            continue
        result = unittest.TextTestRunner(stream=io.StringIO()).run(case(test))
        problems = [text for _, text in result.failures + result.errors + result.skipped]
        outcomes[test] = problems[0] if problems else "passed"
    return outcomes


def main(checkout: str, query: str) -> None:
    os.environ |= {"RUN_SLOW": "1", "HF_HUB_OFFLINE": "1"}
    sys.path.insert(0, checkout)
    from tests.generation.test_utils import GenerationTesterMixin

    print(json.dumps(run(make_case(GenerationTesterMixin, None if query == "static" else query))))


if __name__ == "__main__":
    main(*sys.argv[1:])
