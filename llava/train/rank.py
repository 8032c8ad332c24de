"""One process of a run, as torchrun and DeepSpeed's launcher start it: `llava train`, with an end that cannot fail.

When Python shuts down it unwinds every thread that asks for its lock. Where such a thread stands in torch's C++, that
aborts the process ("terminate called without an active exception"), and a run whose result is whole is told as failed.
So a rank ends before Python shuts down, with its own status.
"""

import atexit
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn


def end_with(function: Callable[[], int | None]) -> NoReturn:
    """Calls function() and ends this process with what it returns, or as Python does after what it raises.

    What libraries registered for the end of the process runs, and the outputs are flushed.
    """
    try:
        status = function()
    except SystemExit as end:
        if end.code is not None and not isinstance(end.code, int):
            print(end.code, file=sys.stderr)
        status = end.code
    except KeyboardInterrupt:
        status = 128 + signal.SIGINT
    except BaseException:  # told, and no rank goes on after it
        sys.excepthook(*sys.exc_info())
        status = 1
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            status = status or 1  # nobody reads it any more, or the disk is full
    os._exit(status if isinstance(status, int) else int(status is not None))


if __name__ == "__main__":
    # Every step has other lengths, whose blocks would not fit into the gaps of those before. Here rather than in the
    # launch script, whose environment does not reach the hosts of a hostfile; read when torch first needs a GPU.
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")

    from llava import cli

    end_with(lambda: cli.main(["train", *sys.argv[1:]]))
