"""A loaded model behind OpenAI's API: in a thread of this process, so that tests see what the model is given.

>>> with served(loaded) as (url, answering):
...     openai.OpenAI(base_url=f"{url}/v1", api_key="none")
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from appliance.serving import api
from appliance.serving.answering import Answering
from appliance.serving.api_door import Door
from appliance.serving.loaded_model import LoadedModel

NAME, MADE = "가게 1", 1_700_000_000


@contextmanager
def served(
    model: LoadedModel,
    *,
    key: str | None = None,
    most_waiting: int = 4,
    seconds: float = 60.0,
    keeps_turns: bool | None = None,
    name: str = NAME,
    made: int = MADE,
    listening: socket.socket | None = None,
) -> Iterator[tuple[str, Answering]]:
    """(address, what answers). Afterwards no request is being answered any more.

    `listening`: where, for a process that is forked before this has a thread.
    """
    answering = Answering(model, most_waiting=most_waiting, seconds=seconds)
    keeps = model.trained_on_turns if keeps_turns is None else keeps_turns
    app = api.create(api.Served(name, made, answering, keeps), Door(key))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="off"))
    with listening or bound() as listening:
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.01)
            yield address(listening), answering
        finally:
            server.should_exit = True
            thread.join()


def bound() -> socket.socket:
    """A free port."""
    return socket.create_server(("127.0.0.1", 0))


def address(listening: socket.socket) -> str:
    return f"http://127.0.0.1:{listening.getsockname()[1]}"


def until(is_true: object, seconds: float = 30.0) -> None:
    """Waits until `is_true()`."""
    assert callable(is_true)
    ends = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < ends, "it did not come"
        time.sleep(0.01)
