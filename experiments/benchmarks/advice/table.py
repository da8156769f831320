"""The rows of README.md, from the benchmark.json files that are named.

python experiments/benchmarks/advice/table.py outputs/benchmark/advice/*/benchmark.json
"""

import json
import sys
from pathlib import Path

print("| run | loader alone | model alone | together | bound | followed | expected | before | after | times |")
print("|---|---|---|---|---|---|---|---|---|---|")
for path in map(Path, sys.argv[1:]):
    found = json.loads(path.read_text(encoding="utf-8"))
    cells = [
        path.parent.name,
        *(f"{found['alone'][key]:.0f}" for key in ("loader", "compute")),
        f"{found['clips_per_s']:.0f}",
        found["verdict"]["bound"],
    ]
    proof = found["proof"]
    if proof is None:
        cells += ["none"] + 4 * [""]
    else:
        ratios = [after / before for before, after in zip(proof["before"], proof["after"], strict=True)]
        cells += [
            f"`{proof['followed']}`",
            f"{proof['expected_gain']:.2f}",
            f"{proof['median_before']:.0f} ({min(proof['before']):.0f} to {max(proof['before']):.0f})",
            f"{proof['median_after']:.0f} ({min(proof['after']):.0f} to {max(proof['after']):.0f})",
            f"{proof['gain']:.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
        ]
    print(f"| {' | '.join(cells)} |")
