"""torchrun, for scripts/train/launch.sh: how a run failed is told in one line, without torchrun's own traceback.

Takes torchrun's arguments. Ranks that end with TOLD have said why; any other end names the rank that was first.
"""

import logging
import platform
import signal
import sys

from torch.distributed import DistError, run
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

TOLD = (2, 128 + signal.SIGINT, 128 + signal.SIGTERM)


def main(argv: list[str]) -> int:
    """Runs the processes of this host to their end; returns the exit status of the first that failed, or 0."""
    logging.disable(logging.ERROR)  # the launcher's remarks; the ranks have their own
    arguments = run.parse_args(argv)
    try:
        run.run(arguments)
    except ChildFailedError as error:
        rank, failure = min(error.failures.items(), key=lambda item: item[1].timestamp)
        killed = failure.exitcode < 0
        if failure.exitcode not in TOLD:
            how = f"was killed by {signal.Signals(-failure.exitcode).name}" if killed else "failed"
            place = f"rank {rank} on {platform.node()} (process {failure.pid})"
            print(f"error: {place} {how}; all processes of this host were stopped", file=sys.stderr)
        return 128 - failure.exitcode if killed else failure.exitcode
    except SignalException as stopped:
        return 128 + stopped.sigval
    except DistError as error:
        reason = str(error).partition("\n")[0]
        place = f"{arguments.master_addr}:{arguments.master_port}"
        print(f"error: the {arguments.nnodes} hosts did not meet at {place}: {reason}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
