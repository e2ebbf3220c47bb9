"""The files for clusters, as Ray reads them; that ports and secrets are as promised; that their shell is shell."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "cluster"
RAY_FILES = {"aws": ROOT / "cluster.yaml", "gcp": FOLDER / "gcp.yaml", "local": FOLDER / "on-premise.yaml"}
SCRIPTS = sorted(FOLDER.glob("*.sh"))
COMMANDS = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")


def read(path: Path) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(path.read_text())
    return config


def shell(config: dict[str, Any]) -> list[str]:
    return [line for name in COMMANDS for line in config.get(f"{name}_commands", [])]


@pytest.fixture(params=sorted(RAY_FILES))
def file(request: pytest.FixtureRequest) -> Path:
    return RAY_FILES[request.param]


def test_ray_takes_the_file(file: Path) -> None:
    prepared = prepare_config(read(file))
    validate_config(prepared)
    assert RAY_FILES[prepared["provider"]["type"]] == file
    kinds = prepared["available_node_types"]
    if prepared["provider"]["type"] != "local":
        assert kinds["head"]["max_workers"] == 0
        assert (kinds["gpu"]["min_workers"], kinds["gpu"]["max_workers"]) == (0, prepared["max_workers"])


def test_a_person_changes_five_lines(file: Path) -> None:
    assert file.read_text().count("<- ") + len(re.findall("<-$", file.read_text(), re.MULTILINE)) == 5


def test_what_is_sent_to_nodes_is_there_and_installs(file: Path) -> None:
    mounts = read(file)["file_mounts"]
    assert mounts.pop("~/.ray/auth_token") == "~/.ray/auth_token"
    names = {Path(there).relative_to("~/latentune").as_posix(): here for there, here in mounts.items()}
    assert all((ROOT / here).exists() for here in names.values())
    assert {"pyproject.toml", "constraints.txt", "README.md", "LICENSE"} <= set(names), "what setuptools reads"
    assert {"models", "tuning", "analysis"} <= set(names)
    assert names["cluster"] == "docs/cluster"
    for command in shell(read(file)):
        for script in re.findall(r"~/latentune/cluster/(\S+)", command):
            assert FOLDER / script in SCRIPTS


def test_the_shell_in_it_is_shell(file: Path) -> None:
    for command in shell(read(file)):
        subprocess.run(["bash", "-n", "-c", command], check=True)
        assert "#" not in command, "the rest of a folded line would be a comment"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_the_scripts_are_shell(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert "set -euo pipefail" in script.read_text()


def test_nothing_is_open_to_the_world(file: Path) -> None:
    text = file.read_text()
    assert "0.0.0.0" not in text
    head = read(file)["head_start_ray_commands"]
    assert any("--dashboard-host=127.0.0.1" in command for command in head)
    assert "IpPermissions" not in text, "Ray's own group lets in ssh from outside and nothing else"
    services = (FOLDER / "services.sh").read_text()
    assert re.findall(r"--host (\S+)", services) == ["127.0.0.1"]
    assert "--app-name basic-auth" in services
    assert "--allowed-hosts" in services


def test_a_token_is_asked_for(file: Path) -> None:
    assert "RAY_AUTH_MODE=token" in (FOLDER / "node.sh").read_text()
    assert any("cluster/node.sh" in command for command in read(file)["setup_commands"])
    assert read(FOLDER / "rayjob.yaml")["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    assert "export RAY_AUTH_MODE=token" in (FOLDER / "slurm.sh").read_text()


def test_no_secret_stands_in_a_file() -> None:
    """Whatever is named like a secret takes its value from elsewhere: a variable, a command, another file."""
    named = re.compile(r"\b(\w*(?:password|secret|token)\w*)[=:] *['\"]?([^\s'\"]+)", re.IGNORECASE)
    harmless = {("HttpTokens", "required}"), ("RAY_AUTH_MODE", "token")}
    for path in [*RAY_FILES.values(), FOLDER / "rayjob.yaml", *SCRIPTS]:
        code = "\n".join(line for line in path.read_text().splitlines() if not line.lstrip().startswith("#"))
        found = {(name, value) for name, value in named.findall(code) if not value.startswith(("$", "~/"))}
        assert found <= harmless, path


def test_the_ray_job_runs_the_command_with_the_version_that_is_tested() -> None:
    job = read(FOLDER / "rayjob.yaml")
    cluster = job["spec"]["rayClusterSpec"]
    (ray,) = re.findall(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert (job["kind"], cluster["rayVersion"]) == ("RayJob", ray)
    assert f"ray:{ray}" in (FOLDER / "rayjob.yaml").read_text()
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for pod in (group["template"]["spec"] for group in groups):
        mounted = {mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}
        assert pod["containers"][0]["image"] == groups[0]["template"]["spec"]["containers"][0]["image"]
