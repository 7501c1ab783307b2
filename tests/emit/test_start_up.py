"""Writing a folder loads what it needs and no more."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
from tests.emit.plans import plan_of
from planner.emit.folder import plan_files
plan_files(plan_of())
heavy = {"yaml", "torch", "transformers", "csv", "pyarrow", "planner.targets.transformers_script",
         "planner.targets.llamafactory_read", "planner.data.parquet"}
print(",".join(sorted(heavy & set(sys.modules))))
"""


def test_emission_stays_light() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
