"""The twins of the 13 benchmarks that need no judge. Every value is computed by hand beside its answers."""

from datasets import Value

from tests.eval.benchmarks.twins import IMAGE, IMAGES, TEXT, TEXTS, WHOLE, Twin, picture, pictures

ONE, TWO, THREE, FOUR = pictures(4)
QUESTIONS = [f"What is to be seen? (document {number})" for number in range(4)]


def rows(**columns) -> list[dict]:
    """Documents from columns."""
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def votes(**counts) -> list[str]:
    """What ten annotators said: votes(red=8, blue=2)."""
    answers = [answer.replace("_", " ") for answer, count in counts.items() for _ in range(count)]
    assert len(answers) == 10
    return answers


# VQA accuracy: the mean over the ten annotators of min(1, others who say it / 3).
VQAV2 = Twin(
    task="vqav2_val",
    features={
        "question_type": TEXT,
        "multiple_choice_answer": TEXT,
        "answers": [{"answer": TEXT, "answer_confidence": TEXT, "answer_id": WHOLE}],
        "image_id": WHOLE,
        "answer_type": TEXT,
        "question_id": WHOLE,
        "question": TEXT,
        "image": IMAGE,
    },
    documents=[
        {
            "question_type": "what",
            "multiple_choice_answer": said[0],
            "answers": [
                {"answer": answer, "answer_confidence": "yes", "answer_id": place + 1}
                for place, answer in enumerate(said)
            ],
            "image_id": 100 + number,
            "answer_type": "other",
            "question_id": 1000 + number,
            "question": QUESTIONS[number],
            "image": image,
        }
        for number, (said, image) in enumerate(
            zip(
                [votes(yes=10), votes(cat=10), votes(red=8, blue=2), votes(red_car=10)],
                [ONE, TWO, THREE, FOUR],
                strict=True,
            )
        )
    ],
    oracle=["yes", "cat", "red", "red car"],
    wrong=["no", "dog", "green", "bus"],
    # Blue: each of the two sees one other, 1/3; each of the eight sees two, 2/3: (2/3 + 16/3) / 10.
    half=["yes", "dog", "blue", "The red car."],
    scores=[1, 0, 0.6, 1],
    score=65.0,
)

OKVQA = Twin(
    task="ok_vqa_val2014",
    features={
        "question_id": TEXT,
        "image": IMAGE,
        "question": TEXT,
        "answers": TEXTS,
        "question_type": TEXT,
        "answer_type": TEXT,
    },
    documents=rows(
        question_id=["2971475", "2971476", "2971477", "2971478"],
        image=[ONE, TWO, THREE, FOUR],
        question=QUESTIONS,
        answers=[votes(pony_tail=10), votes(rain=10), votes(oak=9, elm=1), votes(two=10)],
        question_type=["four", "five", "four", "one"],
        answer_type=["other"] * 4,
    ),
    oracle=["pony tail", "rain", "oak", "2"],
    wrong=["braid", "unanswerable", "ash", "3"],
    # Elm: its annotator sees no other, the nine see one: 9 * 1/3 / 10. "Two" is read as 2.
    half=["Pony tail", "snow", "elm", "two"],
    scores=[1, 0, 0.3, 1],
    score=57.5,
)

GQA = Twin(
    task="gqa",
    features={
        "id": TEXT,
        "imageId": TEXT,
        "question": TEXT,
        "answer": TEXT,
        "fullAnswer": TEXT,
        "isBalanced": Value("bool"),
    },
    documents=rows(
        id=["201307251", "201307252", "201307253", "201307254"],
        imageId=["n161313", "n235859", "n161313", "n235859"],
        question=QUESTIONS,
        answer=["yes", "table", "left", "brown"],
        fullAnswer=["Yes.", "It is a table.", "Left.", "It is brown."],
        isBalanced=[True] * 4,
    ),
    oracle=["yes", "table", "left", "brown"],
    wrong=["no", "chair", "right", "black"],
    half=["Yes.", "chair", "left", "dark brown"],  # case and punctuation do not count
    scores=[1, 0, 1, 0],
    score=50.0,
    beside={
        "testdev_balanced_images": (
            "testdev",
            {"id": TEXT, "image": IMAGE},
            [{"id": "n235859", "image": picture(50, 40, 9)}, {"id": "n161313", "image": picture(30, 70, 8)}],
        )
    },
)

SEED = Twin(
    task="seedbench",
    features={
        **{name: TEXT for name in ("answer", "choice_a", "choice_b", "choice_c", "choice_d")},
        "data_id": TEXT,
        "data_type": TEXT,
        "question": TEXT,
        "question_id": TEXT,
        "question_type_id": Value("int16"),
        "image": IMAGES,
        "segment": [WHOLE],
    },
    documents=rows(
        answer=["A", "B", "C", "D"],
        choice_a=["one"] * 4,
        choice_b=["two"] * 4,
        choice_c=["three"] * 4,
        choice_d=["four"] * 4,
        data_id=["1454426_2591111986", "1454426_2591111987", "P01_01", "P01_02"],
        data_type=["image", "image", "video", "video"],
        question=QUESTIONS,
        question_id=["101669", "101670", "0", "1"],
        question_type_id=[5, 5, 10, 10],
        image=[[ONE], [TWO], [ONE, TWO, THREE], [FOUR, THREE]],
        segment=[None, None, [3, 7], [8, 9]],
    ),
    oracle=["A", "B", "C", "D"],
    wrong=["B", "C", "D", "A"],
    half=["A", "B. two", "A", "d"],  # the first letter counts, in either case
    scores=[1, 1, 0, 1],
    score=75.0,
    values={"seed_image,none": 1.0, "seed_video,none": 0.5},
)

REALWORLDQA = Twin(
    task="realworldqa",
    features={"image": IMAGE, "question": TEXT, "answer": TEXT},
    documents=rows(
        image=[ONE, TWO, THREE, FOUR],
        question=[
            "Which way?\n\nA. Left\nB. Right\nC. Straight\nPlease answer directly with only the letter of the correct "
            "option and nothing else. (document 0)",
            "Which one?\n\nA. The car\nB. The bus\nC. Both (document 1)",
            "Can we turn? (document 2)",
            "How many lanes? (document 3)",
        ],
        answer=["A", "B", "Yes", "2"],
    ),
    oracle=["A", "B", "Yes", "2"],
    wrong=["B", "C", "No", "5"],
    half=["A. Left", "C", "yes.", "two"],  # numbers are compared as they are written
    scores=[1, 0, 1, 0],
    score=50.0,
)

TEXTVQA = Twin(
    task="textvqa_val",
    features={
        "image_id": TEXT,
        "question_id": Value("int32"),
        "question": TEXT,
        "question_tokens": TEXTS,
        "image": IMAGE,
        "image_width": Value("int32"),
        "image_height": Value("int32"),
        "flickr_original_url": TEXT,
        "flickr_300k_url": TEXT,
        "answers": TEXTS,
        "image_classes": TEXTS,
        "set_name": TEXT,
        "ocr_tokens": TEXTS,
    },
    documents=[
        {
            "image_id": f"003a8ae2ef43b9{number}d",
            "question_id": 34602 + number,
            "question": f"what is the brand? (document {number})",
            "question_tokens": ["what", "is", "the", "brand"],
            "image": image,
            "image_width": image.width,
            "image_height": image.height,
            "flickr_original_url": "",
            "flickr_300k_url": "",
            "answers": said,
            "image_classes": ["Camera"],
            "set_name": "val",
            "ocr_tokens": ["nous", "les"],
        }
        for number, (image, said) in enumerate(
            zip(
                [ONE, TWO, THREE, FOUR],
                [votes(nous_les=10), votes(dakota=10), votes(canon=7, kanon=3), votes(stop=10)],
                strict=True,
            )
        )
    ],
    oracle=["nous les", "dakota", "canon", "stop"],
    wrong=["nikon", "ohio", "sony", "go"],
    # Kanon: each of the three sees two others, 2/3; each of the seven sees three: (3 * 2/3 + 7) / 10.
    half=["nous les", "texas", "Kanon", "STOP"],
    scores=[1, 0, 0.9, 1],
    score=72.5,
)

CHARTQA = Twin(
    task="chartqa",
    features={"type": TEXT, "question": TEXT, "answer": TEXT, "image": IMAGE},
    documents=rows(
        type=["human_test", "human_test", "augmented_test", "augmented_test"],
        question=QUESTIONS,
        answer=["10", "10", "50%", "Red"],
        image=[ONE, TWO, THREE, FOUR],
    ),
    oracle=["10", "10", "50%", "Red"],
    wrong=["12", "9", "40%", "Blue"],
    half=["10.4", "10.6", "0.51", "red"],  # off by 4%, 6% and 2%: five are allowed
    scores=[1, 0, 1, 1],
    score=75.0,
    values={"relaxed_human_split,none": 0.5, "relaxed_augmented_split,none": 1.0},
)

DOCVQA = Twin(
    task="docvqa_val",
    features={
        "questionId": TEXT,
        "question": TEXT,
        "question_types": TEXTS,
        "image": IMAGE,
        "docId": WHOLE,
        "ucsf_document_id": TEXT,
        "ucsf_document_page_no": TEXT,
        "answers": TEXTS,
    },
    documents=rows(
        questionId=["49153", "24580", "57349", "24581"],
        question=QUESTIONS,
        question_types=[["figure/diagram"], ["handwritten"], ["form"], ["table/list", "layout"]],
        image=[ONE, TWO, THREE, FOUR],
        docId=[14465, 7078, 4733, 7078],
        ucsf_document_id=["pybv0228", "xnbl0037", "ffbf0023", "xnbl0037"],
        ucsf_document_page_no=["81", "1", "1", "2"],
        answers=[["0.28"], ["invoice"], ["T.F. Riehl"], ["1,200", "1200"]],
    ),
    oracle=["0.28", "invoice", "T.F. Riehl", "1200"],
    wrong=["9", "letter", "nobody", "77"],
    half=["0.28", "invoise", "J. Doe", "1200"],  # one of seven letters is wrong
    scores=[1, 6 / 7, 0, 1],
    score=71.428571,
)

INFOVQA = Twin(
    task="infovqa_val",
    features={
        "questionId": TEXT,
        "question": TEXT,
        "answers": TEXTS,
        "answer_type": TEXTS,
        "image": IMAGE,
        "image_url": TEXT,
        "operation/reasoning": TEXTS,
        "ocr": TEXT,
        "data_split": TEXT,
    },
    documents=[
        {
            "questionId": str(98313 + number),
            "question": QUESTIONS[number],
            "answers": accepted,
            "answer_type": ["single span"],
            "image": image,
            "image_url": "https://example.org/infographic.jpeg",
            "operation/reasoning": [],
            "ocr": "[]",
            "data_split": "val",
        }
        for number, (image, accepted) in enumerate(
            zip([ONE, TWO, THREE, FOUR], [["4 people"], ["abcd"], ["abcd"], ["UK", "England"]], strict=True)
        )
    ],
    oracle=["4 people", "abcd", "abcd", "england"],
    wrong=["9", "xyz", "xyz", "France"],
    half=["4 People", "abxy", "axyz", "uk"],  # two of four letters are enough, one is not
    scores=[1, 0.5, 0, 1],
    score=62.5,
)

OCRBENCH = Twin(
    task="ocrbench",
    features={"dataset": TEXT, "question": TEXT, "question_type": TEXT, "answer": TEXTS, "image": IMAGE},
    documents=rows(
        dataset=["IIIT5K", "HME100k", "STVQA", "SROIE"],
        question=QUESTIONS,
        question_type=[
            "Regular Text Recognition",
            "Handwritten Mathematical Expression Recognition",
            "Scene Text-centric VQA",
            "Key Information Extraction",
        ],
        answer=[["CENTRE"], ["x ^ { 2 }"], ["12", "twelve"], ["TOTAL"]],
        image=[ONE, TWO, THREE, FOUR],
    ),
    oracle=["CENTRE", "x ^ { 2 }", "twelve", "TOTAL"],
    wrong=["LEFT", "y", "7", "SUM"],
    half=["It says centre.", "x^{2}", "21", "tota"],  # the answer must be in the text; spaces do not count in formulas
    scores=[[1, 1], [1, 1], [0, 1], [0, 1]],
    score=50.0,
    values={"ocrbench_accuracy,none": 0.002},  # two points of a thousand
)

AI2D = Twin(
    task="ai2d",
    features={"question": TEXT, "options": TEXTS, "answer": TEXT, "image": IMAGE},
    documents=rows(
        question=QUESTIONS,
        options=[["root", "stem", "leaf", "seed"], ["a", "b", "c", "d"], ["egg", "larva"], ["sun", "moon", "earth"]],
        answer=["2", "3", "0", "1"],
        image=[ONE, TWO, THREE, FOUR],
    ),
    oracle=["C", "D", "A", "B"],
    wrong=["A", "B", "B", "C"],
    half=["C. leaf", "d", "egg", "C"],  # the letter counts, alone in either case or before a dot; the text does not
    scores=[1, 1, 0, 0],
    score=50.0,
)

SCIENCEQA = Twin(
    task="scienceqa_img",
    features={
        "image": IMAGE,
        "question": TEXT,
        "choices": TEXTS,
        "answer": Value("int8"),
        **{name: TEXT for name in ("hint", "task", "grade", "subject", "topic", "category", "skill")},
        **{name: TEXT for name in ("lecture", "solution")},
    },
    documents=[
        {
            "image": image,
            "question": QUESTIONS[number],
            "choices": ["granite", "basalt", "slate"][: 2 + number % 2],
            "answer": answer,
            "hint": "Rocks are made of minerals." if number == 1 else "",
            "task": "closed choice",
            "grade": "grade3",
            "subject": "natural science",
            "topic": "earth-science",
            "category": "Rocks",
            "skill": "Identify rocks",
            "lecture": "",
            "solution": "",
        }
        for number, (image, answer) in enumerate(zip([ONE, TWO, THREE, FOUR], [0, 2, 1, 0], strict=True))
    ],
    oracle=["A", "C", "B", "A"],
    wrong=["B", "A", "A", "C"],
    half=["A", "C. slate", "b", "The answer is A"],  # a letter, or a letter and a dot; not a sentence
    scores=[1, 1, 1, 0],
    score=75.0,
)

NO_MORE = {f"image_{number}": None for number in range(3, 8)}
MMMU = Twin(
    task="mmmu_val",
    features={
        **{name: TEXT for name in ("id", "question", "options", "explanation")},
        **{f"image_{number}": IMAGE for number in range(1, 8)},
        **{name: TEXT for name in ("img_type", "answer", "topic_difficulty", "question_type", "subfield")},
    },
    documents=[
        {
            "id": identifier,
            "question": question,
            "options": options,
            "explanation": "",
            "image_1": ONE,
            "image_2": TWO if "<image 2>" in question + options else None,
            **NO_MORE,
            "img_type": "['Diagrams']",
            "answer": answer,
            "topic_difficulty": "Easy",
            "question_type": kind,
            "subfield": "",
        }
        for identifier, question, options, answer, kind in [
            ("validation_Art_1", "<image 1> Who? (document 0)", "['Dali', 'Miro']", "B", "multiple-choice"),
            (
                "validation_Art_2",
                "Which is like <image 1>? (document 1)",
                "['<image 2>', 'None']",
                "A",
                "multiple-choice",
            ),
            ("validation_Basic_Medical_Science_1", "How many in <image 1>? (document 2)", "[]", "4.5", "open"),
            ("validation_Math_7", "<image 1> Area? (document 3)", "['$1$', '$2$', '$4$']", "C", "multiple-choice"),
        ]
    ],
    oracle=["B", "A", "4.5", "C"],
    wrong=["A", "B", "7", "A"],
    half=["(B)", "B. None", "So it is 4.50.", "A"],  # numbers are compared as numbers
    scores=[1, 0, 1, 0],
    score=50.0,
)

TWINS = [
    VQAV2,
    OKVQA,
    GQA,
    SEED,
    REALWORLDQA,
    TEXTVQA,
    CHARTQA,
    DOCVQA,
    INFOVQA,
    OCRBENCH,
    AI2D,
    SCIENCEQA,
    MMMU,
]
