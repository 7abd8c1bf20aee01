"""`appliance serve`: a run's proven model behind OpenAI's API, until a signal ends it."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from appliance.listening import door as listening_door
from appliance.listening import start
from appliance.listening.start import Place
from appliance.process import console, signals
from appliance.rundir import proven
from appliance.serving import loaded_model

PORT = 8322
KEY_VARIABLE, KEY_OPTION = "APPLIANCE_API_KEY", "--key-file"
_ENDING = "{}: finishing the answer that was begun; send it again to stop at once"


def serve(
    run_path: Path,
    *,
    host: str,
    port: int,
    key: str | None,
    published_on_loopback: bool,
    keep_turns: bool | None,
    most_waiting: int,
    seconds: float,
) -> None:
    """Serves the model of `run_path`, from `proven.find`, and returns never: a signal ends the process.

    The first one lets the answer that was begun end, the second ends it at once; the exit code is the signal's.
    Raises EnvironmentUnavailable: the extra `web` or what loads the model is not installed, the port is taken, memory
    is too small. RecipeError: `host` is no address of this machine, or others could ask without a key.

    Args:
        run_path: the run directory.
        host: where to listen: an address or a name of this machine.
        port: 0 takes any free one.
        key: what a client must give; None: nothing.
        published_on_loopback: the port of this container is published on the host's loopback only.
        keep_turns: whether earlier turns of a conversation go into the prompt; None: as the model was trained.
        most_waiting: how many questions may wait while one is answered.
        seconds: the longest that an answer may take, and that a question may wait.
    """
    with start.needing_web("serve"):
        import uvicorn  # noqa: F401

        from appliance.serving import api, api_door
        from appliance.serving.answering import Answering
    place = Place.of(host, port)
    listening_door.require_token(
        place.address,
        key,
        published_on_loopback=published_on_loopback,
        given_by=f"{KEY_VARIABLE} or {KEY_OPTION}",
    )
    with place.listen() as listening:  # first: a port that is taken is known before the model is loaded
        model = loaded_model.load(run_path, max_new_tokens=None, temperature=None)
        keeps_turns = model.trained_on_turns if keep_turns is None else keep_turns
        answering = Answering(model, most_waiting=most_waiting, seconds=seconds)
        served = api.Served(proven.served_name(run_path), proven.merged_at(run_path), answering, keeps_turns)
        url = place.url(listening, published_on_loopback=published_on_loopback)
        console.say(_how_asked(keeps_turns), style="dim")
        console.say(f"serving {served.name} of {run_path} on {url}/v1; Ctrl-C ends it")

        def end(number: int) -> None:
            answering.line.close()
            if answering.line.is_taken:
                console.say(_ENDING.format(signal.Signals(number).name))

        ended_by = start.run(api.create(served, api_door.Door(key)), listening, on_end=end)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    signals.end_process(ended_by)  # everybody is answered: taking torch apart would take seconds on a busy machine


def _how_asked(keeps_turns: bool) -> str:
    if keeps_turns:
        return "earlier messages of a conversation go into the prompt"
    return "each question is asked alone: earlier messages of a conversation are left out; --turns keeps them"
