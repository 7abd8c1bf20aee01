"""What can go wrong, as one tree. The class decides the exit code; `.hint` says how to fix it.

ApplianceError               1  (never raised directly)
├── RecipeError              2  the recipe or the command line is wrong
├── DataError                3  the CSV is wrong
├── EnvironmentUnavailable   4  GPU missing or lost, out of memory, disk, a missing file of the base model
├── HubError                 5  the Hub refuses or cannot be reached
├── GateRefused              6  a gate refused: proof, stop rate, worse than the base
├── TrainingFailed           7  NaN loss, no trained token
└── RunDirError              8  the run directory refuses: changed input, locked
Interrupted        129/130/143  SIGHUP / SIGINT / SIGTERM; the same command continues
"""


class ApplianceError(Exception):
    """An expected failure. `message`: where, what was seen, what was expected. `hint`: how to fix it."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class RecipeError(ApplianceError):
    exit_code = 2


class DataError(ApplianceError):
    exit_code = 3


class EnvironmentUnavailable(ApplianceError):
    exit_code = 4


class HubError(ApplianceError):
    exit_code = 5


class GateRefused(ApplianceError):
    exit_code = 6


class TrainingFailed(ApplianceError):
    exit_code = 7


class RunDirError(ApplianceError):
    exit_code = 8


class Interrupted(BaseException):
    """Stopped by a signal after the state was saved. Exit code: 128 + signal number.

    Not an Exception: many libraries carry on after `except Exception`; logging does so for every line it writes.
    """

    def __init__(self, signal_number: int, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint, self.exit_code = hint, 128 + signal_number
