"""How long the rest of a bench takes, by what was measured and by the runs that are done, and the disk it needs."""

from collections.abc import Sequence
from statistics import mean

from llava.bench.data_sets import data_set, parts_of
from llava.bench.jobs import Bench, Job, Training

LOG_SIZE = 50_000  # bytes of a job's log and task
ANSWER_SIZE = 60  # bytes of a question and its answer in a result, and once more in results.json


def all_jobs(bench: Bench) -> list[Job]:
    """Every job of the bench, in the order in which they are done."""
    trainings = [job for row in bench.rows for job in bench.measurements(row)]
    pairs = [(data, row) for data in bench.data for row in bench.rows]
    trainings += [job for pair in pairs for job in bench.grid(*pair)]
    trainings += [job for pair in pairs for job in bench.runs(*pair)]
    return [*bench.makings(), *trainings]


def disk_needed(bench: Bench) -> int:
    """Bytes of the whole bench. No model is kept."""
    settings = bench.settings
    total = sum(LOG_SIZE for _ in all_jobs(bench))
    for data in bench.data:
        entry = data_set(data)
        samples = settings.captions + settings.samples + settings.held_out + settings.documents
        total += samples * entry.sample_size + parts_of(data, settings.parts).size * (1 + bench.at_once)
        questions = settings.documents * entry.questions_per_document
        total += 2 * len(bench.rows) * bench.seeds * questions * ANSWER_SIZE
    return total


def seconds_left(bench: Bench, jobs: Sequence[Job]) -> float | None:
    """How long those of `jobs` that train and are not done will take; None before anything was measured.

    A job takes its steps at the speed that was measured of its row, and what starting and answering took where it was
    measured; where jobs are done already, what they took decides how much longer they take side by side.
    """
    measured = {
        job.name: result for row in bench.rows for job in bench.measurements(row) if (result := bench.result(job))
    }
    if not measured:
        return None

    def predicted(job: Training) -> float:
        of_row = measured.get(Training("measure", job.data, job.row).name)
        of_row = [of_row] if of_row else list(measured.values())
        step = mean(one["step_seconds"]["clock"] for one in of_row)
        around = mean(one["seconds"] - one["training_seconds"] for one in of_row)
        questions = bench.settings.documents * data_set(job.data).questions_per_document
        answers = questions * mean(one["seconds_per_answer"] for one in of_row)
        if job.kind == "measure":
            return around + step * bench.steps(job)
        captions = bench.settings.captions / of_row[0]["batch_size"]  # steps, of which none costs more than others
        return around + step * (captions + bench.steps(job)) + (answers if job.kind == "run" else 0)

    trainings = [job for job in jobs if isinstance(job, Training)]
    done = [
        (result["seconds"], predicted(job))
        for job in trainings
        if job.kind != "measure" and (result := bench.result(job))
    ]
    slower = sum(took for took, _ in done) / sum(thought for _, thought in done) if done else 1.0
    alone = sum(predicted(job) for job in trainings if job.kind == "measure" and bench.result(job) is None)
    others = sum(predicted(job) for job in trainings if job.kind != "measure" and bench.result(job) is None)
    return alone + others * slower / bench.at_once
