"""Names of shards: webdataset's syntax for lists of names, counted before they are expanded."""

import re

from sbs_train.contract import bounds
from sbs_train.contract.errors import SbsError
from sbs_train.contract.urls import shown

_TOKENS = re.compile(r"(\\.|\{-?\d+\.\.-?\d+(?:\.\.-?\d+)?\}|\{[a-zA-Z]\.\.[a-zA-Z](?:\.\.-?\d+)?\}|[{},])", re.DOTALL)


def expand(urls: str) -> list[str]:
    """Expand braces and `::` into single paths and URLs.

    >>> expand("a-{00..02}.tar::http://host/b.tar")
    ['a-00.tar', 'a-01.tar', 'a-02.tar', 'http://host/b.tar']

    Raises:
        SbsError: the syntax is wrong, or there are more names than `bounds.SHARDS`.
    """
    from braceexpand import braceexpand
    from webdataset.shardlists import envsubst

    found: list[str] = []
    try:
        for part in urls.split("::"):
            for _ in range(10):  # as in webdataset: a variable may contain another variable
                _require_length(part)
                part = envsubst(part)
            _require_length(part)
            _require_number(len(found) + _count(part))
            found.extend(braceexpand(part))
    except SbsError:
        raise
    except (ValueError, AssertionError, RecursionError) as error:  # AssertionError: ${NAME} without WDS_NAME
        reason = str(error) if isinstance(error, AssertionError) else "its braces do not fit together"
        raise SbsError(f"wds:{shown(urls)}: {reason}; write numbered shards as name-{{000..009}}.tar") from error
    return found


def _require_number(count: int) -> None:
    """SbsError if `count` is more than `bounds.SHARDS`."""
    bounds.require(count, bounds.SHARDS, "the shards that --data names are", "name fewer, or pack more into each")


def _require_length(part: str) -> None:
    """SbsError if a name, braces included, is too long."""
    bounds.require(len(part), bounds.SHARD_NAME, "the characters of a shard's name are", "write {a,b} as a::b")


def _count(pattern: str) -> int:
    """How many names a pattern expands to, without expanding it: braceexpand would build whole lists."""
    from braceexpand import alphabet

    sums, products = [0], [1]
    for token in _TOKENS.split(pattern):
        if token == "{":
            sums.append(0)
            products.append(1)
        elif token == "," and len(sums) > 1:
            sums[-1] += products[-1]
            products[-1] = 1
        elif token == "}" and len(sums) > 1:
            inside = sums.pop() + products.pop()
            products[-1] *= inside
        elif token.startswith("{"):
            ends = [alphabet.find(end) if end.isalpha() else int(end) for end in token[1:-1].split("..")]
            first, last, step = [*ends, 1][:3]
            products[-1] *= abs(last - first) // (abs(step) or 1) + 1
        _require_number(max(sums[-1], products[-1]))
    return products[0]
