"""50 steps of the default config on the CPU and on the GPU, from the same weights: losses compared.

    python tests/gpu/measure/curves.py OUT [--device cuda] [--steps 50]

Writes OUT/curves.json. The first loss may differ by 1e-4, the mean of the last ten by 2 %: rounding differs, and
training multiplies it.
"""
from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def losses(out: Path, device: str, steps: int) -> list:
    weights = ROOT / "weights" / "eanet_tiny_shapes.npz"
    subprocess.run([sys.executable, str(ROOT / "train.py"), "--device", device, "--out", str(out), "--weights",
                    str(weights), f"train.steps={steps}", "train.log_every=1", "train.num_workers=0"], check=True,
                    cwd=ROOT)
    entries = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [entry["loss"] for entry in entries if "loss" in entry]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=50)
    arguments = parser.parse_args()
    curves = {name: losses(arguments.out / name, device, arguments.steps)
              for name, device in (("first", "cpu"), ("second", arguments.device))}
    a, b = curves.values()
    last = min(10, len(a))
    result = {"curves": curves, "first_loss": abs(a[0] - b[0]) / abs(a[0]),
              "last_losses": abs(sum(a[-last:]) - sum(b[-last:])) / abs(sum(a[-last:]))}
    result["ok"] = len(a) == len(b) and result["first_loss"] <= 1e-4 and result["last_losses"] <= 0.02
    (arguments.out / "curves.json").write_text(json.dumps(result, indent=1))
    print(json.dumps({key: value for key, value in result.items() if key != "curves"}))
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
