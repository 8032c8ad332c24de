"""The seven benchmarks whose answers a judge rates: what each asks, how the reply is read, what a document scores.

The tasks' YAML files name these functions. Questions to the judge are lmms-eval's own, taken from its modules; what
differs is that a failed review stays None, so that the benchmark has no score rather than a wrong one.
"""

import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

from llava.errors import LlavaError
from llava.eval.judge.client import Prompt
from llava.eval.judge.reviews import current
from llava.eval.task import some_key, upstream_tasks

NUMBER = r"(\d+(?:\.\d+)?)"
_loading = threading.Lock()  # of lmms-eval's modules, which the harness's threads ask for at the same time


@dataclass(frozen=True)
class Rubric:
    """prompt: the question to the judge about a document and an answer. parse: the rating in a reply, None without one.

    variants: fields of documents on which the prompt's wording depends.
    """

    prompt: Callable[[dict, str], Prompt]
    parse: Callable[[str], Any]
    variants: tuple[dict[str, str], ...] = ({},)


def prompts_version(task: str) -> str:
    """The first 12 hex digits of the SHA-256 of the task's wordings, with placeholders for a document's fields."""
    rubric = RUBRICS[task]
    prompts = [rubric.prompt(_Placeholders(variant), "{answer}") for variant in rubric.variants]
    text = json.dumps([[prompt.text, prompt.images_first, prompt.max_tokens] for prompt in prompts])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class _Placeholders(dict):
    """A document whose fields are their own names in braces."""

    def __missing__(self, field: str) -> str:
        return f"{{{field}}}"


def mean(scores: list[float | None]) -> float | None:
    """The mean over documents; None when one of them has no review."""
    return None if None in scores else sum(scores) / len(scores)


def percentage(scores: list[float | None]) -> float | None:
    """100 times the mean over documents; None when one of them has no review."""
    value = mean(scores)
    return None if value is None else 100 * value


def ratio(pairs: list[tuple[float, float] | None]) -> float | None:
    """100 times the sum of the points over the sum of the reference's; None when a document has no review."""
    if None in pairs:
        return None
    points, of = (sum(column) for column in zip(*pairs, strict=True))
    return 100 * points / of


def mmvet(doc: dict, results: list[str]) -> dict:
    """MM-Vet: a correctness in [0, 1]."""
    return {"gpt_eval_score": _rating("mmvet", doc, results[0])}


def dc100_en(doc: dict, results: list[str]) -> dict:
    """ImageDC: a description's final score of 100, as a share."""
    rating = _rating("dc100_en", doc, results[0])
    return {"llm_as_judge_eval": None if rating is None else rating / 100}


def live_bench_2407(doc: dict, results: list[str]) -> dict:
    """LiveBench: a rating of 10, as a share."""
    return {"gpt4_eval_score": _live_bench("live_bench_2407", doc, results[0])}


def live_bench_2409(doc: dict, results: list[str]) -> dict:
    """LiveBench: a rating of 10, as a share."""
    return {"gpt4_eval_score": _live_bench("live_bench_2409", doc, results[0])}


def _live_bench(task: str, doc: dict, answer: str) -> float | None:
    if not answer:
        return 0.0  # as lmms-eval does, without asking
    rating = _rating(task, doc, answer)
    return None if rating is None else rating / 10


def llava_in_the_wild(doc: dict, results: list[str]) -> dict:
    """LLaVA-Bench (In-the-Wild): the answer's points and the reference's, for all documents and for this one's kind."""
    pair = _rating("llava_in_the_wild", doc, results[0])
    return {"gpt_eval_llava_all": pair, f"gpt_eval_llava_{doc['category']}": pair}


def llava_wilder_small(doc: dict, results: list[str]) -> dict:
    """LLaVA-Bench-Wilder: the answer's points and the reference's."""
    return {"gpt_eval_llava_all": _rating("llava_wilder_small", doc, results[0])}


def mathvista(doc: dict, results: list[str]) -> dict:
    """MathVista: whether the answer that is found in the response is right; the judge only finds it."""
    response = results[0]
    extraction = _plain_answer(doc, response)
    if extraction is None:
        extraction = _rating("mathvista_testmini_format", doc, response)
    if extraction is None:
        return {"llm_as_judge_eval": None}
    evaluator = _upstream("mathvista.mathvista_evals").MathVistaEvaluator()
    kinds = (doc["question_type"], doc["answer_type"])
    precision = int(doc.get("precision") or 0)  # a float in the data, which `round` would not take
    answer = evaluator.normalize_extracted_answer(extraction, doc["choices"], *kinds, precision)
    return {"llm_as_judge_eval": float(evaluator.safe_equal(answer, doc["answer"]))}


def _plain_answer(doc: dict, response: str) -> str | None:
    """The response itself where it is nothing but an answer (or empty); None where it must be searched."""
    if not response or (doc["question_type"] == "multi_choice" and response in doc["choices"]):
        return response
    kind = {"integer": int, "float": float}.get(doc["answer_type"])
    try:
        return None if kind is None else str(kind(response))
    except ValueError:
        return None


def _rating(task: str, doc: dict, answer: str) -> Any:
    rubric = RUBRICS[task]
    name = next((str(doc[field]) for field in ("question_id", "pid", "id") if field in doc), "")
    return current().review(name, rubric.prompt(doc, answer), rubric.parse)


def _upstream(module: str) -> ModuleType:
    with _loading, some_key():
        return import_module(f"lmms_eval.tasks.{module}")


def _mmvet_prompt(doc: dict, answer: str) -> Prompt:
    truth = doc["answer"].replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
    examples = _upstream("mmvet.utils").MM_VET_PROMPT
    return Prompt(f"{examples}\n{doc['question']} | {truth} | {answer} |", max_tokens=128)


def _dc100_prompt(doc: dict, answer: str) -> Prompt:
    template = _upstream("internal_eval.dc100_en_utils").EVALUATION_PROMPT_TEMPLATE_SIMPLE_V1
    return Prompt(template.format(caption=answer), (doc["image"],))


def _live_bench_prompt(module: str) -> Callable[[dict, str], Prompt]:
    def prompt(doc: dict, answer: str) -> Prompt:
        build = _upstream(f"live_bench.{module}").format_prompt
        text = build(doc["question"], doc["answer"], answer, doc["criteria"])
        return Prompt(text, tuple(doc["images"]), images_first=True)

    return prompt


def _in_the_wild_prompt(doc: dict, answer: str) -> Prompt:
    rules = _in_the_wild_rules()
    if f"llava_bench_{doc['category']}" not in rules:
        raise LlavaError(f"llava_in_the_wild document {doc['question_id']}: unknown category {doc['category']!r}")
    rule = rules[f"llava_bench_{doc['category']}"]
    context = "\n".join(doc["caption"]) if isinstance(doc["caption"], list) else doc["caption"]
    answers = _two_answers(doc["question"], rule["role"], doc["gpt_answer"], answer, rule["prompt"])
    return Prompt(f"[Context]\n{context}\n\n{answers}")


@cache
def _in_the_wild_rules() -> dict[str, dict[str, str]]:
    return json.loads((upstream_tasks() / "llava-in-the-wild" / "rule.json").read_text(encoding="utf-8"))


def _wilder_prompt(doc: dict, answer: str) -> Prompt:
    rules = _upstream("llava_wilder.utils").judge_rules
    return Prompt(_two_answers(doc["Question"], "Assistant", doc["Answer"], answer, rules), (doc["image"],))


def _two_answers(question: str, role: str, reference: str, answer: str, rules: str) -> str:
    """LLaVA-Bench's form: the reference is 1, the answer is 2."""
    return (
        f"[Question]\n{question}\n\n[{role} 1]\n{reference}\n\n[End of {role} 1]\n\n"
        f"[{role} 2]\n{answer}\n\n[End of {role} 2]\n\n[System]\n{rules}\n\n"
    )


def _mathvista_prompt(doc: dict, answer: str) -> Prompt:
    module = _upstream("mathvista.mathvista_evals")
    text = module.MathVistaEvaluator().create_test_prompt(module.DEMO_PROMPT, doc["query"], answer)
    return Prompt(text, max_tokens=256)


def read_share(reply: str) -> float | None:
    """A number in [0, 1] in front of the reply."""
    return _within(re.match(rf"[\s|*]*{NUMBER}(?!\d|\.\d)", reply), 1)


def read_final_score(reply: str) -> float | None:
    """The number in [0, 100] after the last "Final Score:"."""
    scores = re.findall(rf"Final Score[\s:*_]*{NUMBER}", reply, flags=re.IGNORECASE)
    return _within(re.fullmatch(NUMBER, scores[-1]) if scores else None, 100)


def read_points(reply: str) -> tuple[float, float] | None:
    """The points of the answer and of the reference, of 10 each, from a first line of two numbers, reference first."""
    line = reply.strip().split("\n")[0]
    pair = re.fullmatch(rf"[\s*(\[]*{NUMBER}(?:/10)?[\s,;]+{NUMBER}(?:/10)?[\s*)\].]*", line)
    if pair is None:
        return None
    reference, points = float(pair[1]), float(pair[2])
    return (points, reference) if 0 < reference <= 10 and points <= 10 else None


def read_rating(reply: str) -> float | None:
    """The "Rating" in [0, 10] of the JSON object in the reply."""
    try:
        rating = json.loads(reply[reply.index("{") : reply.rindex("}") + 1], strict=False)["Rating"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return _within(re.fullmatch(rf"{NUMBER}(?:/10)?", str(rating).strip()), 10)


def read_text(reply: str) -> str | None:
    """The reply itself."""
    return reply.strip() or None


def _within(score: re.Match | None, top: float) -> float | None:
    if score is None or float(score[1]) > top:
        return None
    return float(score[1])


WILD_KINDS = ("conv", "detail", "complex")
RUBRICS = {
    "mmvet": Rubric(_mmvet_prompt, read_share),
    "dc100_en": Rubric(_dc100_prompt, read_final_score),
    "live_bench_2407": Rubric(_live_bench_prompt("utils"), read_rating),
    "live_bench_2409": Rubric(_live_bench_prompt("utils_v2"), read_rating),
    "llava_in_the_wild": Rubric(_in_the_wild_prompt, read_points, tuple({"category": kind} for kind in WILD_KINDS)),
    "llava_wilder_small": Rubric(_wilder_prompt, read_points),
    "mathvista_testmini_format": Rubric(_mathvista_prompt, read_text),
}
