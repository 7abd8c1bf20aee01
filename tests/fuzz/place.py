"""Where a case runs: a home, a folder for temporary files and a working folder of its own, and who may write where.

    PLACE/home        HOME, with a file of the user's
    PLACE/tmp         TMPDIR
    PLACE/work        the working folder: recipe, CSV, base, runs/ and cache/

A command may write below `runs/` and `cache/`. Everything else has to be as before, to the inode. Above the place are
folders and files named `victim`, for names that lead out of it.
"""

from __future__ import annotations

import base64
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tests.helpers import loopback_hub

OWN = ("work/runs", "work/cache")
_DEPTH = ("victim", "a", "b", "c", "place")


@dataclass(frozen=True)
class Place:
    """A place below `folder`, always at the same path. `endpoint`: the Hub's. The token is the canary."""

    folder: Path
    endpoint: str
    token: str = field(default_factory=loopback_hub.new_token)

    @property
    def path(self) -> Path:
        return self.folder.joinpath(*_DEPTH)

    @property
    def work(self) -> Path:
        return self.path / "work"

    @property
    def environ(self) -> dict[str, str]:
        """All variables of a command."""
        return {
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "HOME": str(self.path / "home"),
            "TMPDIR": str(self.path / "tmp"),
            "HF_HOME": str(self.work / "cache" / "hf"),
            "HF_ENDPOINT": self.endpoint,
            "HF_TOKEN": self.token,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1,localhost",
            "APPLIANCE_CACHE_DIR": str(self.work / "cache" / "appliance"),
            "MPLCONFIGDIR": str(self.work / "cache" / "matplotlib"),
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "COLUMNS": "200",
        }

    def make(self, template: Path | None = None, parts: Sequence[str] = ()) -> None:
        """Empty, or with these parts of `template`, the copy of an earlier `work`."""
        shutil.rmtree(self.folder / _DEPTH[0], ignore_errors=True)
        for name in ("home", "tmp", "work"):
            (self.path / name).mkdir(parents=True)
        for folder in (self.folder, self.folder / "victim", self.path.parent, self.path, self.path / "home"):
            folder.joinpath("victim.txt").write_text("mine\n", encoding="utf-8")
        for part in parts if template else ():
            source, target = template / part, self.work / part
            target.parent.mkdir(exist_ok=True)
            copy = partial(shutil.copytree, symlinks=True) if source.is_dir() else shutil.copy2
            copy(source, target)

    def seen(self, own: Sequence[str] = OWN) -> dict[str, tuple[int, ...]]:
        """Every file outside of `own` below `folder`, and every folder: mode, size, time of change, inode."""
        found: dict[str, tuple[int, ...]] = {}
        kept = {str(self.path / name) for name in own}
        for at, folders, files in os.walk(self.folder):
            folders[:] = [name for name in folders if f"{at}/{name}" not in kept]
            for name in files:
                stat = os.lstat(f"{at}/{name}")
                shown = os.path.relpath(f"{at}/{name}", self.folder)
                found[shown] = (stat.st_mode, stat.st_size, stat.st_mtime_ns, stat.st_ino)
            found[os.path.relpath(at, self.folder)] = (os.lstat(at).st_mode,)
        return found

    def canaries(self, since_ns: int, texts: Mapping[str, str]) -> list[str]:
        """Where the token is: in which of `texts`, or of the files that were written since then."""
        wanted = [self.token[10:28].encode()]
        wanted += [base64.b64encode(self.token.encode()[i:])[2:-4] for i in range(3)]
        found = [name for name, text in texts.items() if any(form in text.encode() for form in wanted)]
        for at, _, files in os.walk(self.path):
            for name in files:
                path = Path(at, name)
                if path.is_file() and not path.is_symlink() and path.stat().st_mtime_ns >= since_ns:
                    content = path.read_bytes()
                    if any(form in content for form in wanted):
                        found.append(str(path.relative_to(self.path)))
        return found
