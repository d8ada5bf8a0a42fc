"""The gallery's server: on this machine alone, for whoever has the link.

The link holds a secret in its path, under which everything lies. So it needs no cookie, which a browser would send to
every port of this machine, also to servers of other users, and no page that does not know it can ask for anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import os
import secrets
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from typing import Any, TypeVar

import duckdb
from aiohttp import web

from raymask.errors import ConfigError, Failure
from raymask.gallery.answers import Answers
from raymask.gallery.collection import Cursor
from raymask.gallery.filters import FilterError
from raymask.gallery.pictures import Pictures
from raymask.storage import said

T = TypeVar("T")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

HOST = "127.0.0.1"
# What a browser on this machine calls it; any other name is one that somebody has pointed here (DNS rebinding).
HOSTS = frozenset({"127.0.0.1", "localhost", "[::1]"})
TOKEN_BYTES = 24
TIME_LIMIT_S = 15.0
QUESTIONS_AT_ONCE = 2
PICTURES_AT_ONCE = min(8, 2 * (os.cpu_count() or 1))

TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
# Nothing but the page's own files runs or is shown, and no text ever becomes markup.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Server:
    """Answers over HTTP. A context manager by `async with`; `link` is where it is found."""

    def __init__(self, answers: Answers, pictures: Pictures, port: int = 0) -> None:
        self._answers = answers
        self._pictures = pictures
        self._port = port
        self._token = secrets.token_urlsafe(TOKEN_BYTES)
        self._page = {file.name: file.read_bytes() for file in (files(__package__) / "page").iterdir()}
        self._questions = ThreadPoolExecutor(QUESTIONS_AT_ONCE, "question")
        self._decoders = ThreadPoolExecutor(PICTURES_AT_ONCE, "picture")
        application = web.Application(middlewares=[self._guarded])
        application.add_routes(
            [
                web.get("/{token}/", self._file),
                web.get("/{token}/{name}", self._file),
                web.get("/{token}/api/about", self._asked(lambda cursor, _: self._answers.about(cursor))),
                web.get("/{token}/api/images", self._asked(lambda c, r: self._answers.page(c, r.query))),
                web.get("/{token}/api/compared", self._asked(lambda c, r: self._answers.compared(c, r.query))),
                web.get("/{token}/api/objects", self._asked(lambda c, r: self._answers.objects(c, r.query))),
                web.get(r"/{token}/{kind:thumbnails|pictures}/{id:\d{1,19}}", self._picture),
            ]
        )
        self._runner = web.AppRunner(application, handler_cancellation=True, access_log=None)

    @property
    def link(self) -> str:
        """The address with its secret."""
        port = self._runner.addresses[0][1]
        return f"http://{HOST}:{port}/{self._token}/"

    async def __aenter__(self) -> Server:
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, HOST, self._port).start()
        except OSError as error:
            await self._runner.cleanup()
            raise ConfigError(f"cannot listen on port {self._port} ({said(error)}); choose another --port") from error
        self._first = asyncio.create_task(self._look_up_first_page())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._first.cancel()
        await self._runner.cleanup()
        for pool in (self._questions, self._decoders):
            pool.shutdown(wait=False, cancel_futures=True)

    @web.middleware
    async def _guarded(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Turn away who has not got the link; put `HEADERS` on all answers."""
        try:
            if request.host.rpartition(":")[0] not in HOSTS and request.host not in HOSTS:
                raise web.HTTPForbidden(text="This gallery answers to 127.0.0.1 and localhost only.\n")
            token = request.path.split("/")[1]
            if not hmac.compare_digest(token.encode(), self._token.encode()):
                raise web.HTTPNotFound(text="Open the link that `raymask view` printed, with all of its letters.\n")
            if request.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
                raise web.HTTPForbidden(text="Another page cannot ask the gallery.\n")
            response = await handler(request)
        except web.HTTPException as error:
            error.headers.update(HEADERS)
            raise
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        return response

    async def _file(self, request: web.Request) -> web.Response:
        name = request.match_info.get("name", "index.html")
        if name not in self._page:
            raise web.HTTPNotFound(text="no such file\n")
        return web.Response(body=self._page[name], content_type=TYPES[name[name.rindex(".") :]], charset="utf-8")

    def _asked(self, answer: Callable[[Cursor, web.Request], Any]) -> Handler:
        async def handler(request: web.Request) -> web.Response:
            try:
                found = await self._ask(lambda cursor: answer(cursor, request))
            except FilterError as error:
                return _json({"problem": str(error)}, status=400)
            except (TimeoutError, duckdb.InterruptException):
                problem = f"that took longer than {TIME_LIMIT_S:.0f} s and was stopped; ask for less"
                return _json({"problem": problem}, status=400)
            return _json(found)

        return handler

    async def _ask(self, question: Callable[[Cursor], T]) -> T:
        """The answer of a question to the tables; it is stopped when it takes too long or nobody waits any more."""
        cursor = self._answers.collection.cursor()
        asked = asyncio.get_running_loop().run_in_executor(self._questions, question, cursor)
        try:
            return await asyncio.wait_for(asked, TIME_LIMIT_S)
        except (TimeoutError, asyncio.CancelledError):
            cursor.interrupt()
            raise

    async def _look_up_first_page(self) -> None:
        """While the browser begins, its first question is answered; what is wrong is said when it asks."""
        with contextlib.suppress(Exception):
            await self._ask(lambda cursor: self._answers.page(cursor, {}))

    async def _picture(self, request: web.Request) -> web.Response:
        number, kind = int(request.match_info["id"]), request.match_info["kind"]
        row = self._answers.collection.kept_image(number)  # as those of a page are, which wait for no other question
        if row is None:
            row = await self._ask(lambda cursor: self._answers.picture_row(cursor, number))
        if row is None:
            return _json({"problem": "no such image"}, status=404)
        make = self._pictures.thumbnail if kind == "thumbnails" else self._pictures.whole
        made = await asyncio.get_running_loop().run_in_executor(self._decoders, make, row)
        if isinstance(made, Failure):
            return _json({"kind": made.kind, "problem": made.detail}, status=404)
        # Only this browser keeps it, and only for as long as the secret is good.
        return web.Response(body=made, content_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})


def _json(content: Any, status: int = 200) -> web.Response:
    return web.json_response(content, status=status, dumps=lambda c: json.dumps(c, separators=(",", ":")))
