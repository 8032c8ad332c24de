import numpy as np
import pytest
import torch

from llava.two_tower.metrics import RECALLS, ranks_of, vqa_score
from llava.two_tower.retrieval import NOT_RANKED, Retrieval
from tests.two_tower.scoring import score_all
from tests.two_tower.tiny import tiny_model

IMAGES, TEXTS = 7, 12
IMAGE_OF_TEXT = np.array([0, 1, 1, 2, 3, 3, 4, 4, 4, 5, 6, 6])


def made_up():
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(IMAGES, 3, 16, 16, generator=generator)
    ids = torch.randint(5, 40, (TEXTS, 9), generator=generator)
    lengths = torch.randint(3, 10, (TEXTS, 1), generator=generator)
    mask = (torch.arange(9) < lengths).long()
    ids[:, 0] = 0
    return pixels, ids * mask + (1 - mask), mask


def slow_scores(model, k):
    """Both directions apart, every pair by the whole model, as the reference evaluates."""
    pixels, ids, mask = made_up()
    with torch.inference_mode():
        images = model.contrastive.embed_image(model.model.encode_image(pixels).cls)
        texts = model.contrastive.embed_text(model.model.encode_text(ids, mask).cls)

        def logit(image, text):
            one = model.model.encode_image(pixels[image][None])
            return model.match(model.model.encode_text(ids[text][None], mask[text][None]), one, mask[text][None])[0, 1]

        by_image = torch.full((IMAGES, TEXTS), NOT_RANKED)
        by_text = torch.full((IMAGES, TEXTS), NOT_RANKED)
        similar = images @ texts.T
        for image in range(IMAGES):
            for text in similar[image].argsort(descending=True)[:k].tolist():
                by_image[image, text] = logit(image, text)
        for text in range(TEXTS):
            for image in similar[:, text].argsort(descending=True)[:k].tolist():
                by_text[image, text] = logit(image, text)
    return torch.maximum(by_image, by_text).numpy()


@pytest.mark.parametrize("k", [3, 20])
def test_near_pairs_are_scored_once_and_as_in_both_directions(k):
    model = tiny_model("retrieval")
    pixels, ids, mask = made_up()
    batches = ((ids[first : first + 5], mask[first : first + 5]) for first in range(0, TEXTS, 5))
    scores = score_all(Retrieval(model, min(k, 12), batch_size=5), batches, pixels)
    expected = slow_scores(model, k)
    assert np.abs(scores - expected).max() < 1e-5
    assert (scores == NOT_RANKED).any() == (k == 3)
    assert scores[scores > NOT_RANKED].std() > 0.01


def slow_recall(scores, k, of_images):
    """By sorting, of scores that are all different."""
    found = []
    for query in range(IMAGES if of_images else TEXTS):
        order = np.argsort(-(scores[query] if of_images else scores[:, query]))[:k]
        right = IMAGE_OF_TEXT[order] == query if of_images else order == IMAGE_OF_TEXT[query]
        found.append(right.any())
    return np.mean(found)


def test_recalls_are_those_of_sorting():
    scores = np.random.default_rng(0).normal(size=(IMAGES, TEXTS))
    scores[IMAGE_OF_TEXT, np.arange(TEXTS)] += 0.5
    recalls = ranks_of(scores, IMAGE_OF_TEXT).recalls()
    expected = {f"{name}_r{k}": slow_recall(scores, k, name == "tr") for name in ("ir", "tr") for k in RECALLS}
    assert recalls == pytest.approx({**expected, "r_mean": np.mean(list(expected.values()))})
    assert 0 < recalls["ir_r1"] < 1
    assert 0 < recalls["tr_r1"] < 1


def test_what_was_not_ranked_is_not_found():
    ranks = ranks_of(np.full((IMAGES, TEXTS), NOT_RANKED), IMAGE_OF_TEXT)
    assert ranks.of_texts.tolist() == [IMAGES] * TEXTS
    assert ranks.of_images.tolist() == [TEXTS + 1 - count for count in np.bincount(IMAGE_OF_TEXT)]


def test_an_answer_scores_how_right_it_is():
    assert [vqa_score(answer, {"red": 0.9, "2": 1.0}) for answer in ("red", "2", "blue")] == [0.9, 1.0, 0.0]
