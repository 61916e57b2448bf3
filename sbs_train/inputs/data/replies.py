"""What a server answers when it is asked for a shard: checked before anything of it is kept."""

import base64
import http.client
import io
import netrc
import ssl
import time
import urllib.request
from typing import IO, Any
from urllib.parse import urlsplit

from sbs_train.contract import bounds
from sbs_train.contract.errors import SbsError
from sbs_train.contract.urls import require_url, shown


class Refused(Exception):
    """An answer that is no shard; to ask again changes nothing."""


def ask(url: str) -> tuple[http.client.HTTPResponse, int]:
    """The answer to a request for a shard, and its length in bytes.

    A server on another host may be redirected to, but gets no password; https is never left for http.

    Raises:
        SbsError: ~/.netrc is malformed.
        Refused: the answer says no length, a wrong or a too large one, is packed, or is a part.
        OSError: no connection, an error of the server, or an answer that is too slow.
        http.client.HTTPException: no HTTP.
    """
    request = urllib.request.Request(url)
    if password := _password(urlsplit(url).hostname or ""):
        request.add_unredirected_header("Authorization", password)
    opener = urllib.request.build_opener(_Redirects, _Http, _Https)
    response: http.client.HTTPResponse = opener.open(request, timeout=bounds.REPLY_SECONDS)
    try:
        return response, _length(response)
    except Refused:
        response.close()
        raise


def _length(response: http.client.HTTPResponse) -> int:
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
    """The header that ~/.netrc gives for a host."""
    try:
        entry = netrc.netrc().authenticators(host)
    except FileNotFoundError:
        return None
    except (OSError, netrc.NetrcParseError, ValueError) as error:
        # Not the error's own words, which may be the password.
        reason = f"line {error.lineno}" if isinstance(error, netrc.NetrcParseError) else type(error).__name__
        raise SbsError(f"~/.netrc cannot be read ({reason}); mend it, or move it away") from error
    if entry is None:
        return None
    return "Basic " + base64.b64encode(f"{entry[0]}:{entry[2]}".encode()).decode()


class _Redirects(urllib.request.HTTPRedirectHandler):
    """To http and https alone."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        """The request to send instead; Refused where it leads out of the web, or out of https."""
        try:
            require_url(newurl)
        except SbsError as error:
            raise Refused(f"it redirects to {shown(newurl)}, which is no http(s) URL without a password") from error
        if req.type == "https" and urlsplit(newurl).scheme == "http":
            raise Refused(f"it redirects from https to {shown(newurl)}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Timed(io.RawIOBase):
    """What comes from a socket, which has to keep coming."""

    def __init__(self, raw: io.RawIOBase) -> None:
        self._raw = raw
        self._start = time.monotonic()
        self._came = 0

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int | None:
        """The next bytes; TimeoutError where there were too few of late."""
        count: int | None = self._raw.readinto(buffer)
        self._came += count or 0
        seconds = time.monotonic() - self._start
        if seconds > bounds.REPLY_SECONDS and count:
            if self._came < bounds.REPLY_BYTES:
                raise TimeoutError(f"only {self._came} bytes came in {seconds:.0f} seconds")
            self._start, self._came = time.monotonic(), 0
        return count

    def close(self) -> None:
        """The socket as well."""
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


class _Http(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        """As before, but timed."""
        return self.do_open(_Connection, req)


class _Https(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        """As before, but timed."""
        return self.do_open(_SecureConnection, req, context=ssl.create_default_context())
