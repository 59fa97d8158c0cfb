"""Device and number of actors of embed, given Ray's resources and the settings; versions in its fingerprint."""

from types import SimpleNamespace

import pytest

from synthscale import Config
from synthscale.embed import stage as embed
from synthscale.embed.encoder_reader import EncoderSpec
from synthscale.errors import ConfigError
from synthscale.runtime.stage_context import StageContext
from synthscale.storage.run_directory import RunDirectory
from synthscale.tables.layout import VectorLayout, VectorSource


def context(tmp_path, device="auto", **resources):
    config = Config(encoder={"device": device})
    return StageContext(config, RunDirectory(str(tmp_path), config.storage), **resources)


@pytest.mark.parametrize(
    ("device", "gpus", "chosen"), [("auto", 0, "cpu"), ("auto", 2, "cuda"), ("cpu", 2, "cpu"), ("cuda", 1, "cuda")]
)
def test_the_device_is_a_gpu_if_ray_reports_one_unless_configured_otherwise(tmp_path, device, gpus, chosen):
    assert embed.device_for(context(tmp_path, device, gpus=gpus)) == chosen


def test_a_missing_gpu_is_an_error_on_one_machine_but_requested_from_a_cluster(tmp_path):
    with pytest.raises(ConfigError, match="no GPU"):
        embed.device_for(context(tmp_path, "cuda", gpus=0))
    growing = context(tmp_path, "cuda", gpus=0, is_local=False)
    assert embed.device_for(growing) == "cuda"
    pool = embed.actor_pool(growing, "cuda", shards=500, rows=500_000)
    assert pool.min_size == 1
    assert pool.max_size > 1


def test_a_large_set_uses_every_core_and_a_small_set_one(tmp_path):
    here = context(tmp_path, cpus=8)
    assert embed.actor_pool(here, "cpu", shards=16, rows=10_000).max_size == 8
    assert embed.actor_pool(here, "cpu", shards=16, rows=400).max_size == 1
    assert embed.actor_pool(here, "cpu", shards=3, rows=10_000).max_size == 3


def test_other_codecs_are_another_version_of_images_but_not_of_vectors(monkeypatch):
    def versions(vectors):
        run = SimpleNamespace(completed=lambda stage: SimpleNamespace(digest=""))
        facts = SimpleNamespace(config=Config(), vectors=vectors, run=run)
        return embed.fingerprint(facts, EncoderSpec(VectorLayout(1, (0, 1), (0, 1)), "encoder", 64))["versions"]

    source = VectorSource(["v.parquet"], [1], ["embedding"], 1)
    images, vectors = versions(None), versions(source)
    monkeypatch.setattr("PIL.__version__", "99.1.0")
    assert versions(None) == {**images, "pillow": "99.1"}
    assert versions(source) == vectors == {"algorithm": embed.ALGORITHM_VERSION}
