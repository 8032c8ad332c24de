"""The judge's client and the review store against a scripted server."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from PIL import Image

from llava.errors import LlavaError
from llava.eval.judge import client
from llava.eval.judge.client import Judge, Prompt, Reply, ReviewError
from llava.eval.judge.reviews import Reviewer, ReviewStore, with_reviews
from llava.eval.judge.settings import JudgeSettings, judge_settings
from tests.eval.judge_server import DEAD, Answer, JudgeServer, question

SECRET = "sk-never-to-be-seen"


def number(reply):
    return float(reply) if reply.replace(".", "", 1).isdigit() else None


@pytest.fixture(autouse=True)
def pauses(monkeypatch):
    """The seconds that the client sleeps, which are not slept; the environment holds a key and no other address."""
    slept = []

    class Clock:
        monotonic = staticmethod(time.monotonic)

        @staticmethod
        def sleep(seconds):
            if seconds > 0:
                slept.append(seconds)

    monkeypatch.setattr(client, "time", Clock)
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    for name in ("OPENAI_API_URL", "OPENAI_BASE_URL", "MODEL_VERSION"):
        monkeypatch.delenv(name, raising=False)
    return slept


def ask(*script, prompt=None, **settings):
    """The reply to a prompt where the server answers its requests by `script` in turn; and the server."""
    server = JudgeServer(lambda _, index: script[min(index, len(script) - 1)])
    with server.running():
        return Judge(JudgeSettings(server.url, "j", **settings)).ask(prompt or Prompt("2?"), number), server


def failure(*script, **settings):
    with pytest.raises(ReviewError) as caught:
        ask(*script, **settings)
    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)
    return caught.value


def test_a_good_reply_carries_the_key_the_model_and_the_pictures(make_image):
    prompt = Prompt("2?", (make_image(5, 4), make_image(3, 3)), images_first=True, max_tokens=9)
    reply, server = ask(" 0.5\n", prompt=prompt)
    assert reply == Reply("0.5", prompt_tokens=11, reply_tokens=3)
    assert server.keys == {f"Bearer {SECRET}"}
    ((_, payload),) = server.requests
    assert {name: payload[name] for name in ("model", "max_tokens", "temperature")} == {
        "model": "j",
        "max_tokens": 9,
        "temperature": 0.0,
    }
    (message,) = payload["messages"]
    assert [part["type"] for part in message["content"]] == ["image_url", "image_url", "text"]
    assert message["content"][0]["image_url"]["url"].startswith("data:image/png;base64,iVBOR")


PASSING = {
    "server error": Answer(status=500, body="oh dear"),
    "overloaded": Answer(status=503),
    "rate limit": Answer(status=429),
    "dead": DEAD,
    "malformed": "well, perhaps",
    "empty": "  ",
    "refusal": Answer(refusal="I cannot rate this."),
    "filtered": Answer(text="0.5", finish_reason="content_filter"),
    "no completion": Answer(body="<html>welcome</html>"),
    "no choice": Answer(body='{"choices": []}'),
    "no text": Answer(body='{"choices": [{"message": null}]}'),
}


@pytest.mark.parametrize("first", PASSING.values(), ids=PASSING)
def test_what_may_pass_is_asked_again(first, pauses):
    reply, server = ask(first, first, "0.5")
    assert reply.text == "0.5"
    assert len(server.requests) == 3
    repeated_hotter = [payload["temperature"] for _, payload in server.requests] == [0.0, 0.5, 1.0]
    assert repeated_hotter == (pauses == [])  # other words instead of another time
    assert pauses in ([], [1.0, 2.0])


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Answer(status=500, body=f"no luck\nwith {SECRET}"), "status 500: no luck with ***"),
        (DEAD, "no connection"),
        ("well, perhaps", "unreadable reply: 'well, perhaps'"),
        (Answer(refusal="I cannot."), "the judge refused: I cannot."),
        (Answer(body=f"<html>{SECRET}"), r"not a chat completion: <html>***"),
        ("", "empty reply"),
    ],
)
def test_what_does_not_pass_fails_with_its_reason(answer, reason, pauses):
    error = failure(answer, retries=3)
    assert str(error).startswith(reason)
    assert not error.final
    assert pauses in ([], [1.0, 2.0, 4.0])


def test_a_slow_answer_is_not_waited_for():
    assert "no answer within 0.2 s" in str(failure(Answer("0.5", wait=30), timeout=0.2, retries=0))


@pytest.mark.parametrize(
    ("status", "reason"), [(401, "does not accept the key (401)"), (403, "refuses this key"), (404, "--judge_model")]
)
def test_a_bad_key_or_address_ends_it_at_once(status, reason, pauses):
    error = failure(Answer(status=status, body=f"Incorrect API key provided: {SECRET}"))
    assert reason in str(error)
    assert error.final
    assert pauses == []


def test_a_key_in_a_reply_is_not_kept():
    server = JudgeServer(lambda *_: f"0.5 with {SECRET}")
    with server.running():
        assert Judge(JudgeSettings(server.url, "j")).ask(Prompt("a"), str).text == "0.5 with ***"


def test_a_request_that_is_wrong_in_itself_is_not_repeated(pauses):
    error = failure(Answer(status=400, body="image too large"), "0.5")
    assert (str(error), error.final, pauses) == ("status 400: image too large", False, [])


def test_what_a_model_does_not_take_is_left_out():
    refusals = {"max_tokens": "max_completion_tokens", "temperature": None}

    def picky(payload, _):
        wrong = next((name for name in refusals if name in payload), None)
        return "0.5" if wrong is None else Answer(status=400, body=json.dumps({"error": {"param": wrong}}))

    with JudgeServer(picky).running() as server:
        client = Judge(JudgeSettings(server.url, "j", retries=0))
        assert client.ask(Prompt("a", max_tokens=9), number).text == client.ask(Prompt("b"), number).text == "0.5"
    first, second, third, other = (sorted(set(payload) - {"model", "messages"}) for _, payload in server.requests)
    assert (first, second) == (["max_tokens", "temperature"], ["max_completion_tokens", "temperature"])
    assert third == other == ["max_completion_tokens"]
    assert server.requests[2][1]["max_completion_tokens"] == 4096 + 9


@pytest.mark.parametrize("in_words", [False, True])
def test_retry_after_is_kept_to(pauses, in_words):
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=7), usegmt=True)
    ask(Answer(status=429, headers={"Retry-After": date if in_words else "7"}), "0.5")
    assert pauses == [pytest.approx(7, abs=1.5)]
    assert "asks to wait 4000 s" in str(failure(Answer(status=429, headers={"Retry-After": "4000"}), "0.5"))


def test_a_rate_limit_spaces_the_requests_of_all_threads(pauses):
    server = JudgeServer(lambda *_: "1")
    with server.running(), ThreadPoolExecutor(4) as threads:
        client = Judge(JudgeSettings(server.url, "j", per_minute=30))
        list(threads.map(lambda index: client.ask(Prompt(str(index)), number), range(4)))
    assert sorted(pauses) == pytest.approx([2, 4, 6], abs=0.5)


def test_settings_come_from_flags_then_from_the_environment():
    environment = {"OPENAI_BASE_URL": "http://b/v1/", "MODEL_VERSION": "m"}
    assert judge_settings(None, None, {}) is None
    assert judge_settings(None, None, environment) == JudgeSettings("http://b/v1", "m")
    assert judge_settings("http://c/v1/chat/completions", "n", environment) == JudgeSettings("http://c/v1", "n")
    assert judge_settings(None, None, environment | {"OPENAI_API_URL": "http://a"}).url == "http://a"
    with pytest.raises(LlavaError, match="--judge_model NAME or MODEL_VERSION"):
        judge_settings("http://c/v1", None, {})


@pytest.mark.parametrize(
    ("url", "settings", "message"),
    [
        ("localhost:8000", {}, "must be a base URL like https://host/v1"),
        ("http://host:port/v1", {}, "must be a base URL"),
        (f"http://me:{SECRET}@host/v1", {}, "must hold no user, password or query; a key goes into OPENAI_API_KEY"),
        (f"http://host/v1?key={SECRET}", {}, "must hold no user"),
        ("http://host", {"parallel": 0}, "--judge_parallel must be at least 1, found 0"),
        ("http://host", {"per_minute": 0}, "--judge_per_minute must be at least 1, found 0"),
        ("http://host", {"retries": -1}, "--judge_retries must be at least 0, found -1"),
        ("http://host", {"timeout": 0}, "--judge_timeout must be above 0, found 0"),
        ("http://host", {"prices": (1, -2)}, "--judge_prices must not be negative, found -2"),
    ],
)
def test_wrong_settings_get_one_line_without_the_key(url, settings, message):
    with pytest.raises(LlavaError, match=message) as caught:
        JudgeSettings(url, "j", **settings)
    assert SECRET not in str(caught.value)


def test_a_key_that_no_header_can_hold_is_not_shown(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", f"{SECRET}\nü")
    with pytest.raises(LlavaError, match="holds characters that no key can have") as caught:
        Judge(JudgeSettings("http://host/v1", "j"))
    assert SECRET not in str(caught.value)


def test_the_key_of_a_review_says_all_that_decides_it(make_image):
    picture = make_image(6, 5)
    changed = picture.copy()
    changed.putpixel((5, 4), (1, 2, 3))
    prompts = [
        Prompt("a"),
        Prompt("b"),
        Prompt("a", max_tokens=7),
        Prompt("a", (picture,)),
        Prompt("a", (changed,)),
        Prompt("a", (picture, changed)),
        Prompt("a", (picture,), images_first=True),
    ]
    keys = {prompt.key(model) for prompt in prompts for model in "jk"}
    assert len(keys) == 2 * len(prompts)
    assert Prompt("a", (picture.copy(),)).key("j") == Prompt("a", (picture,)).key("j")


def test_tokens_are_estimated():
    # 1024 x 1024 becomes 768 x 768: 2 x 2 tiles; 4096 x 8192 becomes 768 x 1536: 2 x 3; 300 x 512: one.
    for size, tokens in (((1024, 1024), 765), ((4096, 8192), 85 + 170 * 6), ((300, 512), 255)):
        assert Prompt("x" * 40, (Image.new("L", size),)).tokens() == 10 + tokens


# Reviews: a question is its own rating.


def reviewer(file, url="http://127.0.0.1:1/v1", **settings):
    asking = Reviewer(JudgeSettings(url, "j", **{"retries": 0, "parallel": 2} | settings), file)
    asking.begin(counting=False)
    return asking


def reviews(reviewed, count, threads=1):
    prompts = [Prompt(f"0.{index}") for index in range(count)]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda prompt: reviewed.review("d", prompt, number), prompts))


def echo(payload, _):
    return question(payload)


def test_a_judge_that_dies_half_way_costs_only_what_is_missing(tmp_path):
    file = tmp_path / "run" / "t.reviews.jsonl"
    expected = [index / 10 for index in range(6)]
    with JudgeServer(echo, dies_after=4).running() as server:
        first = reviewer(file, server.url)
        assert reviews(first, 6) == [*expected[:4], None, None]
    assert (first.reviews, first.failed) == (6, 2)
    assert first.summary().startswith("2 of 6 reviews failed: no connection")
    with JudgeServer(echo).running() as server:
        second = reviewer(file, server.url)
        assert reviews(second, 6) == expected
    assert [question(payload) for _, payload in server.requests] == ["0.4", "0.5"]
    assert (second.reviews, second.failed) == (6, 0)
    assert second.summary() == "judge j: 6 reviews, 22 prompt and 6 reply tokens used now"
    assert reviews(reviewer(file), 6) == expected  # and now without any judge
    assert SECRET not in file.read_text()
    assert len(file.read_text().splitlines()) == 6


def test_a_half_written_line_is_dropped_and_a_damaged_one_is_named(tmp_path):
    file = tmp_path / "t.reviews.jsonl"
    store = ReviewStore(file)
    store.add("a", "j", "d", Reply("é\u2028\n1"))
    store.add("b", "j", "d", Reply("2"))
    whole = file.read_bytes()
    file.write_bytes(whole[:-9])
    store = ReviewStore(file)
    assert (store.get("a"), store.get("b")) == ("é\u2028\n1", None)
    assert store.add("b", "j", "d", Reply("2")) == "2"
    assert store.add("b", "j", "d", Reply("3")) == "2"
    assert file.read_bytes() == whole
    file.write_text('{"key": 1}\n' + whole.decode(), encoding="utf-8")
    with pytest.raises(LlavaError, match="line 1 is damaged"):
        ReviewStore(file)


def test_a_stored_reply_that_is_no_longer_readable_is_asked_for_again(tmp_path):
    file = tmp_path / "t.reviews.jsonl"
    ReviewStore(file).add(Prompt("0.1").key("j"), "j", "d", Reply("about a tenth"))
    with JudgeServer(echo).running() as server:
        assert reviews(reviewer(file, server.url), 2) == [0.0, 0.1]
    assert len(server.requests) == 2
    assert reviews(reviewer(file), 2) == [0.0, 0.1]


def test_a_judge_is_given_up_after_many_failures_in_a_row_but_not_before(tmp_path):
    answers = iter(["?"] * 7 + ["1"] + ["?"] * 50)
    with JudgeServer(lambda *_: next(answers)).running() as server:
        failing = reviewer(tmp_path / "t.jsonl", server.url)
        reviews(failing, 40)
    assert (len(server.requests), failing.reviews, failing.failed) == (16, 40, 39)


def test_a_bad_key_is_asked_once(tmp_path):
    with JudgeServer(lambda *_: Answer(status=401, body=SECRET)).running() as server:
        refused = reviewer(tmp_path / "t.jsonl", server.url)
        assert reviews(refused, 5) == [None] * 5
    assert len(server.requests) == 1
    assert refused.summary() == (
        f"5 of 5 reviews failed: the judge at {server.url} does not accept the key (401); check OPENAI_API_KEY"
    )
    assert not (tmp_path / "t.jsonl").exists()


def test_an_unreachable_judge_is_given_up_once_its_retries_are_used(tmp_path, pauses):
    unreachable = reviewer(tmp_path / "t.jsonl", retries=3)
    assert reviews(unreachable, 30) == [None] * 30
    assert pauses == [1.0, 2.0, 4.0]
    assert unreachable.summary().startswith("30 of 30 reviews failed: no connection to http://127.0.0.1:1/v1 (")


def test_several_reviews_run_at_a_time(tmp_path):
    barrier = threading.Barrier(3, timeout=60)

    def together(payload, _):
        barrier.wait()
        return question(payload)

    with JudgeServer(together).running() as server:
        assert None not in reviews(reviewer(tmp_path / "t.jsonl", server.url, parallel=3), 6, threads=3)
    assert server.most_at_once == 3
    assert len([json.loads(line)["key"] for line in (tmp_path / "t.jsonl").read_text().splitlines()]) == 6


def test_the_estimate_counts_what_is_not_stored(tmp_path, capsys):
    file = tmp_path / "t.jsonl"
    with JudgeServer(echo).running() as server:
        reviews(reviewer(file, server.url), 2)
        waiting = Reviewer(JudgeSettings(server.url, "j", prices=(2.5, 10)), file)
        assert reviews(waiting, 5) == [0.0, 0.1, None, None, None]
        waiting.review("d", Prompt("x" * 4_000_000), number)
        assert len(server.requests) == 2
        assert waiting.estimate() == (
            f"judge j at {server.url}: 4 reviews to ask for, 2 stored; about 1,000,000 prompt tokens, "
            "at most 4,096 reply tokens; about 2.50 and at most 2.54 at the given prices"
        )
        little = Reviewer(JudgeSettings(server.url, "j", prices=(0.15, 0.6)), file)
        little.review("d", Prompt("x" * 1000, max_tokens=100), number)  # 250 tokens
        assert little.estimate().endswith("; about 0.000037 and at most 0.000097 at the given prices")
        asking = Reviewer(JudgeSettings(server.url, "j"), file)
        assert with_reviews(asking, lambda: reviews(asking, 3)) == [0.0, 0.1, 0.2]
        lines = capsys.readouterr().err.splitlines()
        assert lines[0].endswith("about 0 prompt tokens, at most 1,024 reply tokens; no price given (--judge_prices)")
        assert lines[1:] == ["judge j: 3 reviews, 11 prompt and 3 reply tokens used now"]
        assert (asking.reviews, asking.failed) == (3, 0)
        again = Reviewer(JudgeSettings(server.url, "j"), file)
        assert with_reviews(again, lambda: reviews(again, 3)) == [0.0, 0.1, 0.2]
        assert capsys.readouterr().err == f"judge j at {server.url}: 0 reviews to ask for, 3 stored\n"
        assert (again.reviews, again.failed, len(server.requests)) == (3, 0, 3)
