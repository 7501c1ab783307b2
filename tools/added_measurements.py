"""Write the rows of measurements/added.jsonl that come from machine-readable results; rows typed by hand stay.

    python tools/added_measurements.py PEFT_CLONE AXOLOTL_CLONE CANIFINETUNE_CLONE

The clones are git repositories of huggingface/peft, axolotl-ai-cloud/axolotl and DaoyuanLi2816/can-i-finetune-this;
bare ones do.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from added_tables import axolotl_rows, canifinetune_rows, peft_rows
from measured_setups import MEASUREMENTS

TARGET = MEASUREMENTS / "added.jsonl"
CONVERTED = ("added-peft-", "added-axolotl-", "added-canifinetune-")


def main() -> None:
    lines = TARGET.read_text(encoding="utf-8").splitlines() if TARGET.exists() else []
    typed = [row for row in map(json.loads, lines) if not row["id"].startswith(CONVERTED)]
    peft, axolotl, canifinetune = map(Path, sys.argv[1:4])
    found = [*peft_rows(peft), *axolotl_rows(axolotl), *canifinetune_rows(canifinetune)]
    TARGET.write_text("".join(json.dumps(row) + "\n" for row in found + typed), encoding="utf-8")
    print(f"{len(found)} rows converted, {len(typed)} kept in {TARGET.name}")


if __name__ == "__main__":
    main()
