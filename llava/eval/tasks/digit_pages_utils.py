"""Functions that digit_pages.yaml names. The harness loads this file by its path, outside the package."""

from lmms_eval.api.metrics import anls


def doc_to_visual(doc: dict) -> list:
    """The page, as the one image of the question."""
    return [doc["image"].convert("RGB")]


def process_results(doc: dict, results: list[str]) -> dict[str, float]:
    """ANLS as in DocVQA, and exact match (case and spaces aside) with any accepted answer, overall and for its kind."""
    answer = results[0]
    exact = float(_normalise(answer) in {_normalise(accepted) for accepted in doc["answers"]})
    return {
        "anls": float(anls(references=doc["answers"], predictions=[answer])["anls"]),
        "exact_match": exact,
        f"exact_match_{doc['kind']}": exact,
    }


def _normalise(text: str) -> str:
    return " ".join(text.lower().split())
