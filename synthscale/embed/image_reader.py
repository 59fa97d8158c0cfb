"""Fetch and decode images by URI, with concurrent S3 requests; failures become values, not exceptions.

Reads image files from local disks and S3; writes nothing. Independent of Ray.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from synthscale.config import Config
from synthscale.embed.images import decode, image_statistics
from synthscale.storage.fetch import fetch, input_folders
from synthscale.tables.faults import RowFault
from synthscale.tables.layout import StoredFile

FILE_COLUMNS = ("uri", "size_bytes", "etag", "fault")
"""Columns of ``manifest/`` that locate an image; the fields of `StoredFile`, in order."""
_FIRST_IN_FLIGHT = 16
"""Initial number of concurrent requests; it doubles while decoding waits for the network."""
_UNKNOWN_BYTES = 2**20
"""Size in bytes assumed for an image of unknown size when the memory of pending requests is bounded."""


def files_of(manifest: pa.Table) -> list[StoredFile]:
    """Return the location of each image of a manifest, which has the columns `FILE_COLUMNS`."""
    present = [name for name in FILE_COLUMNS if name in manifest.column_names]
    columns = (manifest.column(name).to_pylist() for name in present)
    # A row without a file has no URI, but a fault.
    return [StoredFile(uri or "", *values) for uri, *values in zip(*columns, strict=True)]


def decode_all(
    files: Sequence[StoredFile], image_size: int, config: Config
) -> tuple[NDArray[np.uint8], list[dict[str, Any]]]:
    """Fetch and decode images.

    Args:
        files: locations of n images.
        image_size: S, side in pixels of the decoded squares.
        config: configuration of the run, for its storage settings.

    Returns:
        Pixels, (n, S, S, 3) uint8, zeros for images that failed; and one record per image: the fields of
        `FileMetadata` and of `image_statistics`, or ``reason`` and ``detail`` if it failed.
    """
    pixels = np.zeros((len(files), image_size, image_size, 3), np.uint8)
    records: list[dict[str, Any]] = []
    for i, data in enumerate(fetch_all(files, config, input_folders(config))):
        try:
            if isinstance(data, RowFault):
                raise data
            pixels[i], metadata = decode(data, image_size)
            records.append({**vars(metadata), **image_statistics(pixels[i])})
        except RowFault as fault:
            records.append(fault.record())
    return pixels, records


def fetch_all(
    files: Sequence[StoredFile], config: Config, roots: Sequence[str] = ()
) -> Iterator[bytes | RowFault]:
    """Fetch images in order.

    S3 objects are requested concurrently, ahead of the consumer: at most ``storage.requests_in_flight`` requests
    and ``storage.mib_in_flight`` MiB, though a single image may exceed the latter. Local files are read one after
    another.

    Args:
        files: locations of the images.
        config: configuration of the run, for its storage settings.
        roots: folders whose disappearance is waited for, as in `fetch.fetch`.

    Yields:
        The bytes of each image, or the RowFault that its fetch raised.

    Raises:
        StorageUnavailable: a transient error lasted for ``storage.retry_s``.
    """

    def fetch_or_fault(file: StoredFile) -> bytes | RowFault:
        if file.fault is not None:
            return RowFault.parse(file.fault)
        try:
            return fetch(file, config.storage, roots)
        except RowFault as fault:
            return fault

    # Threads hide the latency of object storage. A local file is read faster than a thread is started on it.
    if not any("s3://" in file.uri for file in files):
        yield from map(fetch_or_fault, files)
        return
    # Requests are limited to a window, so that a shard of large files is never in memory as a whole.
    sizes = [_UNKNOWN_BYTES if file.size_bytes is None else file.size_bytes for file in files]
    pending: deque[Future[bytes | RowFault]] = deque()
    max_requests, max_bytes = config.storage.requests_in_flight, config.storage.mib_in_flight * 2**20
    window = min(max_requests, _FIRST_IN_FLIGHT)
    submitted = pending_bytes = yielded = 0
    pool = ThreadPoolExecutor(min(max_requests, len(files)))
    try:
        while yielded < len(files):
            while submitted < len(files) and (
                not pending or (len(pending) < window and pending_bytes + sizes[submitted] <= max_bytes)
            ):
                pending.append(pool.submit(fetch_or_fault, files[submitted]))
                pending_bytes += sizes[submitted]
                submitted += 1
            # The window grows only while the consumer waits for the network: all these threads share the
            # interpreter lock with the thread that decodes.
            if not pending[0].done():
                window = min(2 * window, 2 * max_requests)
            yield pending.popleft().result()
            pending_bytes -= sizes[yielded]
            yielded += 1
    finally:
        # After an error the requests in flight are not waited for: each may be repeated for minutes.
        pool.shutdown(wait=False, cancel_futures=True)
