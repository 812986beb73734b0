"""The whole chain on this machine, without a GPU."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from llama_images import runs
from llama_images.errors import CheckFailed, LlamaImagesError, OutsideError
from llama_images.plan import Plan, choose, make_plan, source_subject
from llama_images.ports import Engine, RegistryReader, RegistryServer
from llama_images.render import base_reference, drifted_paths
from llama_images.workflows.build import Built, build_targets, check_out_sources, make_bases
from llama_images.workflows.smoke import smoke
from llama_images.workflows.workshop import Workshop


@dataclass(slots=True)
class DemoLog:
    """What the demo did, and how long each part took in seconds."""

    parts: list[tuple[str, str, float]] = field(default_factory=list)

    @contextmanager
    def part(self, name: str) -> Iterator[Callable[[str], None]]:
        start = time.monotonic()
        said: list[str] = []
        try:
            yield said.append
        except BaseException as error:
            said = [_why(error)]
            raise
        finally:
            self.parts.append((name, "; ".join(said) or "done", time.monotonic() - start))


def _why(error: BaseException) -> str:
    if isinstance(error, LlamaImagesError):
        return f"failed: {error.message.splitlines()[0]}"
    return "interrupted" if isinstance(error, KeyboardInterrupt) else f"failed: {error!r}"


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoResult:
    built: Built
    run: runs.Run
    sc_lines: int


def demo(
    shop: Workshop,
    engine: Engine,
    log: DemoLog,
    *,
    repo: str | None,
    model: Callable[[], Path],
    registry: RegistryServer,
    reader: Callable[[str], RegistryReader],
) -> DemoResult:
    """Matrix, render, plan, source, base, image, a generation in the container, its validators, a registry.

    ``log`` is filled as it goes, so that it is true whatever happens. Where the source can't be had, the rest
    that needs no source is still done before OutsideError is raised.
    """
    with log.part("matrix and templates") as say:
        drifted = list(drifted_paths(files := shop.rendered(), shop.present(files)))
        if drifted:
            raise CheckFailed(f"{drifted[0]} differs from what the matrix says", hint="run invoke render")
        say(f"{len(shop.matrix.architectures)} architectures, {len(files)} rendered files as they should be")
    with log.part("plan") as say:
        plan = _plan(shop, engine)
        say(", ".join(step.kind for step in plan.steps))
    target = plan.targets[0]
    with log.part("base image") as say:
        bases = make_bases(shop, engine, plan, files=files)
        say(", ".join(f"{name}, {image.size_bytes / 1e6:.0f} MB" for name, image in bases.items()))
    try:
        with log.part("source") as say:
            trees = check_out_sources(shop, plan, repo=repo)
            tree = trees[source_subject(target)]
            say(f"tree {tree.tree[:12]} as pinned, {tree.patched_tree[:12]} with the series")
    except OutsideError as error:
        # What can be shown without the source is shown; if that fails too, this error is the one to mend.
        with contextlib.suppress(LlamaImagesError), log.part("registry round trip, of the base image") as say:
            say(_round_trip(engine, base_reference(target.base), "base", registry, reader))
        raise error
    with log.part("image") as say:
        (built,) = build_targets(shop, engine, plan, files=files, trees=trees, bases=bases)
        say(_built_text(built))
    with log.part("tiny synthetic model") as say:
        path = model()
        say(f"{path.stat().st_size / 1e6:.0f} MB")
    with log.part("generation in the container, judged") as say:
        result = smoke(shop, engine, target, path)
        for check in result.checks:
            if not check.passed:
                raise CheckFailed(f"{result.reference}: {check.name}: {check.detail}")
        assert result.run is not None
        checks = result.run.sc_checks
        say(
            f"{result.run.steps} steps in {result.seconds:.1f} s, {len(checks)} DG_SC_CHECK lines, "
            f"{len(result.checks)} checks passed"
        )
    with log.part("registry round trip") as say:
        say(_round_trip(engine, built.reference, target.id, registry, reader))
    return DemoResult(built=built, run=result.run, sc_lines=len(checks))


def _plan(shop: Workshop, engine: Engine) -> Plan:
    platform = engine.info().platform
    selection = choose(shop.matrix, ["cpu"], platform=platform, native=tuple)
    return make_plan(selection, series=shop.series, platform=platform)


def _built_text(built: Built) -> str:
    if built.summary is None:
        return f"{built.reference} up to date"
    ccache = built.summary.ccache
    rate = (
        f", ccache {ccache.hits} of {ccache.total} from the cache"
        if ccache is not None
        else ", layers all cached"
    )
    return f"{built.reference}, {built.image.size_bytes / 1e6:.1f} MB{rate}"


def _round_trip(
    engine: Engine,
    reference: str,
    tag: str,
    registry: RegistryServer,
    reader: Callable[[str], RegistryReader],
) -> str:
    """Push the image to a real registry server started for this, and read back every byte that it holds."""
    with registry as server:
        remote = f"{server.host}/llama-diffusion:{tag}"
        engine.tag(reference, remote)
        try:
            digest = engine.push(remote, lambda _text: None)
            held = reader(server.url).read_image("llama-diffusion", digest)
        finally:
            engine.remove_tag(remote)
    if held.digest != digest:
        raise CheckFailed(f"the registry holds {held.digest}, pushed was {digest}")
    return (
        f"pushed and read back {digest[:19]}…: manifest and {held.blobs} blobs as stated, "
        f"{held.compressed_bytes / 1e6:.1f} MB compressed"
    )
