"""Files of the wheel that `pip install .` builds: all that the commands read when installed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("bench", "flowvae", "experiments")
LIST = """
import json, os
from setuptools import Distribution
distribution = Distribution({"script_name": "setup.py"})
distribution.parse_config_files()
command = distribution.get_command_obj("build_py")
command.ensure_finalized()
print(json.dumps([os.path.relpath(path, command.build_lib) for path in command.get_outputs()]))
"""
"""Lists the wheel's files; in a process of its own, since setuptools replaces other modules."""


def test_the_wheel_holds_the_code_and_the_files_that_it_reads() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIST], cwd=ROOT, capture_output=True, text=True, check=True
    )
    needed = {
        str(path.relative_to(ROOT))
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.name != "README.md"
    }
    assert set(json.loads(done.stdout.splitlines()[-1])) == needed
