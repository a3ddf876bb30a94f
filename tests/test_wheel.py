"""Files of the wheel that `pip install .` builds: all that the commands read when installed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from setuptools import Distribution

ROOT = Path(__file__).parents[1]
FOLDERS = ("bench", "flowvae", "experiments")


def test_the_wheel_holds_the_code_and_the_files_that_it_reads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    distribution = Distribution({"script_name": "setup.py"})
    distribution.parse_config_files()
    command = distribution.get_command_obj("build_py")
    command.ensure_finalized()
    built = {os.path.relpath(path, command.build_lib) for path in command.get_outputs()}
    needed = {
        str(path.relative_to(ROOT))
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.name != "README.md"
    }
    assert built == needed
