"""apply_patch.py FOLDER PATCH...: apply unified diffs exactly (no fuzz; a hunk may stand at another line). No tool needed."""

from __future__ import annotations

import re
import sys
from pathlib import Path

HUNK = re.compile(r"@@ -(\d+)(?:,(\d+))? \+\d+(?:,(\d+))? @@")


def apply(folder: Path, patch: Path) -> None:
    lines = patch.read_text().split("\n")
    at, target, text, shift = 0, None, [], 0
    while at < len(lines):
        line = lines[at]
        if line.startswith("--- a/"):
            if target:
                target.write_text("\n".join(text))
            target = folder / lines[at + 1][6:]
            text, shift, at = target.read_text().split("\n"), 0, at + 2
            continue
        match = HUNK.match(line)
        if not match or not target:
            at += 1
            continue
        start, n_old, n_new = int(match[1]), int(match[2] or 1), int(match[3] or 1)
        old, new = [], []
        at += 1
        while len(old) < n_old or len(new) < n_new:
            mark, rest = lines[at][:1], lines[at][1:]
            if mark in " -" or not mark:
                old.append(rest)
            if mark in " +" or not mark:
                new.append(rest)
            at += 1
        want = start - 1 + shift
        places = [i for i in range(len(text) - n_old + 1) if text[i : i + n_old] == old]
        if not places:
            raise SystemExit(f"{patch.name}: the hunk at line {start} does not apply to {target}")
        place = min(places, key=lambda i: abs(i - want))
        text[place : place + n_old] = new
        shift = place - (start - 1) + n_new - n_old
    if target:
        target.write_text("\n".join(text))


if __name__ == "__main__":
    for name in sys.argv[2:]:
        apply(Path(sys.argv[1]), Path(name))
