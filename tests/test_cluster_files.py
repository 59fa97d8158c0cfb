"""Offline checks of cluster/ and configs/: against Ray's schema, the repository, and each other."""

import json
import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "cluster"
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
TEXTS = sorted(path for path in CLUSTER.iterdir() if path.is_file()) + CONFIGS
IMAGE_FOLDER = "/home/ray/synthscale"


def _documents(name):
    return list(yaml.safe_load_all((CLUSTER / name).read_text()))


def _rayjob():
    (rayjob,) = _documents("rayjob.yaml")
    return rayjob


def _cronjob_objects():
    return {document["kind"]: document for document in _documents("cronjob.yaml")}


def _submit_pod():
    return _cronjob_objects()["CronJob"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]


def _pods(rayjob):
    cluster = rayjob["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


# --- the launcher file ---


def test_launcher_file_passes_rays_own_validation():
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((CLUSTER / "aws.yaml").read_text())
    validate_config(prepare_config(config))
    merged = prepare_config(config)
    # Ray's defaults install a Ray wheel and boto3 on each node; the image has both.
    assert merged["setup_commands"] == merged["head_setup_commands"] == merged["worker_setup_commands"] == []


def test_rays_validation_refuses_an_unknown_key():
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((CLUSTER / "aws.yaml").read_text()) | {"idle_timeout": 10}
    with pytest.raises(ValidationError, match="idle_timeout"):
        validate_config(prepare_config(config))


def test_launcher_head_works_for_nobody_and_workers_are_spot():
    config = yaml.safe_load((CLUSTER / "aws.yaml").read_text())
    types = config["available_node_types"]
    head = types.pop(config["head_node_type"])
    assert head["resources"] == {"CPU": 1, "GPU": 0}
    start = config["head_start_ray_commands"][-1]
    for option in ("--num-cpus=1", "--num-gpus=0", "--dashboard-host=127.0.0.1", "RAY_USAGE_STATS_ENABLED=0"):
        assert option in start
    assert "InstanceMarketOptions" not in head["node_config"]
    for worker in types.values():
        assert worker["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
        assert worker["min_workers"] == 0
        assert worker["max_workers"] <= config["max_workers"]
    for node_type in (head, *types.values()):
        assert node_type["node_config"]["IamInstanceProfile"]["Name"]


def test_launcher_mounts_the_token_where_the_container_looks_for_it():
    config = yaml.safe_load((CLUSTER / "aws.yaml").read_text())
    options = config["docker"]["run_options"]
    assert "-e RAY_AUTH_MODE=token" in options
    mounted = [remote.replace("~", "/home/ray") for remote in config["file_mounts"]]
    assert [f"-e RAY_AUTH_TOKEN_PATH={path}" in options for path in mounted] == [True]


# --- KubeRay ---


def test_rayjob_structure():
    rayjob = _rayjob()
    spec = rayjob["spec"]
    assert (rayjob["apiVersion"], rayjob["kind"]) == ("ray.io/v1", "RayJob")
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["ttlSecondsAfterFinished"] > 0
    assert spec["backoffLimit"] >= 1
    assert spec["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    assert spec["entrypointNumCpus"] == 1
    assert json.loads(spec["entrypointResources"]).keys() == {"node:__internal_head__"}
    assert "runtimeEnvYAML" not in spec


def test_rayjob_pods():
    rayjob = _rayjob()
    cluster = rayjob["spec"]["rayClusterSpec"]
    # `ray start` takes its parameters as strings, and so does the custom resource.
    assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "1", "num-gpus": "0"}
    gpus = [pod["containers"][0]["resources"]["limits"].get("nvidia.com/gpu") for pod in _pods(rayjob)]
    assert gpus == [None, "1"]
    assert {pod["serviceAccountName"] for pod in _pods(rayjob)} == {"synthscale"}
    assert len({pod["containers"][0]["image"] for pod in _pods(rayjob)}) == 1
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_cronjob_structure():
    objects = _cronjob_objects()
    assert {kind: document["apiVersion"] for kind, document in objects.items()} == {
        "ServiceAccount": "v1",
        "Role": "rbac.authorization.k8s.io/v1",
        "RoleBinding": "rbac.authorization.k8s.io/v1",
        "CronJob": "batch/v1",
    }
    spec = objects["CronJob"]["spec"]
    assert spec["concurrencyPolicy"] == "Forbid"
    assert spec["timeZone"] == "Etc/UTC"
    # The pod that waits outlives the run that it waits for, and ends before the next night's.
    job_seconds = spec["jobTemplate"]["spec"]["activeDeadlineSeconds"]
    rayjob = _rayjob()["spec"]
    run_seconds = (rayjob["backoffLimit"] + 1) * rayjob["activeDeadlineSeconds"]
    assert run_seconds < job_seconds < 24 * 3600


def test_cronjob_has_the_least_rights():
    objects = _cronjob_objects()
    assert objects["Role"]["rules"] == [
        {"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create", "get"]}
    ]
    account = objects["ServiceAccount"]["metadata"]["name"]
    assert _submit_pod()["serviceAccountName"] == account
    assert account not in {pod["serviceAccountName"] for pod in _pods(_rayjob())}
    assert objects["RoleBinding"]["subjects"] == [{"kind": "ServiceAccount", "name": account}]
    assert objects["RoleBinding"]["roleRef"]["name"] == objects["Role"]["metadata"]["name"]
    assert objects["RoleBinding"]["roleRef"]["kind"] == "Role"


def _run_nightly(folder, *, exists, statuses):
    """Run the CronJob's own script with a stand-in for kubectl; return its exit code and what it created."""
    (container,) = _submit_pod()["containers"]
    (mount,) = container["volumeMounts"]
    (script,) = container["args"]
    (folder / "bin").mkdir()
    (folder / "statuses").write_text("".join(f"{status}\n" for status in statuses))
    kubectl = r"""#!/bin/sh
    case "$1 $4" in
      "create ") [ "$2 $3" = "-f -" ] && cat > created.yaml ;;
      "get ") [ "$2 $3" = "rayjob synthscale-nightly-29384760" ] && [ "$EXISTS" = yes ] ;;
      "get -o") head -n 1 statuses; sed -i 1d statuses ;;
      *) exit 64 ;;
    esac
    """
    for name, text in {"kubectl": kubectl, "sleep": "#!/bin/sh\n[ -s statuses ]\n"}.items():
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)
    done = subprocess.run(
        [*container["command"], script.replace(f"{mount['mountPath']}/", f"{CLUSTER}/")],
        cwd=folder,
        env={
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "JOB_NAME": "synthscale-nightly-29384760",
            "EXISTS": "yes" if exists else "no",
        },
        timeout=20,
        check=False,
    )
    created = folder / "created.yaml"
    return done.returncode, yaml.safe_load(created.read_text()) if created.exists() else None


def test_nightly_run_is_the_rayjob_file_with_its_own_name_and_date(tmp_path):
    code, created = _run_nightly(tmp_path, exists=False, statuses=["", "Running", "Complete"])
    assert code == 0
    expected = _rayjob()
    del expected["metadata"]["generateName"]
    expected["metadata"]["name"] = "synthscale-nightly-29384760"
    output = re.search(r"output=(\S+)", created["spec"]["entrypoint"])[1]
    assert re.fullmatch(r"s3://example-runs/runs/\d{4}-\d\d-\d\d", output)
    expected["spec"]["entrypoint"] = re.sub(r"output=\S+", f"output={output}", expected["spec"]["entrypoint"])
    assert created == expected


def test_replaced_pod_follows_the_run_and_creates_none(tmp_path):
    assert _run_nightly(tmp_path, exists=True, statuses=["Retrying", "Complete"]) == (0, None)


@pytest.mark.parametrize("status", ["Failed", "ValidationFailed"])
def test_a_failed_run_fails_the_nightly_job(tmp_path, status):
    code, _ = _run_nightly(tmp_path, exists=False, statuses=["Running", status])
    assert code == 1


def test_names_fit_submission_ids():
    # A Job's name is its CronJob's and eleven characters; KubeRay allows 47 and appends six to make the id.
    nightly = _cronjob_objects()["CronJob"]["metadata"]["name"] + "-29384760"
    manual = _rayjob()["metadata"]["generateName"] + "abcde"
    for name in (nightly, manual):
        assert len(name) <= 47
        assert re.fullmatch(r"[a-z0-9-]{1,63}", name + "-abcde")


# --- what the files say of the repository ---


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_named_files_exist(path):
    named = re.findall(r"(?<![\w/:.-])(?:jobs|configs|cluster)/[\w.-]+\.\w+", path.read_text())
    named += re.findall(rf"{IMAGE_FOLDER}/([\w./-]+\.\w+)", path.read_text())
    missing = [name for name in named if not (ROOT / name).is_file()]
    assert missing == []


def test_rayjob_runs_the_entry_point():
    words = _rayjob()["spec"]["entrypoint"].split()
    assert words[:3] == ["python", f"{IMAGE_FOLDER}/jobs/score.py", "--config"]
    assert words[3].startswith("s3://")
    assert words[4] == "--set"


def test_dockerfile_installs_one_faiss_on_the_matching_base():
    text = (CLUSTER / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert [line for line in lines if line.startswith("FROM")] == [
        "FROM rayproject/ray:${RAY_VERSION}-py311-${DEVICE}"
    ]
    assert "ARG DEVICE=gpu" in lines[: lines.index("FROM rayproject/ray:${RAY_VERSION}-py311-${DEVICE}")]
    installs = [line for line in lines if "pip install" in line]
    assert len(installs) == 1
    assert "-c constraints.txt" in installs[0]
    # One extra, named by the same switch as the base image, so two can never meet.
    assert re.findall(r"\.\[([^\]]*)\]", installs[0]) == ["${DEVICE}"]
    assert "faiss" not in installs[0]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for device in ("cpu", "gpu"):
        assert [requirement.startswith("faiss-") for requirement in extras[device]] == [True]
    # The base image's own user stays.
    assert not [line for line in lines if line.startswith("USER")]
    assert f"WORKDIR {IMAGE_FOLDER}" in lines


def test_dockerfile_copies_what_it_runs_and_what_pyproject_needs():
    copied = {
        word
        for line in (CLUSTER / "Dockerfile").read_text().splitlines()
        if line.startswith("COPY")
        for word in line.split()[2:-1]
    }
    assert copied == {
        *("pyproject.toml", "constraints.txt", "README.md", "LICENSE"),
        *("synthscale", "configs", "jobs"),
    }


def test_ray_version_is_the_same_everywhere():
    constraints = ROOT / "constraints.txt"
    if not constraints.exists():
        pytest.skip("no constraints.txt yet")
    pinned = re.search(r"^ray(?:\[[^\]]*\])?==([\w.]+)", constraints.read_text(), re.MULTILINE)[1]
    pattern = r"(?:rayproject/ray:|RAY_VERSION=|rayVersion: |-ray)(\d[\d.]*\d)"
    found = {path.name: set(re.findall(pattern, path.read_text())) for path in TEXTS}
    assert {name for name, versions in found.items() if versions} >= {"Dockerfile", "aws.yaml", "rayjob.yaml"}
    assert set().union(*found.values()) == {pinned}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_configs_load_and_can_run(path):
    from synthscale.config import parse_config
    from synthscale.config_files import load_config

    parse_config(load_config(str(path)), path.name).check_runnable()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_configs_hold_only_what_differs_from_the_defaults(path):
    from synthscale.config import parse_config
    from synthscale.config_files import load_config

    values = load_config(str(path))
    defaults = parse_config({}).model_dump(mode="json")
    for key, value in values.items():
        if not isinstance(value, dict):
            assert value != defaults[key]
        for inner, inner_value in value.items() if isinstance(value, dict) else ():
            assert inner_value != defaults[key].get(inner), f"{key}.{inner}"


def test_the_nightly_override_reaches_the_configuration():
    from synthscale.config import parse_config
    from synthscale.config_files import apply_overrides, load_config

    words = _rayjob()["spec"]["entrypoint"].split()
    values = apply_overrides(load_config(str(ROOT / "configs/s3-gpu.yaml")), words[5:])
    assert parse_config(values).output == "s3://example-runs/runs/manual"


# --- rights and secrets ---


def _statements():
    policy = json.loads((CLUSTER / "iam-policy.json").read_text())
    assert policy["Version"] == "2012-10-17"
    for statement in policy["Statement"]:
        for key in ("Action", "Resource"):
            value = statement[key]
            yield statement["Sid"], key, [value] if isinstance(value, str) else value


def test_policy_allows_named_s3_actions_on_named_buckets():
    for sid, key, values in _statements():
        for value in values:
            wanted = r"s3:[A-Za-z]+" if key == "Action" else r"arn:aws:s3:::example-(data|runs)(/(runs/)?\*)?"
            assert re.fullmatch(wanted, value), (sid, value)


def test_policy_covers_the_uris_in_use_and_writes_only_runs():
    rights = {}
    for sid, key, values in _statements():
        rights.setdefault(sid, {})[key] = values
    writers = [r["Resource"] for r in rights.values() if {"s3:PutObject", "s3:DeleteObject"} & {*r["Action"]}]
    assert writers == [["arn:aws:s3:::example-runs/runs/*"]]
    for path in TEXTS:
        for uri in re.findall(r"s3://([\w-]+/[\w/-]*)", path.read_text()):
            assert uri.startswith(("example-data/", "example-runs/runs/")), f"{path.name}: s3://{uri}"


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_no_credentials_and_no_paths_of_one_machine(path):
    secrets = r"(AKIA|ASIA)[0-9A-Z]{12,}|aws_secret|secret_access_key|-----BEGIN|RAY_AUTH_TOKEN=|password\s*[:=]"
    text = path.read_text()
    assert not re.search(secrets, text, re.IGNORECASE)
    assert not re.search(r"/(work|root|Users)/", text)


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_files_are_tidy(path):
    text = path.read_text()
    assert text.endswith("\n")
    assert not text.endswith("\n\n")
    assert "\t" not in text
    assert [line for line in text.splitlines() if line != line.rstrip() or len(line) > 120] == []


@pytest.mark.parametrize("path", [path for path in TEXTS if path.suffix == ".yaml"], ids=lambda path: path.name)
def test_no_yaml_key_stands_twice(path):
    class Strict(yaml.SafeLoader):
        """PyYAML keeps the last of two equal keys without a word."""

    def mapping(loader, node):
        keys = [loader.construct_object(key) for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"{path.name} line {node.start_mark.line + 1}: {keys}"
        return dict(zip(keys, (loader.construct_object(value, deep=True) for _, value in node.value), strict=True))

    Strict.add_constructor("tag:yaml.org,2002:map", mapping)
    assert list(yaml.load_all(path.read_text(), Loader=Strict))
