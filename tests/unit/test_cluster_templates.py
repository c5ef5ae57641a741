"""Test the templates for clusters: they parse, and their parts fit together."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from kubernetes_validate import ValidationError, latest_version, validate
from ruamel.yaml import YAML

from gpt_dist.command import RESUMABLE
from gpt_dist.config.file import load_config
from gpt_dist.rendezvous import discover_launch

FOLDER = Path("launch/cluster")
OLDEST_KUBERNETES = "1.31"
SCRIPTS = sorted({*FOLDER.glob("*.sh"), *FOLDER.glob("*.sbatch")})


def test_each_launcher_has_a_template():
    names = {path.name for path in FOLDER.iterdir()}
    assert names == {"slurm.sbatch", "mpi.sh", "deepspeed-hosts.sh", "kubernetes.yaml"}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_parses_and_names_a_configuration(script):
    subprocess.run(["bash", "-n", script], check=True)
    text = script.read_text()
    (line,) = (line for line in text.splitlines() if line.startswith("COMMAND=("))
    program, config, *overrides = shlex.split(line[len("COMMAND=(") : line.index(")")])
    assert Path(program).is_file()
    load_config(Path(config), overrides)
    assert "python launch/supervise.py" in text


def test_the_slurm_script_asks_to_be_signalled_and_requeued():
    lines = (FOLDER / "slurm.sbatch").read_text().splitlines()
    options = {line.split()[1].partition("=")[0] for line in lines if line.startswith("#SBATCH")}
    assert options >= {"--signal", "--requeue", "--open-mode", "--output"}
    assert "--signal=B:USR1@" in "".join(lines)
    assert f"(status == {RESUMABLE})" in "".join(lines)


@pytest.fixture
def objects() -> dict[str, Any]:
    """The Kubernetes objects by kind."""
    text = (FOLDER / "kubernetes.yaml").read_text()
    return {one["kind"]: one for one in YAML(typ="safe").load_all(text)}


@pytest.mark.parametrize("version", [OLDEST_KUBERNETES, latest_version()])
def test_the_objects_are_those_of_kubernetes(objects, version):
    """Against the schemas that Kubernetes publishes, which know every key and what is required."""
    assert f"Kubernetes {OLDEST_KUBERNETES} or later" in (FOLDER / "kubernetes.yaml").read_text()
    for one in objects.values():
        assert version.startswith(validate(one, version, strict=True))


@pytest.mark.parametrize(
    ("path", "key", "misspelt"),
    [
        (["spec"], "backoffLimit", "backOffLimit"),
        (["spec", "podFailurePolicy", "rules", 0, "onExitCodes"], "values", "value"),
        (["spec", "template", "spec", "containers", 0], "volumeMounts", "volumeMount"),
    ],
)
def test_a_misspelt_key_of_the_job_is_found(objects, path, key, misspelt):
    place = objects["Job"]
    for part in path:
        place = place[part]
    place[misspelt] = place.pop(key)
    with pytest.raises(ValidationError) as found:
        validate(objects["Job"], OLDEST_KUBERNETES, strict=True)
    assert list(found.value.absolute_path) == path


def test_the_service_and_the_job_fit_together(objects):
    service, job = objects["Service"], objects["Job"]
    assert (service["apiVersion"], job["apiVersion"]) == ("v1", "batch/v1")
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"]
    assert pod["subdomain"] == service["metadata"]["name"]
    assert pod["restartPolicy"] == "Never"
    assert pod["terminationGracePeriodSeconds"] >= 120
    (container,) = pod["containers"]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_a_pod_knows_its_place(objects):
    job = objects["Job"]
    (container,) = job["spec"]["template"]["spec"]["containers"]
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    address = f"{job['metadata']['name']}-0.{objects['Service']['metadata']['name']}"
    assert environment["MASTER_ADDR"] == address
    last = job["spec"]["completions"] - 1
    (script,) = container["args"]
    assert script.startswith('RANK="$JOB_COMPLETION_INDEX" exec python launch/pretrain.py ')
    launch = discover_launch(environment | {"RANK": str(last)})
    assert (launch.rank, launch.world_size, launch.local_rank) == (last, last + 1, 0)
    _, _, _, program, config, *overrides = shlex.split(script)
    assert Path(program).is_file()
    load_config(Path(config), overrides)


def test_exit_codes_decide_whether_a_pod_counts_as_failed(objects):
    rules = objects["Job"]["spec"]["podFailurePolicy"]["rules"]
    actions = {
        tuple(rule["onExitCodes"]["values"]): rule["action"]
        for rule in rules
        if "onExitCodes" in rule
    }
    assert actions == {(RESUMABLE,): "Ignore"}
