"""Fixtures that all tests share: measurement data, an S3 server, small drawn images, and one local Ray."""

import os
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

from tests.examples import FACTOR

ROOT = Path(__file__).parents[1]

# A busy machine must not fail a test that is right.
settings.register_profile("suite", deadline=None, max_examples=50 * FACTOR)
settings.load_profile("suite")

_LONGEST = (
    "test_pipeline.py",
    "test_command.py",
    "test_stage.py",
    "test_stream.py",
    "test_cache_stage.py",
    "test_page.py",
    "test_jobs.py",
    "test_interval_coverage.py",
)
"""Files that take longest: two processes share the files (``make test``), and should not end with one of these."""

_AWS_OF_THE_MACHINE = ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests that use Ray, a browser or examples, and begin with the files that take longest."""
    for item in items:
        if getattr(getattr(item, "obj", None), "is_hypothesis_test", False):
            item.add_marker("property")
        fixtures = getattr(item, "fixturenames", ())
        for marker, fixture in (("ray", "local_ray"), ("browser", "browser")):
            if fixture in fixtures:
                item.add_marker(marker)
    ranks = {name: rank for rank, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path.name, len(ranks)))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of measurement data that lies outside the repository; tests skip without it."""
    shared = Path(os.environ.get("SYNTHSCALE_SHARED", ROOT.parent / "shared"))
    if not (shared / "data").is_dir():
        pytest.skip(f"no measurement data in {shared}: set SYNTHSCALE_SHARED")
    return shared


@pytest.fixture
def s3_clients_of_its_own(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Credentials of the test's own, and no client that another test has made."""
    from synthscale.storage import filesystems, objects, s3_client

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "access-key-of-the-test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-the-test")
    kept = (objects._store, objects._settings, s3_client.s3_client, filesystems._s3)
    for cache in kept:
        cache.cache_clear()
    yield
    for cache in kept:
        cache.cache_clear()


@dataclass(frozen=True)
class S3:
    """moto's S3 server on a loopback port and a boto3 client of it."""

    endpoint_url: str
    client: Any

    def bucket(self) -> str:
        """Make a fresh bucket and return its name."""
        name = f"test-{uuid.uuid4().hex[:12]}"
        self.client.create_bucket(Bucket=name)
        return name

    def put_folder(self, folder: Path, uri: str) -> None:
        """Copy a local folder to an ``s3://bucket/prefix``."""
        bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            key = f"{prefix}/{path.relative_to(folder).as_posix()}".lstrip("/")
            self.client.put_object(Bucket=bucket, Key=key, Body=path.read_bytes())

    def keys(self, bucket: str) -> list[str]:
        """Return the keys of all objects in a bucket."""
        return [item["Key"] for item in self.client.list_objects_v2(Bucket=bucket).get("Contents", [])]


@pytest.fixture(scope="session")
def s3() -> Iterator[S3]:
    """An S3 server; credentials and endpoint stand in the environment while it runs."""
    boto3 = pytest.importorskip("boto3")
    server_module = pytest.importorskip("moto.server")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint_url = f"http://{host}:{port}"
    values = {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint_url,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name in _AWS_OF_THE_MACHINE:
            patch.delenv(name, raising=False)
        for name, value in values.items():
            patch.setenv(name, value)
        for name in ("NO_PROXY", "no_proxy"):
            patch.setenv(name, ",".join(filter(None, [os.environ.get(name), "127.0.0.1"])))
        yield S3(endpoint_url, boto3.client("s3", endpoint_url=endpoint_url))
    server.stop()


MakeImages = Callable[..., list[Path]]


@pytest.fixture(scope="session")
def make_images() -> MakeImages:
    """A function that writes n distinct small pictures to FOLDER/LABEL/NNN.FORMAT and returns their paths.

    The same arguments give the same bytes; another seed gives other pictures. ``size`` is a side in pixels or
    (width, height); ``labels`` are dealt in turn, and ``None`` puts a picture into FOLDER itself.
    """

    def make(
        folder: Path,
        n: int = 8,
        *,
        seed: int = 0,
        size: int | tuple[int, int] = 32,
        format: str = "png",
        labels: tuple[str | None, ...] = ("cat", "dog"),
    ) -> list[Path]:
        rng = np.random.default_rng(seed)
        width, height = (size, size) if isinstance(size, int) else size
        paths = []
        for i in range(n):
            label = labels[i % len(labels)]
            path = Path(folder) / (label or "") / f"{i:03d}.{format}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw(rng, width, height)).save(path)
            paths.append(path)
        return paths

    return make


def draw(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Draw coloured discs over a gradient with some noise: (height, width, 3) uint8."""
    down, across = np.mgrid[0:height, 0:width].astype(float)
    pixels = rng.uniform(40, 215, 3) + np.multiply.outer(across / width - 0.5, rng.uniform(-60, 60, 3))
    for _ in range(6):
        top, left, radius = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(0.1, 0.35) * height
        pixels[np.hypot(down - top, across - left) < radius] = rng.uniform(0, 255, 3)
    return np.clip(pixels + rng.normal(0, 3, pixels.shape), 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def local_ray(s3: S3) -> Iterator[None]:
    """One Ray for all tests that need it; started after the S3 server, whose settings its workers inherit."""
    from synthscale.runtime.session import RaySession

    with RaySession() as session:
        session.wait_until_ready()
        yield
