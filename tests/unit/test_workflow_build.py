"""From a plan to images, with an engine that records: what is built, what is left, what an error leaves."""

from __future__ import annotations

from pathlib import Path

import pytest

from llama_images.errors import OutsideError
from llama_images.plan import choose, make_plan
from llama_images.render import INPUTS_LABEL, base_reference
from llama_images.workflows.build import Built, build_all, find_record
from tests.unit.fakes import PLATFORM, House

CPU, SM89, SM120 = (f"llama-diffusion:{name}" for name in ("cpu", "sm89", "sm120"))


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def base_of(house: House) -> str:
    (base,) = (base for base in house.shop().matrix.bases.values() if base.kind == "bootstrap")
    return base_reference(base)


def build(house: House, *words: str, rebuild: bool = False, repo: str | None = None) -> list[Built]:
    return build_all(house.shop(), house.engine, house.plan(*words), repo=repo, rebuild=rebuild)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text("utf-8")
    assert text.count(old) == 1, f"{old!r} is not once in {path}"
    path.write_text(text.replace(old, new), "utf-8")


def test_a_target_is_built_from_the_rendered_file_the_scripts_and_the_patched_tree(house: House) -> None:
    (built,) = build(house, "cpu", repo="/a/clone")
    assert (built.reference, built.status) == (CPU, "built")
    assert built.image is house.engine.images[CPU]
    assert house.source_tree.asked == [("pr24423", True, "/a/clone")]
    assert house.engine.built == [base_of(house), CPU]
    base, image = house.engine.seen
    assert base.files == {"Dockerfile", "rootfs.amd64.tar"}
    assert base.dockerfile == house.shop().rendered()["images/base/Dockerfile"]
    assert image.dockerfile == house.shop().rendered()["images/cpu/Dockerfile"]
    assert image.files >= {
        "Dockerfile",
        "common/compile",
        "common/backend.map",
        "src/pr24423-patched/CMakeLists.txt",
        "src/pr24423-patched/src/main.cpp",
    }
    assert "compile" in image.executable
    assert "backend.map" not in image.executable
    assert image.request.platform == PLATFORM
    assert image.request.log == built.log
    assert image.request.local_images == (base_of(house),)
    assert base.request.local_images == ()
    assert house.contexts() == []


def test_what_went_into_a_build_is_kept_beside_it(house: House) -> None:
    (built,) = build(house, "cpu")
    record = find_record(house.shop(), built.image)
    assert record is not None
    assert record.inputs == built.image.labels[INPUTS_LABEL]
    assert record.parts["source"] == "patched 1"
    assert record.parts["dockerfile"] == house.shop().rendered()["images/cpu/Dockerfile"]
    assert record.parts["common"].keys() >= {"compile", "stage"}
    assert record.engine == "docker 1"
    assert record.started is not None
    assert record.finished is not None
    assert record.started <= record.finished


@pytest.mark.parametrize("damage", ["gone", "cut", "another's"])
def test_a_record_that_is_lost_is_made_again_without_times(house: House, damage: str) -> None:
    (built,) = build(house, "cpu")
    (path,) = (house.cache / "builds").iterdir()
    if damage == "gone":
        path.unlink()
    else:
        path.write_text(
            path.read_text()[:100] if damage == "cut" else path.read_text().replace("patched 1", "2")
        )
    assert find_record(house.shop(), built.image) is None
    (again,) = build(house, "cpu")
    assert again.status == "up to date"
    record = find_record(house.shop(), again.image)
    assert record is not None
    assert (record.started, record.finished) == (None, None)


def test_a_failed_build_leaves_no_record(house: House) -> None:
    house.engine.failures[CPU] = OutsideError("no room")
    with pytest.raises(OutsideError, match="no room"):
        build(house, "cpu")
    assert not (house.cache / "builds").exists()


def test_base_and_image_of_another_platform_are_made_for_that_one(house: House) -> None:
    shop = house.shop()
    selection = choose(shop.matrix, ["cpu"], platform="linux/arm64", native=tuple)
    plan = make_plan(selection, series=shop.series, platform="linux/arm64")
    build_all(shop, house.engine, plan, repo=None)
    base, image = house.engine.seen
    assert base.files == {"Dockerfile", "rootfs.arm64.tar"}
    assert (base.request.platform, image.request.platform) == ("linux/arm64", "linux/arm64")
    build(house, "cpu")
    assert house.engine.built == [base_of(house), CPU] * 2, "a base of another platform was taken"


def test_the_sources_own_files_outlive_the_context(house: House) -> None:
    # They are hard links: removing the context must not take the cache's tree with it.
    build(house, "cpu")
    assert (house.source_tree.folder / "patched" / "src" / "main.cpp").read_text() == "int main() {}\n"


def test_what_is_up_to_date_is_left_alone(house: House) -> None:
    (first,) = build(house, "cpu")
    done = house.engine.built
    (second,) = build(house, "cpu")
    assert house.engine.built == done
    assert len(house.programs.runs) == 1
    assert (second.status, second.summary, second.log) == ("up to date", None, None)
    assert second.image.id == first.image.id
    assert any(line.startswith("cpu: up to date") for line in house.reporter.lines)


def test_rebuild_builds_what_is_up_to_date_and_keeps_its_base(house: House) -> None:
    (first,) = build(house, "cpu")
    (second,) = build(house, "cpu", rebuild=True)
    assert house.engine.built == [base_of(house), CPU, CPU]
    assert second.status == "built"
    assert second.image.id != first.image.id
    assert second.image.labels[INPUTS_LABEL] == first.image.labels[INPUTS_LABEL]


@pytest.mark.parametrize("what", ["script", "template", "source"])
def test_a_changed_input_makes_a_target_stale_and_not_its_base(house: House, what: str) -> None:
    script = house.root / "images" / "common" / "compile"
    build(house, "cpu")
    if what == "script":
        script.write_text(script.read_text("utf-8") + "# another line\n", "utf-8")
    elif what == "template":
        template = house.root / "templates" / "Dockerfile.j2"
        template.write_text(template.read_text("utf-8") + "\n# another line\n", "utf-8")
    else:
        house.source_tree.revision = "2"
    (again,) = build(house, "cpu")
    assert again.status == "built"
    assert house.engine.built == [base_of(house), CPU, CPU]


@pytest.mark.parametrize("what", ["template", "packages"])
def test_a_base_whose_recipe_changed_is_made_anew_and_its_targets_with_it(house: House, what: str) -> None:
    build(house, "cpu")
    if what == "template":
        template = house.root / "templates" / "base.Dockerfile.j2"
        template.write_text(template.read_text("utf-8") + "\n# another line\n", "utf-8")
    else:
        edit(house.root / "matrix.yaml", "packages: [ca-certificates]", "packages: [ca-certificates, tzdata]")
    (again,) = build(house, "cpu")
    assert len(house.programs.runs) == 2
    assert again.status == "built"
    assert house.engine.built == [base_of(house), CPU] * 2


def test_one_base_and_one_tree_serve_several_targets(house: House) -> None:
    results = build(house, "cpu", "120")
    assert [built.reference for built in results] == [CPU, SM120]
    assert house.engine.built == [base_of(house), CPU, SM120]
    assert len(house.source_tree.asked) == 1


@pytest.mark.parametrize(
    "error", [OutsideError("step 7 failed"), KeyboardInterrupt()], ids=["step", "Ctrl-C"]
)
def test_what_was_finished_before_a_failure_stays_and_a_second_call_goes_on(
    house: House, error: BaseException
) -> None:
    house.engine.failures[SM89] = error
    finished: list[Built] = []
    plan = house.plan("cpu", "89", "120")
    with pytest.raises(type(error)) as raised:
        build_all(house.shop(), house.engine, plan, repo=None, on_built=finished.append)
    assert raised.value is error
    assert [(built.reference, built.status) for built in finished] == [(CPU, "built")]
    assert set(house.engine.images) == {base_of(house), CPU}
    assert house.engine.built == [base_of(house), CPU, SM89]
    assert house.contexts() == []
    house.engine.failures.clear()
    results = build(house, "cpu", "89", "120")
    assert [built.status for built in results] == ["up to date", "built", "built"]
    assert house.contexts() == []


def test_a_failing_mmdebstrap_is_told_with_its_last_line_and_the_log(house: House) -> None:
    house.programs.failure = b"I: running\nE: no such host: deb.example\n\n"
    with pytest.raises(OutsideError) as raised:
        build(house, "cpu")
    log = house.cache / "logs" / "base-bookworm.log"
    assert "exit 25" in raised.value.message
    assert raised.value.message.endswith("E: no such host: deb.example")
    assert raised.value.hint is not None
    assert str(log) in raised.value.hint
    assert log.read_bytes() == house.programs.failure
    assert house.engine.built == []
    assert house.contexts() == []


def test_a_base_that_can_not_be_built_leaves_no_context_and_no_target(house: House) -> None:
    error = house.engine.failures[base_of(house)] = OutsideError("the disk is full")
    with pytest.raises(OutsideError) as raised:
        build(house, "cpu")
    assert raised.value is error
    assert house.engine.images == {}
    assert house.contexts() == []


def test_an_image_that_is_gone_when_it_is_built_is_found_out(house: House) -> None:
    house.engine.keeps_results = False
    with pytest.raises(OutsideError, match="it has no such image") as raised:
        build(house, "cpu")
    assert base_of(house) in raised.value.message
    assert house.contexts() == []


def test_a_source_that_can_not_be_had_ends_the_build_before_any_work(house: House) -> None:
    error = house.source_tree.error = OutsideError("can't reach it")
    with pytest.raises(OutsideError) as raised:
        build(house, "cpu")
    assert raised.value is error
    assert (house.engine.built, house.programs.runs) == ([], [])


def test_a_certificate_and_proxies_reach_the_build_and_not_the_digest(house: House, tmp_path: Path) -> None:
    (plain,) = build(house, "cpu")
    bundle = tmp_path / "ca.pem"
    bundle.write_text("a certificate")
    proxies = {"https_proxy": "http://proxy:3128", "NO_PROXY": "localhost"}
    house.environment.update(proxies, SSL_CERT_FILE=str(bundle))
    (behind,) = build(house, "cpu", rebuild=True)
    first, second = (seen.request for seen in house.engine.seen if seen.request.tag == CPU)
    assert (first.secrets, first.build_args) == ({}, {})
    assert (second.secrets, second.build_args) == ({"ca": bundle}, proxies)
    assert behind.image.labels[INPUTS_LABEL] == plain.image.labels[INPUTS_LABEL]
