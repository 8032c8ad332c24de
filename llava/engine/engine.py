"""One engine for chat and evaluation: loads a checkpoint folder, answers batches, streams one answer.

Dialogue ── prompt text, <image> placed ── processor ── generate ── decoded, stripped
                                               └─ uint8 crops, cut by threads; the model normalises them where it is
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event
from typing import Any

import torch
from transformers import (
    BatchFeature,
    GenerationConfig,
    PreTrainedTokenizerBase,
    StoppingCriteriaList,
    TextIteratorStreamer,
)

from llava.checkpoint.folder import check_folder
from llava.checkpoint.loading import load_model
from llava.data.conversation import END
from llava.data.options import AS_UINT8
from llava.data.placeholders import with_places
from llava.data.processor import LlavaOVManagerProcessor
from llava.data.schema import Dialogue
from llava.data.workers import core_count
from llava.engine.checks import DTYPE_NAMES, SPREAD, check_attention, check_dtype
from llava.engine.four_bits import check_widths, four_bits
from llava.engine.kept_cache import KeptCache, check_length
from llava.engine.placement import DeviceMap, best_dtype, choose_device, spread_options
from llava.engine.stop_strings import StopStrings, cut
from llava.errors import LlavaError
from llava.mllm import LlavaOVManagerForConditionalGeneration
from llava.mllm.attention import best_attention, check_can_run

DTYPES = {name: getattr(torch, name) for name in DTYPE_NAMES}
MOST_READERS = 8  # threads that cut images into crops


def plain_generation(tokenizer: PreTrainedTokenizerBase, **options: Any) -> GenerationConfig:
    """Greedy settings that end an answer where its turn ends; `options` replace or add to them."""
    stops = {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(END)} - {None}
    settings = {"eos_token_id": sorted(stops), "pad_token_id": tokenizer.pad_token_id, "repetition_penalty": 1.0}
    return GenerationConfig(**settings | options)


class _StoppedError(Exception):
    """Breaks off the reading of a prompt, which can take long."""


class Engine:
    """A loaded model with its processor. Answers are greedy unless a temperature is given."""

    def __init__(self, model: LlavaOVManagerForConditionalGeneration, processor: LlavaOVManagerProcessor):
        self.model = model.eval()
        self.processor = processor
        pictures = processor.image_processor
        self.model.config.image_mean, self.model.config.image_std = pictures.image_mean, pictures.image_std
        self._offloaded: TemporaryDirectory | None = None  # goes with the engine
        self._readers = ThreadPoolExecutor(_reader_count(), thread_name_prefix="reader")
        # Replaces what the language model's folder brought along: Qwen2-Instruct's repetition_penalty of 1.1 and so on.
        self.model.generation_config = plain_generation(processor.tokenizer)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        device: str | DeviceMap = "auto",
        dtype: str = "auto",
        attn_implementation: str | None = None,
        load_4bit: bool = False,
    ) -> "Engine":
        """Loads a checkpoint folder; LoRA adapters that it holds are merged into the weights.

        device: "auto" is the GPU if there is one; "spread" is all GPUs, and the CPU and the disk for what they do not
        hold, layer by layer; or {beginning of a module's name: its device}. dtype: "auto" is bfloat16 on a GPU (float16
        on one that only emulates it), float32 elsewhere. attn_implementation: None is flash_attention_2 where it is
        installed and can be used, else sdpa. load_4bit: the language model's linear layers in 4 bits (NF4, needs
        bitsandbytes).
        Raises LlavaError for a missing folder, another architecture, unknown names, flash attention where it cannot
        run, and damaged or incomplete weights.
        """
        check_folder(path)
        check_dtype(dtype)
        check_attention(attn_implementation)
        place = choose_device(device)
        kind = best_dtype(place) if dtype == "auto" else DTYPES[dtype]
        options = four_bits(Path(path), place, kind) if load_4bit else {}
        offloaded = None
        if device == SPREAD or not isinstance(device, str):
            if load_4bit:
                raise LlavaError("a model in 4 bits goes to one device, and cannot be spread over several")
            offloaded = TemporaryDirectory(prefix="llava-offloaded-")
            options = spread_options(Path(path), device, offloaded.name)
        if attn_implementation is None:
            attn_implementation = best_attention(place.type == "cuda", kind != torch.float32)
        check_can_run(attn_implementation, place.type == "cuda", kind != torch.float32)
        try:
            if load_4bit:
                check_widths(Path(path))
            processor = LlavaOVManagerProcessor.from_pretrained(path)
            model = load_model(path, dtype=kind, attn_implementation=attn_implementation, **options)
        except LlavaError:
            raise
        except Exception as error:  # transformers, safetensors and tokenizers each raise their own kinds
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise LlavaError(f"{path}: cannot be loaded: {reason}") from error
        engine = cls(model if options else model.to(place), processor)  # pieces, and 4 bits, are where they shall be
        engine._offloaded = offloaded
        return engine

    @property
    def device(self) -> torch.device:
        """Where the model is; of one in pieces, where its inputs go."""
        return self.model.device

    def describe(self) -> str:
        """Device, dtype and attention in a few words."""
        dtype, attention = str(self.model.dtype).removeprefix("torch."), self.model.config._attn_implementation
        bits = ", language model in 4 bits" if getattr(self.model, "is_loaded_in_4bit", False) else ""
        pieces = getattr(self.model, "hf_device_map", {})
        places = dict.fromkeys(str(torch.device(place)) if place != "disk" else place for place in pieces.values())
        return f"{' + '.join(places) or self.device}, {dtype}, {attention}{bits}"

    def new_cache(self) -> KeptCache:
        """What `stream` is given as `kept`, one for each conversation."""
        return KeptCache()

    def prompt_ids(self, dialogue: Dialogue) -> list[int]:
        """Of the prompt with all visual tokens, without touching a pixel."""
        return self.processor.prompt_ids(with_places(dialogue))

    def count_tokens(self, dialogue: Dialogue) -> int:
        """Length of the prompt with all visual tokens."""
        return len(self.prompt_ids(dialogue))

    def prepare(self, dialogues: Sequence[Dialogue]) -> BatchFeature:
        """What `generate` works on, on the CPU, with pixels as uint8. Any thread may call it, while others generate.

        Raises LlavaError for a prompt that is longer than the model can read.
        """
        placed = [with_places(dialogue) for dialogue in dialogues]
        inputs = self.processor.encode_prompts(placed, pixels=AS_UINT8, each=self._readers.map)
        check_length(inputs["input_ids"].shape[1], self.model)
        return inputs

    def generate(
        self,
        dialogues: Sequence[Dialogue],
        *,
        inputs: BatchFeature | None = None,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_p: float | None = None,
        num_beams: int = 1,
        stop: Sequence[str] = (),
    ) -> list[str]:
        """Answers one left-padded batch, in its order, stripped.

        inputs: what `prepare` has made of the dialogues; None to make it now. temperature 0 is greedy (or beam search
        with num_beams > 1). stop: an answer is cut before the first of these, and ends there unless beams are searched.
        """
        inputs = (self.prepare(dialogues) if inputs is None else inputs).to(self.device)
        options = _options(max_new_tokens, temperature, top_p, num_beams=num_beams)
        tokenizer, length = self.processor.tokenizer, inputs["input_ids"].shape[1]
        if stop and num_beams == 1:  # a beam that ended would win against one that goes on
            options["stopping_criteria"] = StoppingCriteriaList([StopStrings(tokenizer, stop, length)])
        with torch.inference_mode():
            output = self.model.generate(**inputs, **options)
        texts = tokenizer.batch_decode(output[:, length:], skip_special_tokens=True)
        return [cut(text, stop).strip() for text in texts]

    def stream(
        self,
        dialogue: Dialogue,
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_p: float | None = None,
        top_k: int = 0,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
        kept: KeptCache | None = None,
        stopped: Event | None = None,
    ) -> Iterator[str]:
        """Yields the answer in pieces, one a token, "" within a word. Closing the iterator stops it, at any time.

        temperature 0 is greedy. top_k: 0 for all tokens. seed: of the tokens that are drawn, None for others each time.
        kept: what was computed for the turns before; it is used, brought up to date and told the number of tokens.
        stopped: when another thread sets it the answer ends, as by closing.
        The model works in a thread of its own; what it raises is raised here.
        """
        kept = KeptCache() if kept is None else kept
        options = _options(max_new_tokens, temperature, top_p, top_k=top_k, repetition_penalty=repetition_penalty)
        streamer = TextIteratorStreamer(self.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
        closed = Event()

        def ends() -> bool:
            return closed.is_set() or (stopped is not None and stopped.is_set())

        def is_stopped(input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
            return torch.full((len(input_ids),), ends(), device=input_ids.device)

        def interrupt(layer: torch.nn.Module, arguments: tuple) -> None:
            if ends() and arguments[0].shape[1] > 1:  # a single token is soon done, and worth keeping
                raise _StoppedError

        def work() -> None:
            layers = [*self.model.model.language_model.layers, *self.model.model.vision_tower.layers]
            hooks = [layer.register_forward_pre_hook(interrupt) for layer in layers]
            criteria = StoppingCriteriaList([is_stopped])
            try:
                with torch.inference_mode(), _seeded(seed, self.device):
                    placed = with_places(dialogue)
                    inputs, store = kept.prepare(self.model, self.processor, placed, each=self._readers.map)
                    output = self.model.generate(**inputs, **options, streamer=streamer, stopping_criteria=criteria)
                store(output[0].tolist())
            except _StoppedError:
                return
            finally:
                for hook in hooks:
                    hook.remove()
                streamer.end()  # after an error too, or the reader below would wait for ever

        with ThreadPoolExecutor(max_workers=1) as pool:
            answer = pool.submit(work)
            try:
                yield from streamer
            finally:
                closed.set()
            answer.result()


def _reader_count() -> int:
    """The cores of this process's share."""
    return max(1, min(MOST_READERS, core_count() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))


def _options(
    max_new_tokens: int,
    temperature: float,
    top_p: float | None,
    *,
    num_beams: int = 1,
    top_k: int = 0,
    repetition_penalty: float = 1.0,
) -> dict:
    options = {"max_new_tokens": max_new_tokens, "num_beams": num_beams, "do_sample": temperature > 0}
    options |= {"repetition_penalty": repetition_penalty}
    if temperature > 0:
        options |= {"temperature": temperature, "top_p": 1.0 if top_p is None else top_p, "top_k": top_k}
    return options


@contextmanager
def _seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """torch's generators begin at `seed` and are afterwards as they were; None leaves them alone."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
