"""The near-duplicate threshold of each encoder: recall and precision on pictures whose copies are known.

python -m benchmarks.thresholds [descriptor|mobilenet_v2 ...]

Reads ``data/`` of the folder SYNTHSCALE_SHARED, or of ../shared. A threshold is in units of the median
nearest-neighbour distance of the calibrating set: 1,600 CIFAR-10 images for what is of CIFAR-10, 250 photographs
for the rest. SqueezeNet is left out: its weights take BGR, which the configuration cannot say.
"""

import csv
import io
import json
import os
import sys
import time
from collections.abc import Iterable, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from benchmarks.common import claim
from synthscale.config import Config, EncoderConfig
from synthscale.embed.encoder_reader import load_encoder
from synthscale.embed.image_reader import decode_all
from synthscale.embed.images import decode, to_rgb
from synthscale.neighbors.distance import Floats, half_squared_distance, normalized
from synthscale.storage.fetch import zip_uri
from synthscale.tables.layout import StoredFile

DATA = Path(os.environ.get("SYNTHSCALE_SHARED", Path(__file__).parents[2] / "shared")).resolve() / "data"
DEFAULT = 0.13
GRID = (0.02, 0.05, 0.08, DEFAULT, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
SAFE = 0.99
PEER = f"the default threshold, {DEFAULT}"
HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Images:
    """Pictures as unit vectors; those of one source are copies of one another."""

    vectors: Floats
    source: NDArray[np.str_]

    def __add__(self, other: "Images") -> "Images":
        return Images(np.vstack([self.vectors, other.vectors]), np.concatenate([self.source, other.source]))


@dataclass(frozen=True)
class Case:
    """Distances over the median: of all pairs of copies, and of the other pairs nearer than the median."""

    name: str
    copies: Floats
    false: Floats | None

    def recall(self, threshold: float) -> float:
        return float(np.mean(self.copies < threshold))

    def limit(self) -> float:
        """The largest threshold, at most 1, up to which precision stays at SAFE or above."""
        false = np.sort(self.false) if self.false is not None else np.empty(0)
        true = np.searchsorted(np.sort(self.copies), false, "right")
        low = true / (true + np.arange(1, len(false) + 1)) < SAFE
        return float(false[low][0]) if low.any() else 1.0

    def curve(self) -> dict[str, object]:
        """What the JSON line's detail holds; precision is null where nothing is flagged."""
        line: dict[str, object] = {"pairs": len(self.copies)}
        true = {t: int((self.copies < t).sum()) for t in GRID}
        if len(self.copies):
            line["recall"] = {t: _short(self.recall(t)) for t in GRID}
        if self.false is not None:
            false = {t: int((self.false < t).sum()) for t in GRID}
            line["precision"] = {t: _short(n / (n + false[t])) if n + false[t] else None for t, n in true.items()}
            line["false_pairs"], line["nearest_false"] = false, _short(self.false.min(initial=1))
        return line


class Embedder:
    """The project's own way from files to unit vectors of the search dimensions, at one size."""

    def __init__(self, name: str, image_size: int) -> None:
        weights = str(DATA / "weights" / "mobilenet_v2_tf2_ptq_dequant.pt")
        learned = EncoderConfig(name=name, weights=weights, mean=HALF, std=HALF, image_size=image_size)
        self._config = Config(encoder=EncoderConfig() if name == "descriptor" else learned)
        self._encoder = load_encoder(self._config)

    def files(self, uris: Iterable[Path | str], source: Iterable[str] | None = None) -> Images:
        """Embed files; each is a source of its own unless told; files that cannot be read are left out."""
        paths = [str(uri) for uri in uris]
        pixels, facts = decode_all([StoredFile(path) for path in paths], self._encoder.image_size, self._config)
        readable = np.array(["reason" not in fact for fact in facts])
        return Images(self._unit(pixels[readable]), np.array(paths if source is None else list(source))[readable])

    def edited(self, paths: list[Path], edit: str) -> Images:
        """Embed an edit of each file: ``jpeg75``, ``mirror``, or ``crop90``, which keeps 90 % of each side."""
        pixels = [decode(_edit(path, edit), self._encoder.image_size)[0] for path in paths]
        return Images(self._unit(np.stack(pixels)), np.array([str(path) for path in paths]))

    def _unit(self, pixels: NDArray[np.uint8]) -> Floats:
        step = self._config.encoder.batch_size
        parts = [self._encoder.encode(pixels[i : i + step]) for i in range(0, len(pixels), step)]
        return normalized(np.concatenate(parts)[:, slice(*self._encoder.search)])


def _edit(path: Path, edit: str) -> bytes:
    image = to_rgb(ImageOps.exif_transpose(Image.open(path)))
    if edit == "mirror":
        image = ImageOps.mirror(image)
    elif edit.startswith("crop"):
        x, y = (round(side * (1 - int(edit[4:]) / 100) / 2) for side in image.size)
        image = image.crop((x, y, image.width - x, image.height - y))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=75 if edit == "jpeg75" else 95)
    return out.getvalue()


def nearest(images: Images) -> Floats:
    """Distance of each distinct image's nearest neighbour."""
    distinct = np.unique(images.vectors, axis=0)
    similar = distinct @ distinct.T
    np.fill_diagonal(similar, -np.inf)
    return half_squared_distance(distinct, distinct[similar.argmax(axis=1)])


def compare(
    name: str, query: Images, database: Images, median: float, known: Set[frozenset[str]] = frozenset()
) -> Case:
    """Pairs of one source are copies, others false but for ``known`` near-duplicates, which are neither."""
    alike = query.source[:, None] == database.source[None, :]
    once = np.triu(np.ones_like(alike), 1) if query is database else np.ones_like(alike)
    left, right = np.nonzero(alike & once)
    copies = half_squared_distance(query.vectors[left], database.vectors[right])
    # The product shortlists, a little beyond the median, and the formula decides.
    left, right = np.nonzero(~alike & once & (1 - query.vectors @ database.vectors.T < 1.001 * median))
    ends = zip(query.source[left].tolist(), database.source[right].tolist(), strict=True)
    wrong = np.array([frozenset(pair) not in known for pair in ends], bool)
    false = half_squared_distance(query.vectors[left[wrong]], database.vectors[right[wrong]])
    return Case(name, copies / median, false / median)


def read_csv(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def cifar_cases(embedder: Embedder) -> tuple[Images, list[Case]]:
    folder, truth = DATA / "cifar10", DATA / "neardup" / "cifar10_cifair"
    path_of = {row["cifar10_test_index"]: row["path"] for row in read_csv(truth / "index_to_path_test.csv")}
    pairs = read_csv(truth / "pairs_by_path.csv")
    png = sorted((folder / "real_png_1600").iterdir())
    real = embedder.files(png, (path_of[path.stem.removeprefix("image_")] for path in png))
    jpeg = sorted((folder / "real_jpeg_1000").iterdir())
    again = embedder.files(jpeg, (path.name.replace("_", "/") for path in jpeg))
    members = sorted({pair[end] for pair in pairs for end in ("a_path", "b_path")})
    listed = embedder.files((zip_uri(str(truth / "pair_images.zip"), m) for m in members), members)
    place = {name: i for i, name in enumerate(listed.source.tolist())}
    median = float(np.median(nearest(real)))
    known = {frozenset((pair["a_path"], pair["b_path"])) for pair in pairs}
    cases = [compare("CIFAR-10 as JPEG 75", again, real, median, known)]
    for judgment in ("near", "similar"):
        of = [p for p in pairs if p["judgment"] == judgment and p["kind"] == "test-train"]
        a, b = (listed.vectors[[place[pair[end]] for pair in of]] for end in ("a_path", "b_path"))
        cases.append(Case(f"CIFAR-10 {judgment} pairs", half_squared_distance(a, b) / median, None))
    # No pair of these two is known to be false: upper bounds of the false alarms.
    cases.append(compare("CIFAR-10, unlisted pairs", real, real, median, known))
    diffusion = embedder.files(p for name in ("edm_64", "ddpm_256") for p in sorted((folder / name).iterdir()))
    cases.append(compare("CIFAR-10, diffusion images and real ones", diffusion, real, median))
    return real, cases


def photo_cases(embedder: Embedder) -> tuple[Images, list[Case]]:
    top = DATA / "neardup"
    files = sorted((DATA / "photos").iterdir())
    photos = embedder.files(files)
    median = float(np.median(nearest(photos)))
    others = [*(top / "pdq_bridge/labelme-subset").iterdir(), *(top / "imagededup_tests/base_images").iterdir()]
    unrelated = photos + embedder.files(path for path in others if path.name != "ukbench00120.jpg")
    views = embedder.files((top / "ukbench_sample/ukbench").iterdir())
    groups = read_csv(top / "caltech101_rand_resize/groups.csv")
    paths = (top / "caltech101_rand_resize/images" / row["file"] for row in groups)
    caltech = embedder.files(paths, (row["group"] for row in groups))
    cases = [compare("Caltech-101 resized", caltech, caltech, median)]
    edits = {
        "photograph, edits": ("pdq_bridge/bridge-mods", "aaa-orig.jpg"),
        "photograph, modes and formats": ("pdq_bridge/modes", "original.jpg"),
        "photograph, turned or mirrored": ("pdq_bridge/dih", "bridge-1-original.jpg"),
        "imagededup, resized, mirrored, rotated": ("imagededup_tests/mixed_images", "ukbench00120.jpg"),
    }
    for name, (folder, original) in edits.items():
        # imagededup's folder holds another picture as well, which is among the unrelated ones.
        copies = [p for p in sorted((top / folder).iterdir()) if p.name != original and "09268" not in p.name]
        database = unrelated + views + embedder.files([top / folder / original], [original])
        cases.append(compare(name, embedder.files(copies, [original] * len(copies)), database, median))
    for edit in ("jpeg75", "crop95", "crop90", "crop80", "mirror"):
        cases.append(compare(f"250 photographs, {edit}", embedder.edited(files, edit), unrelated + views, median))
    cases.append(compare("unrelated photographs", unrelated, unrelated, median))
    # Another view of the same object is another picture, and the hardest to tell from a copy.
    cases.append(compare("ukbench, views of three objects", views, views, median))
    return photos, cases


def calibration(name: str, real: Images) -> None:
    """Print how the median, and so the radius, moves with the size of the calibrating set."""
    subsets = [np.random.default_rng(0).permutation(len(real.source))[::step] for step in (16, 4, 1)]
    medians = {len(s): _short(np.median(nearest(Images(real.vectors[s], real.source[s])))) for s in subsets}
    own = nearest(real)
    near = {t: _short(np.mean(own < t * np.median(own))) for t in GRID}
    print(json.dumps({"calibration": name, "median_by_images": medians, "share_with_another_within": near}))


def _short(value: float | np.floating) -> float:
    return round(float(value), 4)


def report(name: str) -> None:
    start_s = time.perf_counter()
    full = name if name == "descriptor" else f"torchvision:{name}"
    tiny, small = cifar_cases(Embedder(full, 128))
    photos, large = photo_cases(Embedder(full, 224))
    calibration(f"{name}: CIFAR-10", tiny)
    calibration(f"{name}: photographs", photos)
    rest = (np.concatenate([getattr(case, part) for case in large[1:]]) for part in ("copies", "false"))
    judged = [small[0], large[0], Case("all photographs", *rest)]
    limits = {case.name: _short(case.limit()) for case in judged}
    limit = min(case.limit() for case in judged)
    claim(f"{name}: largest threshold of precision {SAFE}", limit, DEFAULT, "higher", PEER, **limits)
    for case in [*small, *large, judged[-1]]:
        text, detail = f"{name}: {case.name}: recall at {limit:.3f}", case.curve()
        if len(case.copies):
            claim(text, case.recall(limit), case.recall(DEFAULT), "higher", PEER, **detail)
        else:
            print(json.dumps({"false alarms": f"{name}: {case.name}", "detail": detail}), flush=True)
    print(json.dumps({"seconds": name, "value": round(time.perf_counter() - start_s, 1)}), flush=True)


def main(names: list[str]) -> None:
    if not DATA.is_dir():
        sys.exit(f"no measurement data at {DATA}: set SYNTHSCALE_SHARED to the folder that holds data/")
    torch.set_num_threads(1)
    for name in names or ["descriptor", "mobilenet_v2"]:
        report(name)


if __name__ == "__main__":
    main(sys.argv[1:])
