"""Errors of a request, as a server is to answer them.

`transformers serve` (5.23) answers 500 and no reason to whatever a processor or model raises, save starlette's
HTTPException, whose status and sentence it sends. So in a process that serves, and there alone, an error is that, too.
"""

import sys

from llava.errors import LlavaError

BAD_REQUEST = 400


def of_request(error: LlavaError) -> LlavaError:
    """The same error; in a process that serves models, one that is answered with 400 and its sentence."""
    if "transformers.cli.serving.server" not in sys.modules:
        return error
    from starlette.exceptions import HTTPException

    class RequestError(type(error), HTTPException):
        def __init__(self, message: str):
            HTTPException.__init__(self, BAD_REQUEST, message)
            self.args = (message,)

        __str__ = type(error).__str__

    return RequestError(str(error))
