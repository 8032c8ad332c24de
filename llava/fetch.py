"""Images and videos from the web: into a file, within limits of size and time, from the host that was named.

Whoever types a URL may name any host, also one of a private network or this machine: what comes back is only looked at.
A server's clients are strangers, whose URLs may lead to public addresses alone. A redirect, which somebody else wrote,
may not lead to another host, nor from https to http.
"""

import time
import urllib.error
import urllib.request
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

from llava import __version__
from llava.constants import MEBIBYTE
from llava.errors import DataError
from llava.public_hosts import PublicHandler

SECONDS_OF_SILENCE = 10
SECONDS = 120
REDIRECTS = (301, 302, 303, 307, 308)
MOST_REDIRECTS = 5


def is_url(text: str) -> bool:
    """Whether it is written like a URL, of whatever scheme."""
    scheme, separator, rest = text.partition("://")
    return bool(separator and rest) and scheme.isalnum()


def fetch(url: str, target: Path, kind: str, limit: int, public: bool = False) -> None:
    """Writes what is found at `url` to the file `target`. kind: `image` or `video`. limit: bytes.

    public: whether only hosts of the public internet are asked, then directly, without a proxy.
    Raises DataError with one line that names the URL: for another scheme than http and https, a host that cannot be
    reached or is not public, an answer that is an error, a web page, too large or too slow, and a redirect to
    elsewhere.
    """
    check_url(url)
    deadline, place = time.monotonic() + SECONDS, url
    try:
        for _ in range(MOST_REDIRECTS + 1):
            with _open(place, public) as response:
                if response.status not in REDIRECTS:
                    _save(response, target, url, kind, limit, deadline)
                    return
                place = _followed(url, place, response.headers.get("Location", ""))
    except TimeoutError:
        raise DataError(f"{url}: nothing came for {SECONDS_OF_SILENCE} seconds") from None
    except urllib.error.URLError as error:
        silent = isinstance(error.reason, TimeoutError)
        reason = f"nothing came for {SECONDS_OF_SILENCE} seconds" if silent else error.reason
        raise DataError(f"{url} cannot be reached: {reason}") from None
    except UnicodeError as error:  # of a host's name, and of characters that a URL writes as %XX
        raise DataError(f"{url} is not a URL: {error}") from None
    except (HTTPException, OSError) as error:  # the connection broke, or it does not speak HTTP
        raise DataError(f"{url} cannot be read: {' '.join(str(error).split()) or type(error).__name__}") from None
    raise DataError(f"{url} is refused: it redirects more than {MOST_REDIRECTS} times")


def _open(place: str, public: bool) -> HTTPResponse | urllib.error.HTTPError:
    """The response, also where it is an error or a redirect."""
    request = urllib.request.Request(place, headers={"User-Agent": f"llava-ov-manager/{__version__}"})
    handlers = [urllib.request.ProxyHandler({}), PublicHandler] if public else []
    try:
        return urllib.request.build_opener(_NoRedirect, *handlers).open(request, timeout=SECONDS_OF_SILENCE)
    except urllib.error.HTTPError as response:
        return response


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any) -> None:
        return None


def _followed(url: str, place: str, location: str) -> str:
    """Where a redirect leads. Raises DataError unless it is the same host and port, or their https."""
    try:
        target = urljoin(place, location.strip())
        before, after = urlsplit(place), urlsplit(target)
        secured = (before.scheme, after.scheme) == ("http", "https") and not before.port and not after.port
        same = (before.scheme, before.port) == (after.scheme, after.port) or secured
        allowed = bool(location) and same and before.hostname == after.hostname
    except ValueError:  # a port that is no number, say
        allowed = False
    if not allowed:
        raise DataError(f"{url} is refused: it redirects to {location or 'nowhere'}, not to the same host")
    return target


def _save(
    response: HTTPResponse | urllib.error.HTTPError, target: Path, url: str, kind: str, limit: int, deadline: float
) -> None:
    """Reads what comes, as it comes: what the headers say of its size need not be true."""
    if response.status != HTTPStatus.OK:
        raise DataError(f"{url}: the server answers {response.status} {response.reason}".rstrip())
    if response.headers.get_content_type() == "text/html":
        raise DataError(f"{url} is a web page, no {kind}")
    announced = response.headers.get("Content-Length", "")
    size = int(announced) if announced.isdecimal() else None
    if size is not None and size > limit:
        raise DataError(f"{url} has {size / MEBIBYTE:.1f} MiB; at most {limit / MEBIBYTE:g} are fetched")
    with open(target, "wb") as file:
        while piece := response.read1(2**16):
            file.write(piece)
            if file.tell() > limit:
                raise DataError(f"{url} is larger than {limit / MEBIBYTE:g} MiB, the most that is fetched")
            if time.monotonic() > deadline:
                raise DataError(f"{url} has not come within {SECONDS} seconds")
        if size is not None and file.tell() < size:
            raise DataError(f"{url} broke off after {file.tell()} of {size} bytes")


def check_url(url: str) -> None:
    """Raises DataError for a URL that is not fetched."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise DataError(f"{url} is not a URL: {error}") from None
    if parts.scheme not in ("http", "https"):
        raise DataError(f"{url} is refused: only http and https are fetched, not {parts.scheme}")
    if not host:
        raise DataError(f"{url} is not a URL: it names no host")
    if parts.username or parts.password:
        raise DataError(f"a URL at {host} is refused: it holds a name or a password")
