"""Open an output and serve its gallery until somebody stops it."""

from __future__ import annotations

import asyncio
import contextlib
import html
import os
import signal
import sys
import tempfile
import threading
import webbrowser
from collections.abc import Callable, Iterator

from raymask.config import EvaluateConfig
from raymask.gallery.answers import Answers
from raymask.gallery.collection import Collection
from raymask.gallery.comparison import Comparison, beside_annotations, beside_output
from raymask.gallery.config import ViewConfig
from raymask.gallery.pictures import Pictures
from raymask.gallery.server import Server
from raymask.published import read_published


def view(config: ViewConfig, say: Callable[[str], None]) -> None:
    """Serve the gallery until Ctrl-C or SIGTERM; `say` gets the link. Raises what opening the tables raises."""
    server, comparison = open_gallery(config)
    asyncio.run(_serve(config, server, comparison, say))


async def _serve(config: ViewConfig, server: Server, comparison: Comparison | None, say: Callable[[str], None]) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    async with server:
        say(f"{config.out} is at {server.link}")
        say("Whoever has this link sees the images; it is good until Ctrl-C.")
        if comparison is not None:
            threading.Thread(target=comparison.compare, daemon=True).start()
        with contextlib.nullcontext() if config.no_browser else opened_in_browser(server.link):
            await stopped.wait()
    if comparison is not None:
        comparison.stop()


def open_gallery(config: ViewConfig) -> tuple[Server, Comparison | None]:
    """The server, not listening yet, and what it shows beside the output, not compared yet."""
    collection = Collection.of(config.out)
    comparison = open_comparison(config, collection)
    pictures = Pictures(config.out, config.allow_http)
    return Server(Answers(config.out, collection, pictures.places, comparison), pictures, config.port), comparison


def open_comparison(config: ViewConfig, collection: Collection) -> Comparison | None:
    """What the options want shown beside the output."""
    if config.beside is not None:
        return beside_output(collection, config.beside, is_truth=False)
    if config.annotations is None:
        return None
    if not config.annotations.endswith(".json") and read_published(config.annotations) is not None:
        return beside_output(collection, config.annotations, is_truth=True)
    return beside_annotations(collection, EvaluateConfig(out=config.out, annotations=config.annotations))


@contextlib.contextmanager
def opened_in_browser(link: str) -> Iterator[None]:
    """Open a browser, where there is a screen, by a file of the user's own: arguments of programs are seen by all."""
    if sys.platform == "linux" and not {"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ):
        yield
        return
    with tempfile.TemporaryDirectory(prefix="raymask-") as folder:
        path = os.path.join(folder, "gallery.html")
        with open(path, "w") as file:
            file.write(f'<meta http-equiv="refresh" content="0; url={html.escape(link)}">')
        webbrowser.open(f"file://{path}")
        yield
