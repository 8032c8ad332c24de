"""Run by vLLM's Python: answers the requests that stand in a folder, see test_vllm.py.

vllm_answers.py FOLDER --tokens N [--ranks N] [--stages N] [--compile]: of each model FOLDER/NAME the file
requests.pickle, a list of (prompt, images, videos), becomes answers.json: of each request its prompt's ids, the
answer's of at most so many tokens, and their logarithms of probability. Ranks share each layer, stages have some each.
refused.txt: what is said to a prompt with a placeholder and no picture.
encoded.json, where FOLDER/NAME has asked_again.pickle: see encoded. compiled.json, where told to compile: see compiled.
"""

import argparse
import gc
import json
import pickle
from pathlib import Path

from vllm import LLM, SamplingParams
from vllm.config import CompilationMode

from llava.vllm_plugin.decoder import receiving


def answer(folder: Path, args: argparse.Namespace) -> None:
    requests = pickle.loads((folder / "requests.pickle").read_bytes())
    llm = LLM(
        str(folder),
        tokenizer_mode="llava_ov_manager",
        dtype="float32",
        enforce_eager=not args.compile,
        tensor_parallel_size=args.ranks,
        pipeline_parallel_size=args.stages,
        max_model_len=2048,
        max_num_batched_tokens=256,  # so that most prompts are cut into chunks, through their images
        max_num_seqs=4,  # so that later requests find beginnings that earlier ones left
        block_size=32,
        enable_chunked_prefill=True,
        enable_prefix_caching=True,
        limit_mm_per_prompt={"image": 4, "video": 2},
        disable_log_stats=False,
    )
    prompts = as_prompts(requests)
    sampling = SamplingParams(temperature=0, max_tokens=args.tokens, logprobs=1)
    outputs = llm.generate(prompts, sampling, use_tqdm=False)
    answers = []
    for output in outputs:
        ids, steps = list(output.outputs[0].token_ids), output.outputs[0].logprobs
        logprobs = [step[token].logprob for token, step in zip(ids, steps)]
        prompt = list(output.prompt_token_ids)
        answers.append({"prompt": prompt, "ids": ids, "logprobs": logprobs, "cached": output.num_cached_tokens})
    (folder / "answers.json").write_text(json.dumps(answers))
    (folder / "refused.txt").write_text(refusal(llm, sampling))
    assert llm.generate(prompts[:1], sampling, use_tqdm=False)  # which goes on
    if (folder / "asked_again.pickle").exists():
        asked_again = pickle.loads((folder / "asked_again.pickle").read_bytes())
        (folder / "encoded.json").write_text(json.dumps(encoded(llm, asked_again)))
    if args.compile and args.stages == 1:
        (folder / "compiled.json").write_text(json.dumps(compiled(llm)))


def as_prompts(requests: list[tuple]) -> list[dict]:
    return [
        {"prompt": prompt, "multi_modal_data": {"image": images, "video": videos}}
        for prompt, images, videos in requests
    ]


def refusal(llm: LLM, sampling: SamplingParams) -> str:
    """What is said to a prompt with a placeholder and no picture."""
    try:
        llm.generate({"prompt": "<image>\nWhat is it?"}, sampling, use_tqdm=False)
    except ValueError as error:
        return str(error)
    return "answered"


def encoded(llm: LLM, requests: list[tuple]) -> list[int]:
    """How many pictures the vision side is given at each request; before the last one the encoder cache is emptied."""
    seen: list[int] = []
    llm.apply_model(
        lambda model: model.vision_side.register_forward_pre_hook(lambda _, given: seen.append(len(given[0].layouts)))
    )
    counts = []
    for number, prompt in enumerate(as_prompts(requests), start=1):
        if number == len(requests):
            llm.llm_engine.engine_core.reset_encoder_cache()
        seen.clear()
        llm.generate([prompt], SamplingParams(temperature=0, max_tokens=1), use_tqdm=False)
        counts.append(sum(seen))
    return counts


def compiled(llm: LLM) -> dict:
    """How the decoder was compiled, its graphs, and whether vLLM keeps those of other layers of fusion apart."""
    from torch._dynamo.utils import counters

    config = llm.llm_engine.vllm_config
    text_config = config.model_config.hf_config.text_config
    names = {config.with_hf_config(receiving(text_config, layers)).compute_hash() for layers in ([0, 1], [0, 2])}
    return {
        "mode": CompilationMode(config.compilation_config.mode).name,
        "backend": config.compilation_config.backend,
        "compiled": llm.apply_model(lambda model: model.language_model.model.compiled),
        "graphs": counters["stats"]["unique_graphs"],
        "apart": len(names) == 2,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("root", type=Path)
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--stages", type=int, default=1)
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    for folder in sorted(path.parent for path in args.root.glob("*/requests.pickle")):
        answer(folder, args)
        gc.collect()
        print(f"answered {folder.name}", flush=True)
