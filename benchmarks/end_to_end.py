"""The whole command against a plain single-process script: same images, same encoder, scikit-learn and Datalab.

python -m benchmarks.end_to_end          402 images of 256 px, half of them real
python -m benchmarks.end_to_end --full   and 5,000 images
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

from benchmarks.common import claim, interleaved, medians, python, write_images

PLAIN = str(Path(__file__).with_name("plain_script.py"))


def race(count: int, repeats: int) -> tuple[dict[str, float], dict[str, float]]:
    """Time the command and the script on ``count`` images; return medians and the command's stages, seconds."""
    with tempfile.TemporaryDirectory(prefix="synthscale-bench-") as top:
        real, synthetic, run = Path(top, "real"), Path(top, "synthetic"), Path(top, "run")
        write_images(real, count // 2, 256, seed=1)
        write_images(synthetic, count - count // 2, 256, seed=2)

        def command() -> None:
            shutil.rmtree(run, ignore_errors=True)
            arguments = ("--real", str(real), "--synthetic", f"made={synthetic}", "--output", str(run))
            python("-m", "synthscale.cli", "score", *arguments)

        times = interleaved(
            {"synthscale": command, "plain": lambda: python(PLAIN, str(real), str(synthetic))}, repeats
        )
        stages = json.loads((run / "run.json").read_text())["stages"]
    return medians(times), {name: round(stage["seconds"], 2) for name, stage in stages.items()}


def main() -> None:
    seconds, stages = race(402, repeats=3)
    claim(
        "402 images of 256 px: seconds over a plain single-process script",
        seconds["synthscale"] - seconds["plain"],
        15.0,
        "lower",
        "plain_script.py: same encoder, scikit-learn cross_val_predict, Datalab near_duplicate",
        ratio=round(seconds["synthscale"] / seconds["plain"], 2),
        **seconds,
    )
    outside = seconds["synthscale"] - sum(stages.values())
    print(json.dumps({"fixed_cost_s": {**stages, "imports, Ray start and end": round(outside, 2)}}))
    if "--full" in sys.argv[1:]:
        seconds, stages = race(5000, repeats=3)
        claim(
            "5,000 images of 256 px: time relative to a plain single-process script",
            seconds["synthscale"] / seconds["plain"],
            1.5,
            "lower",
            "plain_script.py",
            stages=stages,
            **seconds,
        )


if __name__ == "__main__":
    main()
