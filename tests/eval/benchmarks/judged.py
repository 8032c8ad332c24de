"""The twins of the seven judged benchmarks, and the judge that rates their answers by a list.

Every value is computed by hand beside its answers.
"""

import re

from datasets import Value

from tests.eval.benchmarks.twins import IMAGE, IMAGES, TEXT, TEXTS, WHOLE, Twin, picture, pictures
from tests.eval.judge_server import question

ONE, TWO, THREE, FOUR = pictures(4)
QUESTIONS = [f"What is to be seen? (document {number})" for number in range(4)]

# What the judge replies to an answer, for all answers of the twins below that a judge reads.
REPLIES: dict[str, str] = {}

# Where the questions to the judge have the answer.
PLACES = (
    r"Correctness\n.*\| (?P<answer>[^|]*) \|$",  # MM-Vet
    r"^Text Caption: (?P<answer>.*)\nFrom 0 to 100",  # ImageDC
    r"\[Assistant Response\]\n\n(?P<answer>.*)\n\n\[Ground Truth Response\]",  # LiveBench
    r"\[Assistant 2\]\n(?P<answer>.*)\n\n\[End of Assistant 2\]",  # LLaVA-Bench, both
    r"\n\n(?P<answer>[^\n]*)\n\nExtracted answer: $",  # MathVista
)


def judge(payload: dict, _: int) -> str:
    """The scripted judge."""
    text = question(payload)
    (answer,) = [found["answer"] for place in PLACES if (found := re.search(place, text, flags=re.DOTALL))]
    return REPLIES[answer]


def replies(**by_answer: str) -> list[str]:
    """Answers, for which the judge is told what to reply: replies(A_red_car="0.5")."""
    answers = [answer.replace("_", " ") for answer in by_answer]
    REPLIES.update(zip(answers, by_answer.values(), strict=True))
    return answers


MMVET = Twin(
    task="mmvet",
    features={name: TEXT for name in ("question_id", "question", "answer", "image_source", "capability")}
    | {"image": IMAGE},
    documents=[
        {
            "question_id": f"v1_{number}",
            "image": image,
            "question": QUESTIONS[number],
            "answer": truth,
            "image_source": "mmvet.png",
            "capability": capability,
        }
        for number, (image, truth, capability) in enumerate(
            zip(
                [ONE, TWO, THREE, FOUR],
                ["-1<AND>-5", "cat<OR>kitten", "14", "A meme about names."],
                ["ocr,math", "rec", "ocr,spat,math", "rec,know,gen"],
                strict=True,
            )
        )
    ],
    oracle=replies(x_is_minus_one_or_minus_five="1.0", a_kitten="1", fourteen="1.0", It_plays_on_names="1.0"),
    wrong=replies(x_is_three="0.0", a_dog="0", fifteen="0.0", It_is_a_map="0.0"),
    half=[*replies(x_is_minus_one="0.5"), "a kitten", "fifteen", *replies(It_is_about_Iceland="0.4")],
    scores=[0.5, 1, 0, 0.4],
    score=47.5,
)

IMAGEDC = Twin(
    task="dc100_en",
    features={"question": TEXT, "answer": TEXT, "image": IMAGE},
    documents=[
        {"question": f"Describe the image. (document {number})", "answer": "A street with cars.", "image": image}
        for number, image in enumerate([ONE, TWO, THREE, FOUR])
    ],
    oracle=replies(
        A_full_description="All there.\nFinal Score: 100",
        Another_one="All there.\nFinal Score: **100**",
        The_third="Final Score: 100/100",
        The_last="Fine.\n\nFinal Score:\n100",
    ),
    wrong=replies(
        Nothing="Final Score: 0", Noise="Of 100: Final Score: 0", Blank="Final Score: 0", No="Final Score: 0.0"
    ),
    half=replies(
        A_street="Final Score: 35",
        Cars="So 90% is there.\nFinal Score: 80",
        Houses="Final Score: 0",
        Sky="Final Score: 12.5",
    ),
    scores=[0.35, 0.8, 0, 0.125],
    score=31.875,  # 127.5 / 4
    values={"llm_as_judge_eval,none": 0.31875},
)


def rated(rating, words: str = "It says so.") -> str:
    """LiveBench's reply."""
    return f'```json\n{{"Explanation": "{words}", "Rating": {rating}}}\n```'


def live_bench(task: str, subtasks: list[str]) -> Twin:
    """Both editions have the same schema and other subtasks."""
    return Twin(
        task=task,
        features={name: TEXT for name in ("id", "website", "question", "answer", "criteria", "subtask")}
        | {"images": IMAGES},
        documents=[
            {
                "id": str(number),
                "images": images,
                "website": "https://example.org/news",
                "question": QUESTIONS[number],
                "answer": "The bridge is open.",
                "criteria": "10 points for the bridge.",
                "subtask": subtask,
            }
            for number, (images, subtask) in enumerate(
                zip([[ONE], [TWO, THREE], [FOUR], [picture(90, 200, 7)]], subtasks, strict=True)
            )
        ],
        oracle=replies(
            A_bridge_opened=rated(10), The_bridge_is_open=rated('"10"'), It_is_open=rated(10.0), Open=rated(10)
        ),
        wrong=replies(A_bridge_closed=rated(0), No_bridge=rated('"0"'), A_tunnel=rated(0), Nobody_knows=rated(0)),
        # An empty answer is worth nothing and is not shown to the judge.
        half=["A bridge opened", *replies(Something_opened=rated(7), A_tower_opened=rated('"3"')), ""],
        scores=[1, 0.7, 0.3, 0],
        score=50.0,
    )


LIVE_07 = live_bench(
    "live_bench_2407", ["Basic Understanding", "Contextual Analysis", "Deeper Implications", "Further Insights"]
)
LIVE_09 = live_bench(
    "live_bench_2409",
    ["Concrete Recognition", "Analytical Questions", "Divergent Thinking", "Real-world Assistance"],
)

WILD = Twin(
    task="llava_in_the_wild",
    features={
        "question_id": WHOLE,
        "image_id": TEXT,
        **{name: TEXT for name in ("question", "category", "caption", "gpt_answer")},
        "image": IMAGE,
    },
    documents=[
        {
            "question_id": number,
            "image_id": f"00{number}.jpg",
            "question": QUESTIONS[number],
            "category": category,
            "caption": "A painting of a dog.",
            "gpt_answer": "It is a parody of the Mona Lisa.",
            "image": image,
        }
        for number, (image, category) in enumerate(
            zip([ONE, TWO, THREE, FOUR], ["conv", "detail", "complex", "complex"], strict=True)
        )
    ],
    oracle=replies(A_parody="9 9", A_dog_as_Mona_Lisa="8 8\nEqual.", As_Leonardo_did="9.5, 9.5", It_mocks="10 10"),
    wrong=replies(A_cat="10 1", A_car="10 1\nNo.", A_photo="10 1", A_mug="10 1"),
    # Sums, not the mean of ratios: (4 + 9 + 5 + 2) of (8 + 10 + 5 + 9).
    half=replies(A_dog="8 4\nShort.", A_dog_in_a_dress="10 9", A_portrait="5 5", A_king="9 2"),
    scores=[[4, 8], [9, 10], [5, 5], [2, 9]],
    score=62.5,
    lowest=10.0,  # one of ten is the least that a judge gives
    values={
        "gpt_eval_llava_conv,none": 50.0,
        "gpt_eval_llava_detail,none": 90.0,
        "gpt_eval_llava_complex,none": 50.0,  # (5 + 2) / (5 + 9)
    },
)

WILDER = Twin(
    task="llava_wilder_small",
    features={"Question": TEXT, "Answer": TEXT, "image": IMAGE},
    documents=[
        {"Question": QUESTIONS[number], "Answer": "A lighthouse.", "image": image}
        for number, image in enumerate([ONE, TWO, THREE, FOUR])
    ],
    oracle=replies(A_lighthouse="10 10", A_tall_lighthouse="10 10", One_on_a_rock="10 10", By_the_sea="10 10"),
    wrong=replies(A_windmill="10 1", A_chimney="10 1", A_church="10 1", A_tree="10 1"),
    half=replies(A_tower="10 6", A_lit_tower="10 8.5\nNearly.", A_house="10 2", A_ship="10 1"),
    scores=[[6, 10], [8.5, 10], [2, 10], [1, 10]],
    score=43.75,
    lowest=10.0,
)

MATHVISTA = Twin(
    task="mathvista_testmini_format",
    features={
        **{name: TEXT for name in ("pid", "question", "image")},
        "decoded_image": IMAGE,
        "choices": TEXTS,
        "unit": TEXT,
        "precision": Value("float64"),
        **{name: TEXT for name in ("answer", "question_type", "answer_type")},
        "metadata": {
            **{name: TEXT for name in ("category", "context", "grade")},
            "img_height": WHOLE,
            "img_width": WHOLE,
            "language": TEXT,
            "skills": TEXTS,
            **{name: TEXT for name in ("source", "split", "task")},
        },
        "query": TEXT,
    },
    documents=[
        {
            "pid": str(number + 1),
            "question": QUESTIONS[number],
            "image": f"images/{number + 1}.jpg",
            "decoded_image": image,
            "choices": choices,
            "unit": None,
            "precision": precision,
            "answer": answer,
            "question_type": "multi_choice" if choices else "free_form",
            "answer_type": kind,
            "metadata": {
                "category": "math-targeted-vqa",
                "context": "geometry diagram",
                "grade": "high school",
                "img_height": image.height,
                "img_width": image.width,
                "language": "english",
                "skills": ["geometry reasoning"],
                "source": "Geometry3K",
                "split": "testmini",
                "task": "geometry problem solving",
            },
            "query": f"Hint: Answer.\nQuestion: {QUESTIONS[number]}",
        }
        for number, (image, choices, precision, answer, kind) in enumerate(
            [
                (ONE, ["145°", "40°"], None, "145°", "text"),
                (TWO, None, None, "4", "integer"),
                (THREE, None, 1.0, "0.6", "float"),
                (FOUR, None, None, "[2007, 2008]", "list"),
            ]
        )
    ],
    # Choices, whole numbers and decimals that stand alone are not shown to the judge.
    oracle=["145°", "4", "0.6", *replies(From_2007_to_2008="[2007, 2008]")],
    wrong=["40°", "5", "0.7", *replies(In_2009="[2009]")],
    half=[*replies(The_first_one="(A) 145°"), *replies(It_must_be_five="5"), "0.62", "In 2009"],  # 0.62 becomes 0.6
    scores=[1, 0, 1, 0],
    score=50.0,
)

TWINS = [MMVET, IMAGEDC, LIVE_07, LIVE_09, WILD, WILDER, MATHVISTA]
