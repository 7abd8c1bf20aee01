"""Makes the environment of these tests: transformers 4 and what goes with it, beside the other packages of this one.

>>> python -m tests.transformers4.environment .venv-transformers4
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

REQUIREMENTS = Path(__file__).with_name("requirements.txt")


def main(folder: Path) -> None:
    """Packages installed in `folder` come before those of this environment, which a .pth file puts behind them."""
    venv.create(folder, with_pip=True, clear=True)
    python = folder / "bin" / "python"
    install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "-r", str(REQUIREMENTS)]
    subprocess.run([str(python), *install], check=True)
    where = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = Path(subprocess.run(where, check=True, capture_output=True, text=True).stdout.strip())
    (packages / "behind.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
