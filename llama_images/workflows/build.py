"""From a plan to images."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from llama_images.build_record import BuildRecord, input_digest
from llama_images.buildlog import BuildSummary
from llama_images.errors import OutsideError
from llama_images.matrix import Base
from llama_images.oci import is_digest
from llama_images.plan import Plan, source_subject
from llama_images.ports import BuildRequest, CheckedOut, Engine, ImageInfo
from llama_images.render import (
    INPUTS_LABEL,
    base_reference,
    bootstrap_argv,
    series_of,
    source_folder,
)
from llama_images.selection import Target, local_reference
from llama_images.words import last_line
from llama_images.workflows.workshop import Workshop, common_hashes, write_or_remove


@dataclass(frozen=True, kw_only=True, slots=True)
class Built:
    """What became of one target."""

    target: Target
    reference: str
    status: Literal["built", "up to date"]
    image: ImageInfo
    summary: BuildSummary | None
    """None for a target that was up to date."""
    log: Path | None


def build_all(
    shop: Workshop,
    engine: Engine,
    plan: Plan,
    *,
    repo: str | None,
    rebuild: bool = False,
    on_built: Callable[[Built], None] | None = None,
) -> list[Built]:
    """Do the plan's source, base and build steps; targets that are up to date are left as they are.

    ``on_built`` gets each target's result as soon as it is there. Raises OutsideError or CheckFailed at the
    first step that fails. What was finished before it stays, so a second call goes on from there.
    """
    files = shop.rendered()
    trees = check_out_sources(shop, plan, repo=repo)
    bases = make_bases(shop, engine, plan, files=files)
    return build_targets(
        shop, engine, plan, files=files, trees=trees, bases=bases, rebuild=rebuild, on_built=on_built
    )


def check_out_sources(shop: Workshop, plan: Plan, *, repo: str | None) -> dict[str, CheckedOut]:
    """Do the plan's source steps: trees by the steps' subjects. Raises OutsideError or CheckFailed."""
    trees: dict[str, CheckedOut] = {}
    for step in plan.steps:
        if step.kind == "source":
            with shop.reporter.activity(f"source {step.subject}"):
                series = series_of(step.target, shop.series)
                trees[step.subject] = shop.source_tree.checkout(step.target.source, series, repo=repo)
    return trees


def make_bases(
    shop: Workshop, engine: Engine, plan: Plan, *, files: Mapping[str, str]
) -> dict[str, ImageInfo]:
    """Do the plan's base steps: images by the steps' subjects. ``files`` are the rendered ones.

    Raises OutsideError, see ``ensure_base``.
    """
    return {
        step.subject: ensure_base(shop, engine, step.target.base, files=files, platform=plan.platform)
        for step in plan.steps
        if step.kind == "base"
    }


def build_targets(
    shop: Workshop,
    engine: Engine,
    plan: Plan,
    *,
    files: Mapping[str, str],
    trees: Mapping[str, CheckedOut],
    bases: Mapping[str, ImageInfo],
    rebuild: bool = False,
    on_built: Callable[[Built], None] | None = None,
) -> list[Built]:
    """Do the plan's build steps, with what its source and base steps have made. Raises OutsideError."""
    results = []
    for target in plan.targets:
        built = _build(
            shop,
            engine,
            target,
            trees[source_subject(target)],
            bases.get(base_reference(target.base)),
            files,
            platform=plan.platform,
            rebuild=rebuild,
        )
        results.append(built)
        if on_built is not None:
            on_built(built)
    return results


def ensure_base(
    shop: Workshop,
    engine: Engine,
    base: Base,
    *,
    files: Mapping[str, str],
    platform: str,
    rebuild: bool = False,
) -> ImageInfo:
    """The base image of a bootstrap base for a platform, made where it is missing or its recipe has changed.

    Raises OutsideError where the distribution's packages can't be had or the engine fails.
    """
    reference = base_reference(base)
    dockerfile = files["images/base/Dockerfile"]
    digest = input_digest({"dockerfile": dockerfile, "bootstrap": bootstrap_argv(base, platform, ".")})
    image = engine.image(reference)
    if image is not None and image.labels.get(INPUTS_LABEL) == digest and not rebuild:
        return image
    log = shop.log_path(f"base-{base.suite}")
    label = f"base {base.suite}"
    with _context_folder(shop, f"base-{base.suite}") as context, shop.reporter.activity(label) as activity:
        finished = shop.programs.run(
            (*bootstrap_argv(base, platform, str(context)), *shop.mirrors()),
            on_line=lambda line: activity.update(line.removeprefix("I: ")),
            log=log,
        )
        if finished.returncode != 0:
            raise OutsideError(
                f"mmdebstrap could not make the system of {base.suite} (exit {finished.returncode}): "
                f"{last_line(finished.error_text, otherwise='it printed nothing')}",
                hint=f"the whole output is in {log}; does the distribution's mirror answer?",
            )
        (context / "Dockerfile").write_text(dockerfile, "utf-8")
        engine.build(
            BuildRequest(
                dockerfile=context / "Dockerfile",
                context=context,
                tag=reference,
                platform=platform,
                labels={INPUTS_LABEL: digest},
                log=shop.log_path(f"base-{base.suite}-image"),
            ),
            activity.update,
        )
    return _built_image(engine, reference)


def _build(
    shop: Workshop,
    engine: Engine,
    target: Target,
    tree: CheckedOut,
    base: ImageInfo | None,
    files: Mapping[str, str],
    *,
    platform: str,
    rebuild: bool,
) -> Built:
    reference = local_reference(target)
    dockerfile = files[f"images/{target.id}/Dockerfile"]
    common = shop.common_files(files)
    parts = {
        "dockerfile": dockerfile,
        "common": common_hashes(common),
        "source": tree.patched_tree,
        "paths": list(target.source.paths),
        "base": None if base is None else list(base.layers),
        "platform": platform,
    }
    digest = input_digest(parts)
    image = engine.image(reference)
    if image is not None and image.labels.get(INPUTS_LABEL) == digest and not rebuild:
        if find_record(shop, image) is None:
            _keep_record(shop, engine, parts)
        shop.reporter.line(f"{target.id}: up to date, {reference} was made from these very inputs")
        return Built(
            target=target, reference=reference, status="up to date", image=image, summary=None, log=None
        )
    log = shop.log_path(f"build-{target.id}")
    started = _now()
    with _context_folder(shop, target.id) as context:
        _stage_context(context, tree.path, source_folder(target.source, target.flavor), dockerfile, common)
        with shop.reporter.activity(target.id) as activity:
            summary = engine.build(
                BuildRequest(
                    dockerfile=context / "Dockerfile",
                    context=context,
                    tag=reference,
                    platform=platform,
                    labels={INPUTS_LABEL: digest},
                    build_args=shop.proxies(),
                    secrets=shop.secrets(),
                    local_images=() if base is None else (base_reference(target.base),),
                    log=log,
                ),
                activity.update,
            )
    _keep_record(shop, engine, parts, started=started, finished=_now())
    return Built(
        target=target,
        reference=reference,
        status="built",
        image=_built_image(engine, reference),
        summary=summary,
        log=log,
    )


def find_record(shop: Workshop, image: ImageInfo) -> BuildRecord | None:
    """What is known of the build of an image; None where the cache does not have it (any more)."""
    digest = image.labels.get(INPUTS_LABEL, "")
    path = _record_path(shop, digest)
    if not is_digest(digest) or not path.is_file():
        return None
    record = BuildRecord.parse(path.read_bytes())
    return record if record is not None and record.inputs == digest else None


def _keep_record(
    shop: Workshop,
    engine: Engine,
    parts: Mapping[str, object],
    *,
    started: str | None = None,
    finished: str | None = None,
) -> None:
    info = engine.info()
    record = BuildRecord(
        parts=parts, engine=f"{info.name} {info.version}", started=started, finished=finished
    )
    write_or_remove(_record_path(shop, record.inputs), json.dumps(record.as_json(), indent=2))


def _record_path(shop: Workshop, digest: str) -> Path:
    return shop.cache / "builds" / f"{digest.removeprefix('sha256:')}.json"


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@contextmanager
def _context_folder(shop: Workshop, name: str) -> Iterator[Path]:
    """A folder for one build's context, apart from those of other processes; removed at the end."""
    parent = shop.cache / "contexts"
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{name}.", dir=parent) as folder:
        yield Path(folder)


def _stage_context(
    context: Path, tree: Path, folder: str, dockerfile: str, common: Mapping[str, tuple[bytes, int]]
) -> None:
    """Lay out a build context: the source by hard links, the scripts and the Dockerfile as files."""
    (context / "common").mkdir()
    for name, (data, mode) in common.items():
        path = context / "common" / name
        path.write_bytes(data)
        path.chmod(mode)
    shutil.copytree(tree, context / folder, copy_function=_link_or_copy, symlinks=True)
    (context / "Dockerfile").write_text(dockerfile, "utf-8")


def _link_or_copy(source: str, destination: str) -> None:
    try:
        os.link(source, destination)
    except OSError:
        shutil.copy2(source, destination)


def _built_image(engine: Engine, reference: str) -> ImageInfo:
    image = engine.image(reference)
    if image is None:
        raise OutsideError(
            f"the engine says that it built {reference}, but it has no such image",
            hint="did somebody remove it meanwhile? The same command goes on from there",
        )
    return image
