"""Classify stage on Ray: the result is the same for any workers, cached or not, interrupted or not."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from synthscale import Config
from synthscale.classify import ray_train as train_run
from synthscale.classify import stage as classify
from synthscale.classify.ray_fold_tables import TrainingReader, plan_all_folds
from synthscale.errors import ResumeConflict, SchemaError
from synthscale.metrics import stage as reduce
from synthscale.metrics.ray_view_tables import ViewReader, real_lookup
from synthscale.pipeline import score
from synthscale.runtime.session import ray_errors
from synthscale.runtime.stage_context import StageContext
from synthscale.storage.run_directory import RunDirectory
from synthscale.tables.id_hashes import hash_ids
from tests.runs import run_until

pytestmark = pytest.mark.usefixtures("local_ray")

WIDTH = 12
SIZES = {"real": 400, "fake": 260, "other": 90, "collapsed": 25, "single": 1}
SHARD_ROWS = 97
UNUSABLE = slice(97, 194)
"""Rows without a usable vector: all of the second shard."""
USABLE = {**SIZES, "real": 400 - 97}
BY_GROUP = ("fake", "other")
"""Generators whose groups can be folds; all rows of the third one are a single near-duplicate group."""
TELLABLE = (*BY_GROUP, "collapsed")
"""Generators that can be cross-validated; the last one has a single row."""


def drawn():
    """Real rows, a generator with copies and repeats, another, one that repeats an image, and a single row."""
    rng = np.random.default_rng(0)
    real = rng.normal(size=(SIZES["real"], WIDTH))
    fake = 0.5 + rng.normal(size=(SIZES["fake"], WIDTH))
    fake[:30] = real[:30] + 1e-4 * rng.normal(size=(30, WIDTH))
    fake[100:120] = fake[100] + 1e-4 * rng.normal(size=(20, WIDTH))
    other = 0.7 * rng.normal(size=(SIZES["other"], WIDTH))
    collapsed = 3 * rng.normal(size=WIDTH) + 1e-5 * rng.normal(size=(SIZES["collapsed"], WIDTH))
    single = rng.normal(size=(SIZES["single"], WIDTH))
    real[UNUSABLE] = np.nan
    return np.concatenate([real, fake, other, collapsed, single]).astype(np.float32)


def write_vectors(path, vectors, sizes):
    names = [name for name, n in sizes.items() for _ in range(n)]
    columns = {
        "id": [f"{i:06d}" for i in range(len(vectors))],
        "real_or_synthetic": ["real" if name == "real" else "synthetic" for name in names],
        "generator": [None if name == "real" else name for name in names],
        "embedding": list(vectors),
    }
    pq.write_table(pa.table(columns), path)
    return path


def prepare(source, output, shard_rows):
    """Run the stages before classify."""
    storage = {"shard_rows": shard_rows}
    config = Config(manifest=str(source), output=str(output), max_failure_fraction=0.5, storage=storage)
    run_until(config, "neighbors")
    return config


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_vectors(tmp_path_factory.mktemp("vectors") / "v.parquet", drawn(), SIZES)


@pytest.fixture(scope="module")
def prepared(local_ray, source, tmp_path_factory):
    """A run that is ready for the stage; shards of odd length, so that none lines up with a set."""
    return prepare(source, tmp_path_factory.mktemp("prepared") / "run", SHARD_ROWS)


@pytest.fixture(scope="module")
def prepared_in_three(local_ray, source, tmp_path_factory):
    """The same in three shards, fewer than four workers."""
    return prepare(source, tmp_path_factory.mktemp("three") / "run", 300)


def copy_of(config, folder, **settings):
    """Copy an unfinished run, to be finished with other settings of the classifier."""
    shutil.copytree(config.output, folder)
    return Config.model_validate({**config.model_dump(), "output": str(folder), "classifier": settings})


@dataclass
class Classified:
    """Outcome and tables of one run of the stage."""

    run: RunDirectory
    info: dict
    told: list

    @property
    def fit(self):
        return self.info["fit"]

    def of(self, name="synthetic"):
        return self.info["generators"][name]

    def predictions(self):
        return table(self.run, "predictions").sort_values(["generator", "row"]).reset_index(drop=True)


def classify_alone(config, **context):
    told = []
    run = RunDirectory.existing(config.output, config.storage)
    with ray_errors("classify"):
        outcome = classify.run(StageContext(config, run, on_progress=told.append, **{"cpus": 2, **context}))
    # Through JSON, as in the stage's marker.
    return Classified(run, json.loads(json.dumps(outcome.info)), told)


def table(run, name):
    return pq.read_table(run.path(name)).to_pandas()


def assert_same(ours, theirs):
    ours, theirs = ours.predictions(), theirs.predictions()
    assert ours[["generator", "row", "fold"]].equals(theirs[["generator", "row", "fold"]])
    one, two = (expit(part.logit_synthetic.to_numpy(np.float64)) for part in (ours, theirs))
    assert np.abs(one - two).max() <= 1e-5


@pytest.fixture(scope="module")
def finished(prepared, tmp_path_factory):
    """A complete run, with heads fitted in this process."""
    config = copy_of(prepared, tmp_path_factory.mktemp("finished") / "run")
    return config, score(config)


@pytest.fixture(scope="module")
def undisturbed(finished):
    run = finished[1].run
    return Classified(run, run.completed("classify").info, [])


# What is written.


def test_every_row_of_every_view_is_predicted_exactly_once(finished, undisturbed):
    predictions = undisturbed.predictions()
    manifest = table(undisturbed.run, "manifest")
    usable = set(table(undisturbed.run, "embeddings")["row"])
    assert len(usable) == sum(USABLE.values())
    assert set(predictions.generator) == set(TELLABLE)
    for name in TELLABLE:
        own = manifest[(manifest.real_or_synthetic == "real") | (manifest.generator == name)]
        expected = sorted(set(own["row"]) & usable)
        assert predictions.query("generator == @name")["row"].tolist() == expected
    assert predictions.logit_synthetic.notna().all()


def test_folds_agree_with_the_assignment_and_split_no_near_duplicate_group(undisturbed):
    run = undisturbed.run
    # The folder has fitted heads too.
    assigned = pd.concat(
        pq.read_table(path).to_pandas() for path in Path(run.path("classifier")).glob("*.parquet")
    )
    assert sorted(assigned["row"][assigned.generator == "single"]) == sorted(
        table(run, "nearest").query("generator == 'single'")["row"]
    )
    tellable = assigned[assigned.generator.isin(TELLABLE)]
    tellable = tellable.assign(
        first_fold=tellable.fold.map(lambda folds: folds[0]), repeats=tellable.fold.map(len)
    )
    assert (tellable.repeats == 1).all()
    both = undisturbed.predictions().merge(tellable, on=["generator", "row"], validate="1:1")
    assert len(both) == len(tellable) == len(undisturbed.predictions())
    assert (both.fold_x == both.first_fold).all()
    groups = table(run, "groups")
    assert (both.groupby("generator").first_fold.nunique() == 5).all()
    members = both.merge(groups, on=["generator", "row"])
    # The hashes of clusters, which the intervals rely on, and of components give the same parts.
    for part, key, names in (
        ("cluster_id", "cluster_key", TELLABLE),
        ("component_id", "group_key", BY_GROUP),
        ("component_id", "first_fold", BY_GROUP),
    ):
        own, parts = both[both.generator.isin(names)], members[members.generator.isin(names)]
        grouped = parts.groupby(["generator", part])
        assert len(grouped) >= 31
        assert (grouped[key].nunique() == 1).all()
        if key != "first_fold":
            assert own.groupby("generator")[key].nunique().sum() == len(own) - (grouped.size() - 1).sum()
    # Nearly all synthetic rows of this one are one component, so rows were assigned to folds.
    own = both[both.generator == "collapsed"]
    assert own.group_key.nunique() == len(own)
    assert np.bincount(own.first_fold[own["row"] >= SIZES["real"]]).tolist() == [5] * 5


def test_one_repeat_has_no_deviation_and_vectors_have_no_file_metadata(finished, undisturbed):
    predictions = undisturbed.predictions()
    assert predictions.logit_deviation.isna().all()
    assert predictions.logit_file_facts.isna().all()
    for name in TELLABLE:
        block = finished[1].metrics["generators"][name]
        assert block["classifier"].get("repeats") is None
        assert block["confounders"]["auc"]["value"] is None
        assert "vectors" in block["confounders"]["auc"]["reason"]
        assert block["confounders"]["bytes_per_pixel_auc"] is None
        assert not [text for text in block["warnings"] if "file" in text]


def test_a_generator_that_cannot_be_cross_validated_has_reasons_and_does_not_affect_others(finished):
    blocks = finished[1].metrics["generators"]
    single = blocks["single"]
    for metric in ("fidelity", "representativeness"):
        assert single["metrics"][metric]["value"] is None
        assert "classifier" in single["metrics"][metric]["reason"]
        assert all(blocks[name]["metrics"][metric]["value"] is not None for name in TELLABLE)
    for figure in ("auc", "accuracy", "log_loss", "p_value"):
        assert single["classifier"][figure]["value"] is None
        assert single["classifier"][figure]["reason"]
        assert all(blocks[name]["classifier"][figure]["value"] is not None for name in BY_GROUP)
    assert single["metrics"]["diversity"]["value"] == 1
    assert single["metrics"]["precision"]["value"] is not None
    assert [text for text in single["warnings"] if "cross-validated" in text]
    assert finished[1].scores("single")["label_quality_score"].isna().all()


def test_a_generator_of_one_image_has_folds_of_rows_and_a_warning_but_no_p_value(finished):
    blocks = finished[1].metrics["generators"]
    collapsed = blocks["collapsed"]
    assert collapsed["metrics"]["diversity"]["value"] == 0
    assert collapsed["metrics"]["unique_share"]["value"] == pytest.approx(1 / 25)
    for name in BY_GROUP:
        assert not [text for text in blocks[name]["warnings"] if "image by image" in text]
    assert len([text for text in collapsed["warnings"] if "image by image" in text]) == 1
    assert collapsed["classifier"]["auc"]["value"] is not None
    assert collapsed["classifier"]["auc"]["low"] is None
    assert collapsed["classifier"]["p_value"]["value"] is None
    for figure in (collapsed["classifier"]["auc"], collapsed["classifier"]["p_value"]):
        assert figure["reason"] == "too_few_independent"


def test_the_metrics_are_those_of_the_predictions(finished, undisturbed):
    predictions = undisturbed.predictions()
    for name in TELLABLE:
        own = predictions.query("generator == @name")
        synthetic = (own["row"] >= SIZES["real"]).to_numpy()
        p = expit(own.logit_synthetic.to_numpy(np.float64))
        loss = -np.log(np.where(synthetic, p, 1 - p))
        correct = (p >= 0.5) == synthetic
        figures = finished[1].metrics["generators"][name]["classifier"]
        balanced = {"accuracy": correct, "log_loss": loss}
        for figure, values in balanced.items():
            expected = (values[synthetic].mean() + values[~synthetic].mean()) / 2
            assert figures[figure]["value"] == pytest.approx(expected, abs=1e-6)
        assert figures["auc"]["value"] == pytest.approx(roc_auc_score(synthetic, p), abs=1e-3)
        if name in BY_GROUP:
            for figure in ("accuracy", "log_loss", "auc"):
                assert figures[figure]["low"] < figures[figure]["value"] < figures[figure]["high"]


# The same predictions from any number of workers.


def test_other_shards_change_no_prediction(undisturbed, prepared_in_three, tmp_path):
    assert_same(classify_alone(copy_of(prepared_in_three, tmp_path / "run", workers=0)), undisturbed)


def test_features_that_do_not_fit_are_read_in_each_pass_with_a_message(undisturbed, prepared, tmp_path):
    tiny = classify_alone(copy_of(prepared, tmp_path / "run", worker_memory_gib=1e-6))
    assert tiny.fit == {"workers": 0, "cached": False}
    (text,) = tiny.told
    assert "read from storage in each pass" in text
    assert "worker_memory_gib" in text
    assert undisturbed.fit == {"workers": 0, "cached": True}
    assert_same(tiny, undisturbed)


def test_features_that_fit_are_cached_without_a_message(prepared, undisturbed, tmp_path):
    held = classify_alone(copy_of(prepared, tmp_path / "run", workers=0))
    assert held.told == []
    assert held.fit == {"workers": 0, "cached": True}
    assert_same(held, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_worker_groups_give_the_predictions_of_this_process(undisturbed, prepared, tmp_path, workers):
    # The group of two workers reads its rows from storage in each pass, as if they did not fit.
    memory_gib = {1: 4.0, 2: 1e-6}[workers]
    found = classify_alone(copy_of(prepared, tmp_path / "run", workers=workers, worker_memory_gib=memory_gib))
    assert found.fit == {"workers": workers, "cached": workers == 1}
    assert_same(found, undisturbed)
    assert not Path(found.run.path("_train")).exists()


@pytest.mark.slow
def test_four_workers_of_which_one_has_no_rows_give_the_predictions_of_this_process(
    undisturbed, prepared_in_three, tmp_path
):
    found = classify_alone(copy_of(prepared_in_three, tmp_path / "run", workers=4))
    assert found.fit == {"workers": 4, "cached": True}
    assert_same(found, undisturbed)


@pytest.mark.parametrize(
    ("memory_gib", "machine", "workers", "cached"),
    [
        # The features of 678 rows are 1.35e-3 GiB: 12 raw and 12 standardised numbers and 512 waves a row.
        (2e-3, {"cpus": 64}, 0, True),
        (5e-4, {"cpus": 64}, 3, True),
        (5e-4, {"cpus": 4}, 2, False),
        (5e-4, {"cpus": 2}, 0, False),
        (5e-4, {"cpus": 2, "is_local": False}, 1, False),
    ],
)
def test_workers_are_as_many_as_the_features_need_on_at_most_half_of_the_cpus(
    prepared, tmp_path, monkeypatch, memory_gib, machine, workers, cached
):
    class Asked(Exception):  # noqa: N818 (ends the stage where a worker group would start)
        pass

    def trainer(train, *, scaling_config, **settings):
        raise Asked(scaling_config.num_workers, "embedding" in train.args[1].cached)

    monkeypatch.setattr(train_run, "TorchTrainer", trainer)
    with pytest.raises(Asked) as asked:
        classify_alone(copy_of(prepared, tmp_path / "run", worker_memory_gib=memory_gib), **machine)
    assert asked.value.args == (workers, cached)


def test_a_stage_that_is_repeated_predicts_with_its_new_heads(prepared, tmp_path):
    # In one Ray session, whose processes may have cached the earlier heads.
    config = copy_of(prepared, tmp_path / "run", head="linear")
    first = classify_alone(config).predictions()
    changed = Config.model_validate({**config.model_dump(), "classifier": {"head": "linear", "seed": 5}})
    RunDirectory.existing(config.output, config.storage).remove_from("classify")
    again = classify_alone(changed)
    assert_same(again, classify_alone(copy_of(prepared, tmp_path / "fresh", head="linear", seed=5)))
    assert not first.equals(again.predictions())


# Heads, and several repeats.


@pytest.mark.parametrize("head", [pytest.param("linear", marks=pytest.mark.slow), "mlp"])
def test_other_heads_go_through_the_whole_pipeline(prepared, tmp_path, head):
    result = score(copy_of(prepared, tmp_path / "run", head=head))
    for name in TELLABLE:
        figures = result.metrics["generators"][name]["classifier"]
        assert figures["head"] == head
        assert figures["folds"] == 5
        if head == "mlp":
            assert figures.get("strength") is None
            assert len(figures["log_loss_by_epoch"]) > figures["epoch"] >= 0
            assert figures["epoch"] == np.argmin(figures["log_loss_by_epoch"])
        else:
            assert figures.get("epoch") is None
            losses = dict(figures["log_loss_by_strength"])
            assert losses[figures["strength"]] == min(losses.values())
        assert result.scores(name)["label_quality_score"].between(0, 1).all()
    # The mean differs by half a deviation in each of 12 dimensions: the best possible AUC is 0.89.
    assert result.metrics["generators"]["fake"]["classifier"]["auc"]["value"] > 0.75
    assert result.metrics["generators"]["single"]["classifier"]["auc"]["value"] is None
    assert Path(result.report_path).exists()


def test_repeats_average_the_logits_and_report_their_spread(prepared, tmp_path):
    # Features and strength are the same in all repeats, so each repeat equals a run of its own.
    settings = {"head": "linear", "strengths": (1e-2,)}
    repeats = [
        classify_alone(copy_of(prepared, tmp_path / f"repeat-{seed}", **settings, seed=seed)) for seed in range(3)
    ]
    result = score(copy_of(prepared, tmp_path / "run", **settings, repeats=3))
    together = Classified(result.run, result.run.completed("classify").info, [])
    for name in TELLABLE:
        ours = together.predictions().query("generator == @name")
        single = [found.predictions() for found in repeats]
        single = [rows[rows.generator == name] for rows in single]
        logits = np.stack([part.logit_synthetic.to_numpy(np.float64) for part in single], 1)
        assert (ours["row"].to_numpy() == single[0]["row"].to_numpy()).all()
        assert (ours.fold.to_numpy() == single[0].fold.to_numpy()).all()
        assert (ours.fold.to_numpy() != single[1].fold.to_numpy()).any()
        assert (ours.logit_deviation > 0).all()
        if len({found.of(name)["calibrated"]["used"] for found in (*repeats, together)}) > 1:
            # Either all repeats are calibrated or none, so one may differ from its own run. The fakes' do not.
            assert name != "fake"
            continue
        np.testing.assert_allclose(ours.logit_synthetic, logits.mean(1), atol=1e-4)
        np.testing.assert_allclose(ours.logit_deviation, logits.std(1, ddof=1), atol=1e-4)
        synthetic = (ours["row"] >= SIZES["real"]).to_numpy()
        reported = result.metrics["generators"][name]["classifier"]["repeats"]
        assert reported["count"] == 3
        figures = {
            "fidelity": 1 - expit(logits)[synthetic].mean(0),
            "representativeness": expit(logits)[~synthetic].mean(0),
            "auc": np.array([roc_auc_score(synthetic, logit) for logit in logits.T]),
        }
        for figure, values in figures.items():
            assert reported[figure]["mean"] == pytest.approx(values.mean(), abs=1e-3)
            assert reported[figure]["deviation"] == pytest.approx(values.std(ddof=1), abs=1e-3)


# Resuming after a crash.

LONG = 1000


@pytest.fixture(scope="module")
def prepared_long(local_ray, tmp_path_factory):
    """Rows whose fit lasts some seconds."""
    rng = np.random.default_rng(1)
    vectors = np.concatenate([rng.normal(size=(LONG, 32)), 0.8 * rng.normal(size=(LONG, 32))])
    folder = tmp_path_factory.mktemp("long")
    write_vectors(folder / "v.parquet", vectors.astype(np.float32), {"real": LONG, "synthetic": LONG})
    return prepare(folder / "v.parquet", folder / "run", 500)


def train_workers():
    """The processes of Ray Train's workers that descend from this one: there may be other Rays on the machine."""
    parents, found = {}, []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            pid = int(folder.name)
            parents[pid] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if (folder / "cmdline").read_bytes().startswith(b"ray::RayTrainWorker"):
                found.append(pid)
        except OSError:
            continue

    def is_ours(pid):
        return pid == os.getpid() or (pid in parents and is_ours(parents[pid]))

    return [pid for pid in found if is_ours(pid)]


def wait_for(what, seconds, alive=lambda: True):
    deadline = time.monotonic() + seconds
    while not what() and alive() and time.monotonic() < deadline:
        time.sleep(0.02)
    return what()


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_the_fit_resumes(prepared_long, tmp_path, monkeypatch):
    def impatient(job, placement):
        # This function is pickled to the workers by value, so it changes no module here.
        from synthscale.classify import ray_train as train_run

        train_run._CHECKPOINT_EVERY_S = 0.3
        train_run._train(job, placement)

    whole = classify_alone(copy_of(prepared_long, tmp_path / "whole", head="mlp", workers=0))
    config = copy_of(prepared_long, tmp_path / "run", head="mlp", workers=2)
    state = Path(config.output) / "classifier" / "embedding.state"
    seen = SimpleNamespace(killed=[], epochs=0, over=False)

    def kill():
        if wait_for(state.exists, 200, lambda: not seen.over):
            seen.killed = train_workers()[:1]
            os.kill(seen.killed[0], signal.SIGKILL)
            # The other worker cannot finish an epoch alone, and a new worker group takes seconds to start.
            time.sleep(0.5)
            seen.epochs = mark_first_epoch(state)

    killer = threading.Thread(target=kill)
    killer.start()
    monkeypatch.setattr(train_run, "_train", impatient)
    found = classify_alone(config)
    seen.over = True
    killer.join()
    assert seen.killed
    losses, undisturbed = (fitted.of()["log_loss_by_epoch"] for fitted in (found, whole))
    assert 0 < seen.epochs < len(undisturbed) - 1
    assert_same(found, whole)
    # The mark shows that the fit resumed from the checkpoint.
    assert losses[1] == MARK
    assert losses[2:] == pytest.approx(undisturbed[2:])
    assert not state.exists()
    assert not Path(found.run.path("_train")).exists()


MARK = 0.6925


def mark_first_epoch(state):
    """Mark the first epoch's log-loss in a checkpoint, which no later epoch uses; return the number of epochs."""
    with np.load(state) as arrays:
        kept = dict(arrays)
    (name,) = (name for name in kept if name.endswith("losses"))
    kept[name][1] = MARK
    with open(state.with_suffix(".marked"), "wb") as file:
        np.savez(file, **kept)
    state.with_suffix(".marked").rename(state)
    return len(kept[name]) - 1


_DRIVER = """
import sys
from synthscale import Config, score
from synthscale.classify import ray_train as train_run
train_run._CHECKPOINT_EVERY_S = 0.3
score(Config.model_validate_json(sys.argv[1]))
"""


@pytest.mark.slow
def test_a_fit_resumes_after_its_driver_was_killed(prepared_long, tmp_path, caplog):
    settings = {"folds": 10, "repeats": 2, "strengths": tuple(10.0**-k for k in np.linspace(1, 6, 11))}
    whole = score(copy_of(prepared_long, tmp_path / "whole", **settings))
    config = copy_of(prepared_long, tmp_path / "run", **settings)
    state = Path(config.output) / "classifier" / "embedding.state"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    driver = subprocess.Popen([sys.executable, "-c", _DRIVER, config.model_dump_json()], env=environment)
    # The second checkpoint is from the middle of the fit.
    first = wait_for(lambda: state.exists() and state.stat().st_mtime_ns, 300, lambda: driver.poll() is None)
    wait_for(lambda: state.stat().st_mtime_ns > first, 60, lambda: driver.poll() is None)
    driver.kill()
    driver.wait()
    assert state.exists()
    with caplog.at_level(logging.INFO, logger="synthscale"):
        again = score(config)
    assert [text for text in caplog.messages if "resuming the fit from" in text and "embedding.state" in text]
    passes = [r.run.completed("classify").info["generators"]["synthetic"]["passes"] for r in (again, whole)]
    assert passes[0] < passes[1]
    ours, theirs = again.scores(), whole.scores()
    assert ours["id"].equals(theirs["id"])
    assert np.abs(ours["label_quality_score"] - theirs["label_quality_score"]).max() <= 1e-5
    assert sorted(path.name for path in state.parent.glob("embedding*")) == ["embedding.json", "embedding.npz"]


# File metadata.


def warned_of_files(block):
    return [text for text in block["warnings"] if text.startswith("the files alone")]


@pytest.mark.slow
def test_jpeg_against_png_gives_a_confounder_warning_and_png_against_png_does_not(shared_data, tmp_path):
    png = sorted((shared_data / "data/cifar10/real_png_1600").rglob("*.png"))[:300]
    jpeg = sorted((shared_data / "data/cifar10/real_jpeg_1000").rglob("*.jp*g"))[:150]
    for name, paths in {"real": png[::2], "png": png[1::2], "jpeg": jpeg}.items():
        (tmp_path / name).mkdir()
        for path in paths:
            shutil.copy(path, tmp_path / name)
    names = ("png", "jpeg")
    values = {"real": str(tmp_path / "real"), "synthetic": {name: str(tmp_path / name) for name in names}}
    blocks = score(Config(**values, output=str(tmp_path / "run"))).metrics["generators"]
    assert all(blocks[name]["counts"] == {"real": 150, "synthetic": 150} for name in names)
    assert blocks["jpeg"]["confounders"]["auc"]["low"] > 0.6
    assert warned_of_files(blocks["jpeg"])
    assert blocks["png"]["confounders"]["auc"]["value"] == pytest.approx(0.5, abs=0.05)
    assert not warned_of_files(blocks["png"])


def test_sizes_alone_give_a_confounder_warning(make_images, tmp_path):
    make_images(tmp_path / "real", 100, seed=1)
    make_images(tmp_path / "alike", 100, seed=2)
    for side in range(30, 35):
        make_images(tmp_path / "sizes", 20, seed=side, size=side, labels=(f"side-{side}",))
    (path,) = make_images(tmp_path / "one", 1, seed=3, labels=(None,))
    for i in range(10):
        shutil.copy(path, path.with_name(f"copy-{i}.png"))
    # 80 of 100 files have one picture, each with another pixel changed; all have the wrong size.
    paths = make_images(tmp_path / "repeats", 20, seed=4, size=30)
    pixels = np.array(Image.open(paths[0]))
    for i in range(80):
        changed = pixels.copy()
        changed[i // 30, i % 30] ^= 1
        Image.fromarray(changed).save(paths[0].with_name(f"again-{i}.png"))
    names = ("alike", "sizes", "one", "repeats")
    values = {"real": str(tmp_path / "real"), "synthetic": {name: str(tmp_path / name) for name in names}}
    result = score(Config(**values, output=str(tmp_path / "run")))
    blocks = result.metrics["generators"]
    assert blocks["sizes"]["confounders"]["auc"]["low"] > 0.6
    assert warned_of_files(blocks["sizes"])
    assert not warned_of_files(blocks["alike"])
    assert blocks["alike"]["confounders"]["auc"]["value"] == pytest.approx(0.5, abs=0.05)
    # Pictures that resemble one another are in files of their own.
    assert blocks["repeats"]["neighbors"]["share_in_largest"] > 0.3
    assert blocks["repeats"]["confounders"]["auc"]["low"] > 0.9
    assert warned_of_files(blocks["repeats"])
    # Exact copies of one file are not.
    assert blocks["one"]["confounders"]["auc"]["low"] is None
    assert blocks["one"]["confounders"]["auc"]["reason"] == "too_few_independent"
    assert not warned_of_files(blocks["one"])
    predictions = table(result.run, "predictions")
    assert predictions.logit_file_facts.notna().all()
    own = predictions.query("generator == 'sizes'")
    synthetic = own["row"].map(table(result.run, "manifest").set_index("row").generator).notna()
    auc = roc_auc_score(synthetic, own.logit_file_facts)
    assert blocks["sizes"]["confounders"]["auc"]["value"] == pytest.approx(auc, abs=1e-3)


# Tables that do not match.


def spoil(run, name, change):
    """Apply ``change`` to the rows of one shard of a table."""
    path = run.path(name, "part-000004.parquet")
    pq.write_table(change(pq.read_table(path)), path)


def without_last_row_of(generator):
    def change(rows):
        own = pc.equal(rows.column("generator"), generator).to_pylist()
        last = max(i for i, is_own in enumerate(own) if is_own)
        return rows.take([i for i in range(rows.num_rows) if i != last])

    return change


def without_rows_of(generator):
    return lambda rows: rows.filter(pc.not_equal(rows.column("generator"), generator))


def twice_the_first_row(rows):
    return pa.concat_tables([rows.slice(0, 1), rows])


@pytest.fixture
def reducible(finished, tmp_path):
    """A run whose stages after classify have not run."""
    config = copy_of(finished[0], tmp_path / "run")
    run = RunDirectory.existing(config.output, config.storage)
    run.remove_from("reduce")
    return StageContext(config, run, cpus=2)


@pytest.mark.parametrize("name", ["classifier", "predictions", "nearest"])
@pytest.mark.parametrize(
    "change", [without_last_row_of("fake"), twice_the_first_row], ids=["row-missing", "row-twice"]
)
def test_tables_of_one_shard_that_do_not_align_are_not_joined(reducible, name, change):
    spoil(reducible.run, name, change)
    reader = ViewReader(reducible.run, dict.fromkeys(reducible.generators, True))
    with pytest.raises(SchemaError, match=r"fake.*part-000004"):
        reader.read(reducible.shards[4], real_lookup(reducible.run, reducible.shards))


@pytest.mark.parametrize("name", ["classifier", "predictions"])
@pytest.mark.parametrize("change", [without_last_row_of("fake"), without_rows_of("fake")], ids=["row", "rows"])
def test_reduce_refuses_a_shard_in_which_rows_of_a_classified_generator_are_missing(reducible, name, change):
    spoil(reducible.run, name, change)
    with pytest.raises(SchemaError) as error, ray_errors("reduce"):
        reduce.run(reducible)
    assert error.value.exit_code == 2


def test_classify_refuses_a_row_that_has_no_vector(prepared, tmp_path):
    config = copy_of(prepared, tmp_path / "run", workers=0)
    run = RunDirectory.existing(config.output, config.storage)
    spoil(run, "embeddings", lambda rows: rows.slice(1))
    with pytest.raises(SchemaError) as error:
        classify_alone(config)
    assert error.value.exit_code == 2


def test_a_row_without_neighbours_is_reported_as_missing(prepared, tmp_path):
    config = copy_of(prepared, tmp_path / "run")
    run = RunDirectory.existing(config.output, config.storage)
    spoil(run, "nearest", without_last_row_of("fake"))
    with pytest.raises(SchemaError, match="fake"):
        score(config)


def test_a_run_of_an_older_algorithm_is_not_continued(finished, tmp_path):
    config = copy_of(finished[0], tmp_path / "run")
    marker = Path(config.output) / "_stages" / "classify.json"
    document = json.loads(marker.read_text())
    document["fingerprint"]["versions"]["algorithm"] = 1
    marker.write_text(json.dumps(document))
    with pytest.raises(ResumeConflict, match=r"classify.*versions\.algorithm \(was 1") as error:
        score(config)
    assert error.value.exit_code == 2


# TrainingReader.


@pytest.fixture(scope="module")
def read(finished):
    """The training reader of a run, and its shards."""
    config, result = finished
    context = StageContext(config, result.run, cpus=2)
    return TrainingReader.of(context, plan_all_folds(context)), context.shards


def test_blocks_hold_each_row_of_each_set_once_with_its_fold_in_its_own_views(read, undisturbed):
    tables, shards = read
    vectors, ids = drawn(), np.array([f"{i:06d}" for i in range(sum(SIZES.values()))])
    folds = undisturbed.predictions().set_index(["generator", "row"]).fold
    start = 0
    for name, n in SIZES.items():
        rows = np.arange(start, start + n)
        rows = rows[~np.isnan(vectors[rows, 0])]
        start += n
        blocks = [block for shard in shards for block in tables.blocks(shard, "embedding") if block.name == name]
        if name == "single":
            assert blocks == []
            continue
        assert np.array_equal(np.concatenate([block.vectors for block in blocks]), vectors[rows])
        assert np.array_equal(np.concatenate([block.key for block in blocks]), hash_ids(ids[rows]))
        fold = np.concatenate([block.fold for block in blocks])
        for column, view in enumerate(tables.views):
            inside = name in ("real", view.generator)
            expected = folds[view.generator].loc[rows].to_numpy() if inside else np.full(len(rows), -1)
            assert np.array_equal(fold[:, column], expected)


def test_a_shard_without_rows_or_without_a_set_gives_no_block_of_it(read):
    tables, shards = read
    names = [[block.name for block in tables.blocks(shard, "embedding")] for shard in shards]
    assert names == [
        ["real"],
        [],
        ["real"],
        ["real"],
        ["fake", "real"],
        ["fake"],
        ["fake", "other"],
        ["collapsed", "other"],
    ]
    for shard, there in zip(shards, names, strict=True):
        for name in SIZES:
            found = [block.name for block in tables.blocks(shard, "embedding", name)]
            assert found == [name] * (name in there)
            assert all(len(block.key) for block in tables.blocks(shard, "embedding", name))


def test_vectors_without_files_give_no_file_metadata(read):
    tables, shards = read
    assert [block for shard in shards for block in tables.blocks(shard, "file_facts")] == []


def test_a_worker_without_shards_has_no_rows(read):
    tables, _ = read
    assert list(train_run._prefetch(tables, [], "embedding", None)) == []
    assert list(train_run._prefetch(tables, [], "embedding", "fake")) == []


def test_prefetching_keeps_the_order_of_shards(read):
    tables, shards = read
    ahead = list(train_run._prefetch(tables, shards, "embedding", None))
    one_by_one = [block for shard in shards for block in tables.blocks(shard, "embedding")]
    assert [block.key.tolist() for block in ahead] == [block.key.tolist() for block in one_by_one]
