"""Makes a peer's environment: `python -m benchmarks.peers.environment llamafactory FOLDER`.

NAME.txt pins what the peer's own requirements resolved to. The torch is ours; torchvision, torchaudio, torchao and
xformers, which training text on a CPU does without, are left out.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

PEERS = ("llamafactory", "axolotl")


def python_of(name: str, folder: Path) -> Path:
    return folder / name / "bin" / "python"


def make(name: str, folder: Path) -> Path:
    """The environment's Python; made once. Raises CalledProcessError: a package cannot be had."""
    python, done = python_of(name, folder), folder / name / ".installed"
    if not done.is_file():
        venv.create(folder / name, clear=True)
        pins = Path(__file__).with_name(f"{name}.txt")
        install = ["-m", "uv", "pip", "install", "--quiet", "--no-deps", "--python", str(python), "-r", str(pins)]
        subprocess.run([sys.executable, *install], check=True)
        done.touch()
    return python


if __name__ == "__main__":
    make(sys.argv[1], Path(sys.argv[2]))
