"""What embedding needs beside Ray: the configured encoder, and images by their URIs as pixels or faults."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthscale import filesystems as fsys
from synthscale.config import Config
from synthscale.encoders import Encoder, build_encoder
from synthscale.fetch import fetch
from synthscale.images import ImageFault, decode, picture_facts
from synthscale.schemas import Layout
from synthscale.vectors import VectorSource

_FETCH_THREADS = 32


def encoder_for(config: Config, device: str = "cpu") -> Encoder:
    """Build the run's encoder, reading its weights file if there is one."""
    weights = config.encoder.weights
    data = None if weights is None else fsys.read_bytes(fsys.absolute(weights), config.storage)
    return build_encoder(config.encoder, data, device)


@dataclass(frozen=True)
class EncoderFacts:
    """What is known of a run's vectors before any is made; ``image_size`` is None for precomputed ones."""

    layout: Layout
    fingerprint: str
    image_size: int | None


def encoder_facts(config: Config, vectors: VectorSource | None) -> EncoderFacts:
    """Return what the vectors' dimensions are for, and the text that identifies how they are made."""
    if vectors is not None:
        d = vectors.dimensions
        return EncoderFacts(Layout(d, (0, d), (0, d)), f"vectors/{d}", None)
    return facts_of(encoder_for(config))


def facts_of(encoder: Encoder) -> EncoderFacts:
    """Return what a built encoder promises."""
    layout = Layout(encoder.dimensions, encoder.search, encoder.classify)
    return EncoderFacts(layout, encoder.fingerprint, encoder.image_size)


def decode_all(uris: list[str], image_size: int, config: Config) -> tuple[NDArray[np.uint8], list[dict[str, Any]]]:
    """Fetch and decode images; return pixels (n, S, S, 3), zeros where one failed, and facts or reasons."""
    pixels = np.zeros((len(uris), image_size, image_size, 3), np.uint8)
    facts: list[dict[str, Any]] = []
    for i, data in enumerate(fetch_all(uris, config)):
        try:
            if isinstance(data, ImageFault):
                raise data
            pixels[i], fact = decode(data, image_size)
            facts.append({**vars(fact), **picture_facts(pixels[i])})
        except ImageFault as fault:
            facts.append({"reason": fault.reason.value, "detail": fault.detail})
    return pixels, facts


def fetch_all(uris: list[str], config: Config) -> Iterator[bytes | ImageFault]:
    """Yield the bytes of each image, in order, or the fault that stands for it."""

    def one(uri: str) -> bytes | ImageFault:
        try:
            return fetch(uri, config.storage)
        except ImageFault as fault:
            return fault

    # Threads hide the latency of object storage; a local file is read faster than a thread is asked to.
    if not any(fsys.is_s3(uri) for uri in uris):
        yield from map(one, uris)
        return
    with ThreadPoolExecutor(_FETCH_THREADS) as pool:
        # A window, so that a shard of large files is never in memory as a whole.
        waiting: deque[Future[bytes | ImageFault]] = deque()
        for uri in uris:
            waiting.append(pool.submit(one, uri))
            if len(waiting) >= 2 * _FETCH_THREADS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
