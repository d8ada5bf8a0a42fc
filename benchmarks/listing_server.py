"""A bucket of very many keys that can be listed over S3's protocol, and nothing else: so that listing can be timed.

python benchmarks/listing_server.py 1000000     # prints its URL, and serves until it is ended
"""

from __future__ import annotations

import sys
from urllib.parse import parse_qs, urlsplit

from aiohttp import web

PAGE_KEYS = 1000  # as many as S3 gives at once
PREFIX = "photos/"
ENTRY = (
    "<Contents><Key>{key}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>&quot;{number:032x}&quot;"
    "</ETag><Size>150000</Size><StorageClass>STANDARD</StorageClass></Contents>"
)
PAGE = (
    '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
    "<Name>bucket</Name><Prefix>{prefix}</Prefix><KeyCount>{count}</KeyCount><MaxKeys>1000</MaxKeys>"
    "<IsTruncated>{more}</IsTruncated>{token}{entries}</ListBucketResult>"
)


def page(keys: int, start: int, prefix: str) -> str:
    """The answer to ListObjectsV2 from key number `start` on; those of another prefix are none."""
    stop = min(start + PAGE_KEYS, keys) if PREFIX.startswith(prefix) else start
    entries = [ENTRY.format(key=f"{PREFIX}{n // 1000:06d}/{n:09d}.jpg", number=n) for n in range(start, stop)]
    more = stop < keys and bool(entries)
    token = f"<NextContinuationToken>{stop}</NextContinuationToken>" if more else ""
    said = "true" if more else "false"
    return PAGE.format(prefix=prefix, count=len(entries), more=said, token=token, entries="".join(entries))


def application(keys: int) -> web.Application:
    async def answer(request: web.Request) -> web.Response:
        query = {name: values[0] for name, values in parse_qs(urlsplit(request.path_qs).query).items()}
        if "list-type" not in query:
            return web.Response(status=404 if request.path.strip("/").count("/") else 200)
        start = int(query.get("continuation-token", "0"))
        return web.Response(text=page(keys, start, query.get("prefix", "")), content_type="application/xml")

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    return app


def main() -> None:
    web.run_app(
        application(int(sys.argv[1])),
        host="127.0.0.1",
        port=int(sys.argv[2]),
        print=None,
        access_log=None,
    )


if __name__ == "__main__":
    main()
