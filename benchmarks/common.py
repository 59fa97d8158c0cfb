"""What the benchmarks share: printing a claim, making image folders, and timing commands in turn."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter


def checked(text: str, value: float, target: float, better: str, peer: str, **detail: object) -> dict[str, object]:
    """Return one claim, with whether it holds: the JSON object that `claim` prints."""
    ok = bool(value <= target if better == "lower" else value >= target)
    line = {
        "claim": text,
        "value": round(float(value), 4),
        "target": target,
        "better": better,
        "ok": ok,
        "peer": peer,
    }
    return {**line, "detail": detail}


def claim(text: str, value: float, target: float, better: str, peer: str, **detail: object) -> None:
    """Print one claim as a JSON line."""
    print(json.dumps(checked(text, value, target, better, peer, **detail)), flush=True)


def interleaved(runs: dict[str, Callable[[], None]], repeats: int) -> dict[str, list[float]]:
    """Time each run ``repeats`` times in turn, so that a busy minute falls on all of them; seconds."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return times


def medians(times: dict[str, list[float]]) -> dict[str, float]:
    return {name: round(statistics.median(values), 2) for name, values in times.items()}


def python(*arguments: str) -> str:
    """Run this Python with some arguments; return what it printed."""
    done = subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout


def write_images(folder: Path, count: int, size_px: int, seed: int) -> None:
    """Write ``count`` JPEGs of smooth coloured noise with a few shapes: cheap, distinct, of natural file size."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        coarse = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((size_px, size_px), Image.Resampling.BICUBIC)
        grain = rng.normal(0, 8, (size_px, size_px, 1))
        pixels = np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(0.6)).save(folder / f"{i:06d}.jpg", quality=90)
