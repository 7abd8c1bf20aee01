"""A reply with one change, as a broken or malicious Hub could send it."""

from __future__ import annotations

import json
import random

from tests.helpers import mutate
from tests.helpers.loopback_hub.wire import Reply

_HEADERS = (
    *("Content-Type", "Content-Encoding", "ETag", "Link", "Location", "Retry-After", "RateLimit", "X-Repo-Commit"),
    *("X-Error-Code", "X-Error-Message", "X-Linked-Etag", "X-Linked-Size", "X-Xet-Hash", "Set-Cookie"),
)
_STATUSES = (200, 204, 206, 301, 302, 304, 307, 400, 401, 403, 404, 409, 412, 418, 429, 500, 503, 599)


def reply(seen: Reply, seed: int) -> Reply:
    """`seen` with one change: mostly of a value in its JSON, sometimes of its bytes, a header or its status."""
    rng = random.Random(seed)
    kind = rng.choice(("json", "json", "json", "json", "json", "bytes", "header", "header", "status"))
    if kind == "json" and seen.body:
        try:
            body, _ = mutate.json_text(rng, json.loads(seen.body))
        except ValueError:
            body, _ = mutate.raw(rng, seen.body)
        return Reply(seen.status, body, seen.headers)
    if kind == "bytes" and seen.body:
        return Reply(seen.status, mutate.raw(rng, seen.body)[0], seen.headers)
    if kind == "status":
        return Reply(rng.choice(_STATUSES), seen.body, seen.headers)
    name = rng.choice([*seen.headers, *seen.headers, *_HEADERS])
    odd = "" if (value := rng.choice(mutate.ODD)) is None else str(value) if not isinstance(value, str) else value
    if rng.random() < 0.5 and name in seen.headers:
        odd = mutate.text(rng, seen.headers[name])
    line = odd.encode("utf-8", "replace").decode("latin-1").replace("\r", "").replace("\n", "").replace("\0", "")
    return Reply(seen.status, seen.body, seen.headers | {name: line[:60_000]})
