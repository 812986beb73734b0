"""What rendering makes of the real matrix."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import tasks
from llama_images.errors import UsageError
from llama_images.patch_series import make_series
from llama_images.render import (
    WORKFLOW,
    Inputs,
    bake,
    context_commands,
    drift,
    drifted_paths,
    is_rendered_path,
    labels,
    render_all,
    render_dockerfile,
    safe,
    series_of,
)
from llama_images.selection import all_targets, make_target, select

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def files(inputs: Inputs) -> dict[str, str]:
    return render_all(inputs)


def instructions(dockerfile: str) -> list[str]:
    """Dockerfile instructions, comments left out, continued lines joined."""
    text = "\n".join(line for line in dockerfile.splitlines() if not line.startswith("#"))
    return [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]


def test_the_committed_files_are_what_the_matrix_says(files: dict[str, str]) -> None:
    present = {path: (ROOT / path).read_text("utf-8") for path in files if (ROOT / path).is_file()}
    stray = {
        str(path.relative_to(ROOT)): path.read_text("utf-8")
        for path in (ROOT / "images").glob("*/*")
        if path.is_file() and is_rendered_path(str(path.relative_to(ROOT)))
    }
    assert drift(files, stray | present) == ""


def test_a_dockerfile_for_every_architecture_base_and_flavor(inputs: Inputs, files: dict[str, str]) -> None:
    targets = all_targets(inputs.matrix)
    assert len({target.id for target in targets}) == len(targets)
    for target in targets:
        assert f"images/{target.id}/Dockerfile" in files
    # Two bases, but for Volta, which needs NVIDIA's images, and cpu, which needs none; each in two flavors.
    rows = len(inputs.matrix.architectures)
    assert len(targets) == ((rows - 2) * 2 + 1 + 1) * 2
    ids = {target.id for target in targets}
    assert {"cpu-stock", "sm70-nvidia", "sm120", "sm120-nvidia-stock", "portable"} <= ids
    assert not {"cpu-nvidia", "sm70"} & ids


def test_rendering_is_stable(inputs: Inputs, files: dict[str, str]) -> None:
    assert render_all(inputs) == files


def test_every_dockerfile_builds_without_a_frontend_image_and_ships_from_scratch(
    inputs: Inputs, files: dict[str, str]
) -> None:
    for target in all_targets(inputs.matrix):
        text = files[f"images/{target.id}/Dockerfile"]
        lines = instructions(text)
        assert not re.search(r"^#\s*syntax\s*=", text, re.MULTILINE)
        stages = [line for line in lines if line.startswith("FROM ")]
        assert stages[-1] == "FROM scratch"
        assert "USER 10001:10001" in lines
        assert lines[-1] == 'ENTRYPOINT ["/app/llama-diffusion-cli"]'
        final = lines[lines.index("FROM scratch") + 1 :]
        copies = [line.split("/out/")[1].split("/")[0] for line in final if line.startswith("COPY ")]
        assert copies == (["system", "cuda", "app"] if target.toolkit else ["system", "app"])
        assert not [line for line in final if line.startswith("RUN ")]


def test_the_header_names_the_three_git_commands_and_the_build(inputs: Inputs, files: dict[str, str]) -> None:
    for target in all_targets(inputs.matrix):
        header = files[f"images/{target.id}/Dockerfile"].split("\nFROM ")[0]
        commands = context_commands(target, series_of(target, inputs.series))
        assert len(commands) == 3
        assert all(f"#   {command}\n" in header for command in commands)
        assert all("git " in command for command in commands)
        assert f"-f images/{target.id}/Dockerfile images" in header
        for line in header.splitlines():
            assert "docker build" not in line or line.startswith("#   DOCKER_BUILDKIT=1 docker build")
        assert "`invoke render`" in header


def test_stock_differs_from_patched_only_where_it_should(inputs: Inputs) -> None:
    for name in inputs.matrix.architectures:
        base = inputs.matrix.bases_for(inputs.matrix.architectures[name])[0]
        patched, stock = (
            instructions(
                render_dockerfile(inputs, make_target(inputs.matrix, name, flavor=flavor, base=base))
            )
            for flavor in ("patched", "stock")
        )
        assert len(patched) == len(stock)
        for one, other in zip(patched, stock, strict=True):
            if one != other:
                assert one.split()[0] in {"COPY", "RUN", "LABEL"}
                assert "pr24423-" in one or "LLAMA_BUILD_COMMIT" in one or "flavor" in one


def test_the_series_is_in_the_patched_labels_alone(inputs: Inputs) -> None:
    for target in all_targets(inputs.matrix):
        found = [key for key in labels(target, series_of(target, inputs.series)) if "series" in key]
        assert len(found) == (2 if target.flavor == "patched" else 0)


def test_a_changed_patch_changes_every_patched_dockerfile_and_no_stock_one(
    inputs: Inputs, files: dict[str, str]
) -> None:
    series = dict(inputs.series)
    name, old = next(iter(series.items()))
    body = old.patches[0]
    text = (ROOT / "patches" / name / body.name).read_text("utf-8").replace("Subject:", "Subject: changed", 1)
    series[name] = make_series(name, [(body.name, text)])
    changed = set(drifted_paths(render_all(replace(inputs, series=series)), files))
    assert changed == {
        f"images/{target.id}/Dockerfile"
        for target in all_targets(inputs.matrix)
        if target.flavor == "patched"
    }


def test_the_requirements_pin_every_wheel_for_every_platform(inputs: Inputs, files: dict[str, str]) -> None:
    text = files["images/common/cuda-13.0.txt"]
    wheels = inputs.matrix.toolkits["cuda-13.0"].wheels
    assert wheels is not None
    entries = text.replace(" \\\n", " ").splitlines()[1:]
    assert len(entries) == len(wheels.build) + len(wheels.runtime)
    for entry in entries:
        assert re.fullmatch(r"[a-z0-9-]+==[0-9.]+(\s+--hash=sha256:[0-9a-f]{64}){2}", entry)


def test_the_bake_file_makes_the_whole_matrix(inputs: Inputs, files: dict[str, str]) -> None:
    baked = json.loads(files["docker-bake.json"])
    assert baked == bake(inputs.matrix)
    ids = [target.id for target in all_targets(inputs.matrix)]
    assert baked["group"]["all"]["targets"] == ids
    for target in all_targets(inputs.matrix):
        entry = baked["target"][target.id]
        assert entry["platforms"] == list(target.architecture.platforms)
        assert f"images/{entry['dockerfile']}" in files
        for reference, value in entry.get("contexts", {}).items():
            assert f"FROM {reference} AS" in files[f"images/{target.id}/Dockerfile"]
            made = baked["target"][value.removeprefix("target:")]
            assert set(entry["platforms"]) <= set(made["platforms"])


def test_the_context_of_a_build_by_hand_holds_what_the_dockerfiles_copy(
    inputs: Inputs, files: dict[str, str]
) -> None:
    kept = [line[1:] for line in files["images/.dockerignore"].splitlines() if line.startswith("!")]
    for target in all_targets(inputs.matrix):
        for line in instructions(files[f"images/{target.id}/Dockerfile"]):
            if line.startswith("COPY ") and "--from" not in line:
                for path in line.split()[1:-1]:
                    assert any(k == path or k.startswith(path) or path.startswith(f"{k}/") for k in kept), (
                        path
                    )


def test_the_readme_holds_a_row_for_every_architecture(inputs: Inputs, files: dict[str, str]) -> None:
    for architecture in inputs.matrix.architectures.values():
        assert f"| `{architecture.name}` |" in files["README.md"]


def test_a_readme_without_its_markers_is_refused(inputs: Inputs) -> None:
    with pytest.raises(UsageError, match=r"README\.md: the markers"):
        render_all(replace(inputs, readme="nothing here"))


@pytest.mark.parametrize(
    "value",
    [
        "a\nRUN evil",
        'a" evil="b',
        "a'b",
        "$(id)",
        "`id`",
        "a\\",
        "a;\x00",
        "a\u2028b",
        "a && b",
        "a | b",
        "a > b",
    ],
)
def test_a_value_that_would_break_out_of_its_line_is_refused(inputs: Inputs, value: str) -> None:
    with pytest.raises(UsageError, match="would break out"):
        safe(value)
    target = make_target(inputs.matrix, "120")
    broken = target.architecture.model_copy(update={"serves": (value,)})
    with pytest.raises(UsageError, match="would break out"):
        render_dockerfile(inputs, replace(target, architecture=broken))


@given(st.text(max_size=40))
def test_no_text_ends_a_line_or_a_quoted_string(value: str) -> None:
    try:
        text = safe(value)
    except UsageError:
        return
    assert len(text.splitlines()) <= 1
    assert not set(text) & set("\"'`$\\<>|&!*?")


def test_drift_shows_what_is_missing_changed_and_too_many() -> None:
    rendered = {"images/a/Dockerfile": "FROM a\n", "images/b/Dockerfile": "FROM b\n"}
    present = {"images/b/Dockerfile": "FROM c\n", "images/old/Dockerfile": "FROM old\n"}
    text = drift(rendered, present)
    assert "--- /dev/null\n+++ b/images/a/Dockerfile" in text
    assert "-FROM c\n+FROM b" in text
    assert "--- a/images/old/Dockerfile\n+++ /dev/null" in text
    assert list(drifted_paths(rendered, present)) == [
        "images/a/Dockerfile",
        "images/b/Dockerfile",
        "images/old/Dockerfile",
    ]


def test_rendering_owns_nothing_that_it_does_not_make(files: dict[str, str]) -> None:
    """Else it would remove a script of images/common as a leftover."""
    for path in (ROOT / "images").glob("*/*"):
        name = str(path.relative_to(ROOT))
        if path.is_file() and is_rendered_path(name):
            assert name in files
    assert not is_rendered_path("images/common/cpu-variants.cmake")
    assert not is_rendered_path("images/common/stage")


# --- the workflow ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def jobs(files: dict[str, str]) -> dict[str, Any]:
    document = yaml.safe_load(files[WORKFLOW])
    assert document["permissions"] == {}
    assert list(document[True]) == ["workflow_dispatch"], "only people who may write can start it"
    result: dict[str, Any] = document["jobs"]
    return result


def test_each_job_may_do_what_it_needs_and_no_more(jobs: dict[str, Any]) -> None:
    assert {name: job["permissions"] for name, job in jobs.items()} == {
        "plan": {"contents": "read"},
        "build": {"contents": "read", "packages": "write"},
        "publish": {"contents": "read", "packages": "write"},
        "move": {"contents": "read", "packages": "write"},
    }
    for job in jobs.values():
        for step in job["steps"]:
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"] == {"persist-credentials": False}


def test_actions_are_pinned_by_commit_and_say_their_release(files: dict[str, str]) -> None:
    uses = re.findall(r"uses: (.*)", files[WORKFLOW])
    assert len(uses) >= 8
    for one in uses:
        assert re.fullmatch(r"[a-z-]+/[a-z-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", one), one


def test_no_script_has_an_expression_in_it(jobs: dict[str, Any]) -> None:
    """What a person types goes through the environment: a shell must not read it as its own words."""
    scripts = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    assert len(scripts) >= 6
    assert [text for text in scripts if "${{" in text] == []


def test_the_key_is_shown_to_one_step(files: dict[str, str], jobs: dict[str, Any]) -> None:
    holders = [step.get("name") for job in jobs.values() for step in job["steps"] if "secrets." in str(step)]
    assert holders == ["Publish"]
    assert [name for name, job in jobs.items() if "environment" in job] == ["publish"]


def test_the_workflow_moves_tags_once_after_every_platform(jobs: dict[str, Any]) -> None:
    def calls(name: str) -> list[str]:
        scripts = "\n".join(step.get("run", "") for step in jobs[name]["steps"])
        return [line for line in scripts.splitlines() if "invoke publish" in line or "invoke verify" in line]

    (publishing,), (moving, verifying) = calls("publish"), calls("move")
    assert "--no-move" in publishing
    assert "--move-only" in moving
    assert "invoke verify" in verifying
    assert jobs["move"]["needs"] == ["plan", "publish"]
    assert "strategy" not in jobs["move"]
    assert jobs["move"]["if"] == jobs["publish"]["if"] == "inputs.publish"


def test_the_workflow_offers_what_the_default_base_makes(inputs: Inputs, files: dict[str, str]) -> None:
    document = yaml.safe_load(files[WORKFLOW])
    offered = document[True]["workflow_dispatch"]["inputs"]["arch"]["options"]
    assert {"cpu", "120", "portable", "blackwell", "all"} <= set(offered)
    assert not {"70", "volta", "native"} & set(offered)
    for word in offered:
        select(inputs.matrix, [word], native=tuple)


def test_the_workflow_calls_commands_that_exist(files: dict[str, str]) -> None:
    called = set(re.findall(r"invoke ([a-z.]+)", files[WORKFLOW])) - {"render"}
    assert {"plan", "build", "test", "publish", "verify"} <= called
    assert called <= set(tasks.ns.task_names)
