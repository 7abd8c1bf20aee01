"""The command's process: a signal ends it without a traceback from the first import to the interpreter's own exit."""

from appliance.errors import Interrupted
from appliance.process import signals


def main() -> None:
    """Entry point of the console script too. What is imported here, before a signal is taken, has to stay little."""
    signals.end_at_once()  # nothing has begun yet
    from appliance.cli import app

    try:
        try:
            app.main()
        finally:
            signals.end_at_once()  # nobody would catch an exception any more
    except Interrupted as error:  # a second one while the first was being told, or one as the command ended
        signals.end_process(error.exit_code - 128)


if __name__ == "__main__":
    main()
