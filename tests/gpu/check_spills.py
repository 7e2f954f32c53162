#!/usr/bin/env python3
"""Reads what ptxas said of the kernels (NAME.ptxas.txt beside the objects): no kernel may spill a register on the targets that matter most.

usage: check_spills.py FOLDER     prints every kernel that spills; exit status 1 if one does on sm_80 or sm_90, or if there is nothing to read
"""
import re
import sys
from pathlib import Path

MUST_NOT = {"sm_80", "sm_90", "sm_90a"}


def kernels(text: str):
    """Yields (kernel, target, bytes spilled)."""
    for part in re.split(r"Compiling entry function ", text)[1:]:
        name, target = re.match(r"'([^']+)' for '([^']+)'", part).groups()
        # device functions that were not inlined come after the kernel's own line, with theirs
        spilled = sum(int(n) for n in re.findall(r"(\d+) bytes spill", part))
        yield name, target, spilled


def main() -> int:
    reports = sorted(Path(sys.argv[1]).glob("*.ptxas.txt"))
    seen, bad = dict.fromkeys(MUST_NOT, 0), 0
    for path in reports:
        for name, target, spilled in kernels(path.read_text()):
            seen[target] = seen.get(target, 0) + 1
            if spilled:
                print(f"{path.name}: {name} on {target} spills {spilled} bytes")
                bad += target in MUST_NOT
    print(f"{len(reports)} files; kernels: " + ", ".join(f"{n} for {target}" for target, n in sorted(seen.items()) if n))
    if not seen["sm_80"] or not (seen["sm_90"] or seen["sm_90a"]):
        print("nothing was compiled for sm_80 or for sm_90")
        return 1
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
