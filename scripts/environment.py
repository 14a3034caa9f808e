"""Make a virtual environment: python3 scripts/environment.py FOLDER. One clear line where this Python can't."""

import subprocess
import sys

folder = sys.argv[1]
if sys.version_info < (3, 11):  # noqa: UP036  it is the older ones that are told
    found = ".".join(map(str, sys.version_info[:2]))
    sys.exit(f"vae-serve needs Python 3.11 or newer, and this is {found}; name another: make PYTHON=python3.12 …")
sys.stdout.write(f"Setting up {folder}; this happens once\n")
sys.stdout.flush()
if subprocess.run([sys.executable, "-m", "venv", folder], check=False).returncode:
    sys.exit(f"{sys.executable} can't make virtual environments; on Debian and Ubuntu: apt install python3-venv")
