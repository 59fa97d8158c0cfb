"""What embedding needs beside Ray: the configured encoder, and images by their URIs as pixels or faults."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from synthscale.config import Config
from synthscale.embed.images import decode, image_statistics
from synthscale.storage.fetch import fetch
from synthscale.tables.faults import RowFault
from synthscale.tables.layout import StoredFile

FILE_COLUMNS = ("uri", "size_bytes", "etag")
_FIRST_IN_FLIGHT = 16
_UNKNOWN_BYTES = 2**20


def files_of(manifest: pa.Table) -> list[StoredFile]:
    """Return where a manifest's images lie, from its columns `FILE_COLUMNS`."""
    columns = (manifest.column(name).to_pylist() for name in FILE_COLUMNS)
    return [StoredFile(*values) for values in zip(*columns, strict=True)]


def decode_all(
    files: Sequence[StoredFile], image_size: int, config: Config
) -> tuple[NDArray[np.uint8], list[dict[str, Any]]]:
    """Fetch and decode images; return pixels (n, S, S, 3), zeros where one failed, and facts or reasons."""
    pixels = np.zeros((len(files), image_size, image_size, 3), np.uint8)
    facts: list[dict[str, Any]] = []
    for i, data in enumerate(fetch_all(files, config)):
        try:
            if isinstance(data, RowFault):
                raise data
            pixels[i], fact = decode(data, image_size)
            facts.append({**vars(fact), **image_statistics(pixels[i])})
        except RowFault as fault:
            facts.append({"reason": fault.reason.value, "detail": fault.detail})
    return pixels, facts


def fetch_all(files: Sequence[StoredFile], config: Config) -> Iterator[bytes | RowFault]:
    """Yield the bytes of each image, in order, or the fault that stands for it."""

    def one(file: StoredFile) -> bytes | RowFault:
        try:
            return fetch(file, config.storage)
        except RowFault as fault:
            return fault

    # Threads hide the latency of object storage; a local file is read faster than a thread is asked to.
    if not any("s3://" in file.uri for file in files):
        yield from map(one, files)
        return
    # A window, so that a shard of large files is never in memory as a whole.
    sizes = [_UNKNOWN_BYTES if file.size_bytes is None else file.size_bytes for file in files]
    waiting: deque[Future[bytes | RowFault]] = deque()
    # More at once only where the reader waits: threads take turns with the one that decodes.
    most, most_bytes = config.storage.requests_in_flight, config.storage.mib_in_flight * 2**20
    window = min(most, _FIRST_IN_FLIGHT)
    asked = held = done = 0
    with ThreadPoolExecutor(min(most, len(files))) as pool:
        while done < len(files):
            while asked < len(files) and (
                not waiting or (len(waiting) < window and held + sizes[asked] <= most_bytes)
            ):
                waiting.append(pool.submit(one, files[asked]))
                held += sizes[asked]
                asked += 1
            if not waiting[0].done():
                window = min(2 * window, 2 * most)
            yield waiting.popleft().result()
            held -= sizes[done]
            done += 1
