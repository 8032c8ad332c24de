"""Bytes that a rank sends in an optimizer step under each strategy, counted on two ranks and computed for the real run.

    python benchmarks/communicated.py

Two processes of the tiny model train a step of several micro-batches under DDP (gradients in float32, reduced in the
last micro-batch) and under the shipped DeepSpeed files in bfloat16. What torch.distributed is given is counted, as
multiples of the parameters' number, and taken by ring algorithms: of a tensor of S bytes on n ranks reduce-scatter,
all-gather, reduce and broadcast send (n - 1) / n S bytes a rank, all-reduce twice as many. The same multiples then give
the 0.5B model's bytes.
"""

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from llava.bench.arms import ArmModel, Side, our_loss
from llava.train.rank import end_with

STRATEGIES = ("ddp", "zero1", "zero2", "zero3")
FILES = Path("scripts/train/deepspeed")
PARAMETERS = 893_697_440  # that train in stage 2 with managers
COUNTED = {  # function of torch.distributed: the argument whose bytes count, and how often
    "all_reduce": (0, 2),
    "reduce": (0, 1),
    "broadcast": (0, 1),
    "reduce_scatter_tensor": (1, 1),
    "all_gather_into_tensor": (0, 1),
    "all_gather": (0, 1),
}


def count_collectives(sent: Counter) -> None:
    """Lets torch.distributed's functions add what they are given, in bytes times their share of a ring, to `sent`."""
    for name, (place, share) in COUNTED.items():
        function = getattr(dist, name)

        def counted(*args, function=function, name=name, place=place, share=share, **kwargs):
            given = args[place] if len(args) > place else next(iter(kwargs.values()))
            tensors = given if isinstance(given, list | tuple) else [given]
            if tensors[0].is_floating_point():  # flags and numbers of ranks that agree are none of the step's bytes
                sent[name] += share * sum(tensor.nbytes for tensor in tensors)
            return function(*args, **kwargs)

        setattr(dist, name, counted)


def wrap(strategy: str, model: torch.nn.Module, accumulation: int, sent: Counter) -> tuple:
    """(the wrapped model, a function that runs a micro-batch: its loss's function, whether it is the step's last)."""
    if strategy == "ddp":
        ddp = DistributedDataParallel(model)

        def hook(_, bucket):
            sent["all_reduce by DDP"] += 2 * bucket.buffer().nbytes
            return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda done: done.value()[0])

        ddp.register_comm_hook(None, hook)

        def micro_batch(loss_of, last):
            with nullcontext() if last else ddp.no_sync():
                loss_of(ddp).backward()

        return ddp, micro_batch
    import deepspeed

    config = json.loads((FILES / f"{strategy}.json").read_text())
    config |= {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": accumulation}
    config |= {"train_batch_size": 2 * accumulation, "gradient_clipping": 1.0}
    config |= {"fp16": {"enabled": False}, "zero_allow_untested_optimizer": True}
    config["bf16"]["enabled"] = True
    zero = config["zero_optimization"]
    zero |= {key: 1_000_000 for key, value in zero.items() if value == "auto"}
    zero |= {"stage3_param_persistence_threshold": 0} if strategy == "zero3" else {}
    optimizer = torch.optim.AdamW(parameter for parameter in model.parameters() if parameter.requires_grad)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)

    def micro_batch(loss_of, last):
        engine.backward(loss_of(engine))
        engine.step()

    return engine, micro_batch


def run_rank(strategy: str, accumulation: int) -> None:
    """One of two ranks: trains two steps, and prints the bytes of the second by collective."""
    dist.init_process_group("gloo")
    sent = Counter()
    count_collectives(sent)
    bench = ArmModel("cpu", "float32", vision_layers=4, text_layers=4, tiny=True)
    bench.use(Side("manager", "manager"))
    batch = bench.batch([(56, 56)])
    numbers = sum(parameter.numel() for parameter in bench.model.parameters() if parameter.requires_grad)
    _, micro_batch = wrap(strategy, bench.model, accumulation, sent)
    for _ in range(2):
        sent.clear()
        for number in range(accumulation):
            micro_batch(lambda wrapped: our_loss(wrapped, batch), number == accumulation - 1)
    if strategy == "ddp":
        del sent["all_reduce"]  # the hook's own
    if dist.get_rank() == 0:
        print(json.dumps({"numbers": numbers, "sent": sent}), flush=True)
    dist.barrier()


def measured(strategy: str, accumulation: int) -> float:
    """Bytes per trained parameter in a step, before the factor (n - 1) / n."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__]
    command += ["--rank_of", strategy, "--accumulation", str(accumulation)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"{strategy}: {done.stderr[-3000:]}")
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith('{"numbers"')))
    return sum(found["sent"].values()) / found["numbers"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rank_of", choices=STRATEGIES, help=argparse.SUPPRESS)
    parser.add_argument("--accumulation", type=int, default=4)
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=STRATEGIES)
    options = parser.parse_args()
    if options.rank_of:
        end_with(lambda: run_rank(options.rank_of, options.accumulation))
    print("strategy  bytes a parameter, a step of 2 and 4 micro-batches  GB a rank of 16: of 16 and 32 micro-batches")
    for strategy in options.strategies:
        two, four = (measured(strategy, accumulation) for accumulation in (2, 4))
        each = (four - two) / 2  # of a micro-batch; the rest is the step's
        real = [(two + (count - 2) * each) * PARAMETERS * 15 / 16 / 1e9 for count in (16, 32)]
        print(f"{strategy:<10}{two:>24.2f}{four:>24.2f}{real[0]:>30.1f}{real[1]:>10.1f}", flush=True)


if __name__ == "__main__":
    main()
