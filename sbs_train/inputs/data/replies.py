"""HTTP requests for shards: passwords, redirects, and checks of the response."""

import base64
import http.client
import io
import netrc
import time
import urllib.request
from typing import IO, Any
from urllib.parse import urlsplit

from sbs_train.contract import bounds
from sbs_train.contract.errors import SbsError
from sbs_train.contract.urls import require_url, shown


class Refused(Exception):
    """A response that is no shard; retrying does not help."""


def ask(url: str) -> tuple[http.client.HTTPResponse, int]:
    """Request a shard; returns the response, with its body unread, and the body's length in bytes.

    Redirects to other hosts are followed without the password, but never from https to http. Reading the body raises
    TimeoutError at fewer than `bounds.REPLY_BYTES` in `bounds.REPLY_SECONDS`.

    Raises:
        SbsError: ~/.netrc is malformed.
        Refused: the response has no single length or a too large one, is compressed, is a part of the file, or
            redirects to a URL that is not http(s).
        OSError: no connection, an error of the server, or a slow response.
        http.client.HTTPException: the response is no HTTP.
    """
    request = urllib.request.Request(url)
    if password := _password(urlsplit(url).hostname or ""):
        request.add_unredirected_header("Authorization", password)
    opener = urllib.request.build_opener(_Redirects, _Web)
    response: http.client.HTTPResponse = opener.open(request, timeout=bounds.REPLY_SECONDS)
    try:
        return response, _length(response)
    except Refused:
        response.close()
        raise


def _length(response: http.client.HTTPResponse) -> int:
    """Bytes of the body by Content-Length; Refused unless the response is a whole, plain file of known length."""
    headers = response.headers
    if response.status != 200:
        raise Refused(f"the server answers {response.status}, not the whole file")
    if headers.get("Content-Encoding", "identity").strip().lower() != "identity":
        raise Refused("the server packs its answer; it must send plain .tar files")
    said = {text.strip() for text in headers.get_all("Content-Length", [])}
    digits = said.pop() if len(said) == 1 and headers.get("Transfer-Encoding") is None else ""
    if not (digits.isascii() and digits.isdigit()):
        raise Refused(
            "the server gives no single Content-Length, so nobody can tell a whole shard; copy it by other means"
        )
    if len(digits) > 20 or int(digits) > bounds.DOWNLOAD_BYTES:
        raise Refused(f"the server says {digits[:20]} bytes, and at most {bounds.DOWNLOAD_BYTES:,} are copied")
    return int(digits)


def _password(host: str) -> str | None:
    """Value of the Authorization header for `host` from ~/.netrc, or None; SbsError if ~/.netrc is malformed."""
    try:
        entry = netrc.netrc().authenticators(host)
    except FileNotFoundError:
        return None
    except (OSError, netrc.NetrcParseError, ValueError) as error:
        # Without the error's text, which may hold the password.
        reason = f"line {error.lineno}" if isinstance(error, netrc.NetrcParseError) else type(error).__name__
        raise SbsError(f"~/.netrc cannot be read ({reason}); mend it, or move it away") from error
    if entry is None:
        return None
    return "Basic " + base64.b64encode(f"{entry[0]}:{entry[2]}".encode()).decode()


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https alone."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        """The request for `newurl`; Refused unless it is an http(s) URL, or if it is http after https."""
        try:
            require_url(newurl)
        except SbsError as error:
            raise Refused(f"it redirects to {shown(newurl)}, which is no http(s) URL without a password") from error
        if req.type == "https" and urlsplit(newurl).scheme == "http":
            raise Refused(f"it redirects from https to {shown(newurl)}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Timed(io.RawIOBase):
    """Bytes of a socket; reading fails where fewer than `bounds.REPLY_BYTES` come in `bounds.REPLY_SECONDS`."""

    def __init__(self, raw: io.RawIOBase) -> None:
        self._raw = raw
        self._start = time.monotonic()
        self._came = 0

    def readable(self) -> bool:
        """Whether `readinto` may be called: always."""
        return True

    def readinto(self, buffer: Any) -> int | None:
        """Fill a part of `buffer`; its bytes, 0 at the end. TimeoutError where the bytes come too slowly."""
        count: int | None = self._raw.readinto(buffer)
        self._came += count or 0
        seconds = time.monotonic() - self._start
        if seconds > bounds.REPLY_SECONDS and count:
            if self._came < bounds.REPLY_BYTES:
                raise TimeoutError(f"only {self._came} bytes came in {seconds:.0f} seconds")
            self._start, self._came = time.monotonic(), 0
        return count

    def close(self) -> None:
        """Close the socket as well."""
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.fp: io.BufferedReader = io.BufferedReader(_Timed(self.fp.detach()))


class _Connection(http.client.HTTPConnection):
    response_class = _Response


class _SecureConnection(http.client.HTTPSConnection):
    response_class = _Response


class _Web(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    """Handler of http and https whose responses are read through `_Timed`."""

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        """The response to an http request."""
        return self.do_open(_Connection, req)

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        """The response to an https request."""
        return self.do_open(_SecureConnection, req)
