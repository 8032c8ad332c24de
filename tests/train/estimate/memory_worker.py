"""Started by test_memory.py on every rank: trains a step and writes down the bytes of what DeepSpeed holds.

memory_worker.py RECIPE ARM KEYS OUT
"""

import json
import sys
from pathlib import Path
from unittest import mock

from deepspeed import comm
from transformers import TrainerCallback

from llava.train.rank import end_with
from llava.train.ranks.process_group import leave_process_group, rank
from llava.train.recipe.load import load_recipe
from llava.train.stage import prepare


def size(tensors) -> int:
    """Bytes of the storages behind tensors, each once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def held(engine) -> dict[str, int]:
    """Bytes by kind of state, and of a bucket for reduction."""
    zero, moments = engine.optimizer, []
    for state in zero.optimizer.state.values():
        moments += [state["exp_avg"], state["exp_avg_sq"]]
    if engine.zero_optimization_stage() == 3:
        return {
            "weights": size(parameter.ds_tensor for parameter in engine.module.parameters()),
            "gradients": size([zero.grad_partitions_flat_buffer]),
            "optimizer": size(zero.fp32_partitioned_groups_flat) + size(moments),
            "bucket": size(bucket.buffer for bucket in zero.ipg_buckets.values()),
        }
    if engine.zero_optimization_stage() == 1:
        return {
            "weights": size(engine.module.parameters()),
            "gradients": size(zero.fp32_groups_gradients_flat),
            "optimizer": size(zero.fp32_groups_flat_partition) + size(moments),
        }
    return {
        "weights": size(engine.module.parameters()),
        "optimizer": size(zero.single_partition_of_fp32_groups) + size(moments),
    }


class Measure(TrainerCallback):
    """Looks into the engine before its second step: everything has been allocated and nothing freed yet."""

    def __init__(self, trainer, found: dict[str, int]):
        self.trainer, self.found = trainer, found

    def on_train_begin(self, args, state, control, **kwargs):
        engine = self.trainer.deepspeed
        step = engine.step

        def measured(*arguments, **keywords):
            if state.global_step == 1:
                self.found.update(held(engine))
            return step(*arguments, **keywords)

        engine.step = measured
        if engine.zero_optimization_stage() == 2:
            self.measure_buckets(engine.optimizer)
        elif engine.zero_optimization_stage() == 1:
            self.measure_copies(engine)

    def measure_buckets(self, zero):
        """ZeRO-2's live only while gradients are reduced."""
        setup = zero.setup_buckets

        def measured():
            setup()
            self.found["bucket"] = size(buffer for bucket in zero.ipg_buckets.values() for buffer in bucket.buffer)

        zero.setup_buckets = measured

    def measure_copies(self, engine):
        """ZeRO-1's, in float32 as gradients are added up and in bfloat16 as they are sent, at a step's end."""
        reduce = engine.allreduce_bucket

        def measured(bucket, *arguments, **keywords):
            sent = []

            def noted(tensor, *rest, **named):
                sent.append(tensor)
                return all_reduce(tensor, *rest, **named)

            all_reduce = comm.all_reduce
            with mock.patch.object(comm, "all_reduce", noted):
                copy = reduce(bucket, *arguments, **keywords)
            self.found["bucket"] = max(self.found.get("bucket", 0), size([copy, *sent]))
            return copy

        engine.allreduce_bucket = measured


def main(recipe: str, arm: str, keys: str, out: str) -> None:
    stage = prepare(load_recipe(recipe, arm, keys=json.loads(keys)))
    found = {}
    stage.trainer.add_callback(Measure(stage.trainer, found))
    stage.trainer.train()
    if rank() == 0:
        Path(out).write_text(json.dumps(found))
    stage.trainer.accelerator.wait_for_everyone()  # gloo's threads must not outlive a rank that is still spoken to
    leave_process_group()


if __name__ == "__main__":
    end_with(lambda: main(*sys.argv[1:]))
