"""URLs in a run's settings: which parts of a URL may be kept and printed."""

import re
from urllib.parse import urlsplit

from sbs_train.contract.errors import SbsError

_HIDDEN = "…"
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*:(?://)?|//)(.*)", re.DOTALL)
_USER = re.compile(r"//[^/]*@")


def shown(urls: str) -> str:
    """Names of shards as messages print them: without users, passwords and the query after `?`, which may hold a key.

    >>> shown("https://me:secret@host/a.tar?token=secret::b.tar")
    'https://…@host/a.tar?…::b.tar'
    """
    return "::".join(map(_shown, urls.split("::")))


def _shown(url: str) -> str:
    """One URL or path as `shown` prints it."""
    match = _SCHEME.match(url)
    if match is None:
        return url
    start, rest = match.groups()
    if start.lower() == "wds:":
        return start + _shown(rest)
    # Passwords may hold any of `/`, `?` and `@`: all before the last `@` is hidden.
    user, at, rest = rest.rpartition("@")
    place, mark, _ = rest.partition("?")
    return f"{start}{_HIDDEN if user else ''}{at}{place}{mark}{_HIDDEN if mark else ''}"


def refuse_credentials(urls: str) -> None:
    """SbsError if one of the URLs holds a user name or a password; config.json keeps them all, so that runs resume."""
    for url in urls.split("::"):
        if _USER.search(url):
            raise SbsError(
                f"{shown(url)} holds a user name or a password, which config.json would keep; write them to ~/.netrc "
                "(machine HOST login NAME password WORD) and leave them out of the URL"
            )


def require_url(url: str) -> None:
    """SbsError if this is no http(s) URL, or holds a user name or a password."""
    refuse_credentials(url)
    try:
        parts = urlsplit(url)
        well = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        well = False
    if not (well and url.isascii() and url.isprintable() and " " not in url):
        raise SbsError(f"{shown(url)} is no URL; write http(s)://HOST/NAME.tar, with %20 for a space")
