"""Run by vLLM's Python: answers the requests that stand in a folder, see test_vllm.py.

vllm_answers.py FOLDER TOKENS RANKS: of each model FOLDER/NAME the file requests.pickle, a list of (prompt, images,
videos), becomes answers.json: of each request its prompt's ids, the answer's of at most so many tokens, and their
logarithms of probability. refused.txt: what is said to a prompt with a placeholder and no picture.
"""

import gc
import json
import pickle
import sys
from pathlib import Path

from vllm import LLM, SamplingParams


def answer(folder: Path, max_tokens: int, ranks: int) -> None:
    requests = pickle.loads((folder / "requests.pickle").read_bytes())
    llm = LLM(
        str(folder),
        tokenizer_mode="llava_ov_manager",
        dtype="float32",
        enforce_eager=True,
        tensor_parallel_size=ranks,
        max_model_len=2048,
        max_num_batched_tokens=256,  # so that most prompts are cut into chunks, through their images
        max_num_seqs=4,  # so that later requests find beginnings that earlier ones left
        block_size=32,
        enable_chunked_prefill=True,
        enable_prefix_caching=True,
        limit_mm_per_prompt={"image": 4, "video": 2},
        disable_log_stats=False,
    )
    prompts = [
        {"prompt": prompt, "multi_modal_data": {"image": images, "video": videos}}
        for prompt, images, videos in requests
    ]
    sampling = SamplingParams(temperature=0, max_tokens=max_tokens, logprobs=1)
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


def refusal(llm: LLM, sampling: SamplingParams) -> str:
    """What is said to a prompt with a placeholder and no picture."""
    try:
        llm.generate({"prompt": "<image>\nWhat is it?"}, sampling, use_tqdm=False)
    except ValueError as error:
        return str(error)
    return "answered"


if __name__ == "__main__":
    root, max_tokens, ranks = Path(sys.argv[1]), *map(int, sys.argv[2:])
    for folder in sorted(path.parent for path in root.glob("*/requests.pickle")):
        answer(folder, max_tokens, ranks)
        gc.collect()
        print(f"answered {folder.name}", flush=True)
