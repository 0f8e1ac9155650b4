"""Every program of `programs/`, after a problem or question that people made public, says OK."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
SHARED = ("judge", "training")
PROGRAMS = sorted(p for p in (TESTS / "programs").glob("*.py") if p.stem not in SHARED)


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.stem)
def test_a_program_says_ok(program, tmp_path):
    path = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, program],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    print(run.stdout, run.stderr)
    said = [line.split()[0] for line in run.stdout.splitlines() if line.startswith(("OK", "FAIL"))]
    assert run.returncode == 0
    assert said and {*said} == {"OK"}
