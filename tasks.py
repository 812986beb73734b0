"""Invoke's tasks: strings in, exit codes out. Everything else is in ``llama_images``.

Exit codes: 0 done; 1 a check failed; 2 wrong use or a bad file; 3 an outside system (engine, git, registry)
failed.
"""

from __future__ import annotations

import functools
import os
import platform as machine
import re
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from json import dumps
from pathlib import Path

from invoke.collection import Collection
from invoke.context import Context
from invoke.tasks import task

from llama_images import tables
from llama_images.adapters.compile_folder import CompileFolders
from llama_images.adapters.engines import choose_engine
from llama_images.adapters.figures import MatplotlibArtist
from llama_images.adapters.git import GitSourceTree
from llama_images.adapters.git_program import Git
from llama_images.adapters.gpu_memory import CudaMemory
from llama_images.adapters.gpus import NvidiaGpus
from llama_images.adapters.hub import HuggingFaceHub
from llama_images.adapters.image_store import CachedImages
from llama_images.adapters.machine import processor
from llama_images.adapters.patch_files import LazySeries, PatchFolders
from llama_images.adapters.process import SystemPrograms, termination_as_interrupt
from llama_images.adapters.programs import BareProgram, ImageProgram
from llama_images.adapters.registry import LocalRegistry
from llama_images.adapters.registry_client import RegistryClient, authorities_for, connect
from llama_images.adapters.reporter import ConsoleReporter
from llama_images.adapters.series_trees import GitSeriesTrees
from llama_images.adapters.series_work import GitSeriesWork
from llama_images.adapters.signing import KEY_VARIABLE, load_signer, load_verifier
from llama_images.adapters.upstreams import PublicUpstreams
from llama_images.bench import Hardware
from llama_images.cli import (
    DOCTOR_HELP,
    FIT_HELP,
    REPORT_HELP,
    RUN_HELP,
    FitWords,
    RunWords,
    cache_folder,
    diagnose_machine,
    fit_model,
    guarded,
    report_machine,
    run_model,
)
from llama_images.errors import CheckFailed, UsageError
from llama_images.evidence import TOO_FEW_GPUS, Evidence
from llama_images.matrix import FLAVORS, Source, load_matrix
from llama_images.models import choose_model
from llama_images.plan import Plan, choose, choose_platform, make_plan
from llama_images.platforms import MACHINES, platform_of
from llama_images.ports import Engine, Programs, Reporter
from llama_images.references import parse_reference, parse_repository
from llama_images.render import drift, drifted_paths, series_of
from llama_images.selection import Target, local_reference, make_target, select
from llama_images.synthetic import ModelInfo, Size, write_model
from llama_images.words import counted, printable
from llama_images.workflows.bench import (
    HOST,
    BenchRequest,
    both_flavors,
    described,
    host_beds,
    image_beds,
    measure,
    page_template,
    places_of,
    read_document,
    workloads_of,
    write_results,
)
from llama_images.workflows.build import Built, build_all, ensure_base
from llama_images.workflows.checks import run_checks
from llama_images.workflows.demo import DemoLog
from llama_images.workflows.demo import demo as run_demo
from llama_images.workflows.fetch import fetch_model
from llama_images.workflows.logical import logical_gpus_library
from llama_images.workflows.model_files import HashedModel, hashed_model
from llama_images.workflows.pins import update_pins
from llama_images.workflows.prune import plan_pruning
from llama_images.workflows.prune import prune as run_prune
from llama_images.workflows.publish import prepare, read_evidence
from llama_images.workflows.publish import publish as run_publish
from llama_images.workflows.records import write_evidence
from llama_images.workflows.scan import scan as run_scan
from llama_images.workflows.series import (
    check_series,
    export_series,
    raise_for,
    raise_for_conflict,
    rebase_report,
)
from llama_images.workflows.smoke import smoke as run_smoke
from llama_images.workflows.subjects import Subject, binary_subject, image_subject
from llama_images.workflows.suite import (
    MEANT,
    SOAK_SECONDS,
    Rig,
    SuiteOptions,
    find_gpus,
    run_suite,
    suite_cases,
)
from llama_images.workflows.tagging import move_tags
from llama_images.workflows.verify import verify as run_verify
from llama_images.workflows.workshop import Workshop, built_image, write_or_remove

ROOT = Path(__file__).resolve().parent
REPO_VARIABLE = "LLAMA_CPP_REPO"


def _workshop(matrix_file: str | None = None) -> Workshop:
    programs = SystemPrograms()
    reporter = ConsoleReporter()
    matrix = load_matrix(Path(matrix_file) if matrix_file else ROOT / "matrix.yaml")
    patches = ROOT / "patches"
    return Workshop(
        root=ROOT,
        cache=cache_folder(),
        environment=os.environ,
        matrix=matrix,
        series=LazySeries(patches, (source.series for source in matrix.sources.values())),
        programs=programs,
        reporter=reporter,
        source_tree=_source_tree(programs, reporter),
    )


def _source_tree(programs: Programs, reporter: Reporter) -> GitSourceTree:
    return GitSourceTree(programs=programs, cache=cache_folder(), reporter=reporter, patches=ROOT / "patches")


def _engine(shop: Workshop, name: str | None, builder: str | None = None) -> Engine:
    engine = choose_engine(name, shop.programs, shop.reporter, builder=builder)
    shop.reporter.line(engine.describe())
    return engine


def _repo(repo: str | None) -> str | None:
    return repo or os.environ.get(REPO_VARIABLE) or None


@functools.cache
def _native() -> Sequence[str]:
    return NvidiaGpus().compute_capabilities()


def _check_words(shop: Workshop, words: Sequence[str], flavors: Sequence[str], base: str | None) -> None:
    """Refuse what the matrix lacks; before an engine is asked, since no engine can mend it."""
    if not words:
        raise UsageError("no --arch given", hint="name one, as in --arch 120; `invoke matrix` lists them all")
    select(shop.matrix, words, flavors=flavors, base=base, native=_native)


def _plan_for(
    shop: Workshop, words: Sequence[str], flavors: Sequence[str], base: str | None, platform: str
) -> Plan:
    selection = choose(shop.matrix, words, flavors=flavors, base=base, platform=platform, native=_native)
    plan = make_plan(selection, series=shop.series, platform=platform)
    for reason in plan.left_out:
        shop.reporter.warn(f"left out: {reason}")
    return plan


_SELECT_HELP = {
    "arch": "120, sm_120, 12.0, cpu, portable, native, all, or a family such as ada; repeatable",
    "flavor": "patched (the default) or stock; repeatable",
    "base": "debian (the default) or nvidia",
}
_ENGINE_HELP = {"engine": "docker or podman; the first that answers by default"}
_JSON_HELP = {"json": "print JSON on standard output and nothing else there"}


@task(name="matrix", help={**_JSON_HELP, "file": "another matrix file"})
@guarded
def matrix_task(c: Context, json: bool = False, file: str = "") -> None:
    """Every target: GPUs it serves, toolkit, platforms, base, tag, minimum driver."""
    shop = _workshop(file)
    if json:
        print(dumps(tables.matrix_rows(shop.matrix, shop.series), indent=2))
    else:
        print(tables.matrix_table(shop.matrix))


@task(
    iterable=["arch", "flavor"],
    help={**_SELECT_HELP, **_JSON_HELP, "platform": "linux/amd64 or linux/arm64; this machine's by default"},
)
@guarded
def plan(
    c: Context, arch: list[str], flavor: list[str], base: str = "", platform: str = "", json: bool = False
) -> None:
    """What a build would do, doing none of it."""
    shop = _workshop()
    _check_words(shop, arch, flavor, base or None)
    if platform and platform not in MACHINES:
        raise UsageError(f"--platform {platform}: there is no such platform", hint=" or ".join(MACHINES))
    made = _plan_for(shop, arch, flavor, base or None, platform or platform_of(machine.machine()))
    if json:
        print(dumps(made.as_json(), indent=2))
        return
    for number, step in enumerate(made.steps, 1):
        print(f"{number:3}  {step.kind:6}  {step.text}")


@task(help={"check": "write nothing; exit 1 and show the difference where there is one"})
@guarded
def render(c: Context, check: bool = False) -> None:
    """Write images/, docker-bake.json, the schema and the README's table from the matrix."""
    shop = _workshop()
    rendered = shop.rendered()
    present = shop.present(rendered)
    stale = list(drifted_paths(rendered, present))
    if check:
        if stale:
            print(drift(rendered, present), end="")
            raise CheckFailed(
                f"{counted(len(stale), 'file')} not as the matrix and templates say: {', '.join(stale[:4])}"
                + (" …" if len(stale) > 4 else ""),
                hint="run invoke render and commit the result",
            )
        shop.reporter.line(f"{len(rendered)} rendered files are as they should be")
        return
    for path in stale:
        write_or_remove(ROOT / path, rendered.get(path))
    shop.reporter.line(
        f"{len(stale)} of {len(rendered)} files changed" if stale else f"{len(rendered)} files, no change"
    )


@task(
    help={
        "repo": "a clone or bare repository that holds the pinned commit, or a URL",
        "flavor": "patched (the default) or stock",
    }
)
@guarded
def source(c: Context, repo: str = "", flavor: str = "patched") -> None:
    """Bring the pinned source, verified and patched, into the cache; print where it lies."""
    shop = _workshop()
    target = make_target(shop.matrix, "cpu", flavor=flavor)
    series = series_of(target, shop.series)
    tree = shop.source_tree.checkout(target.source, series, repo=_repo(repo))
    applied = "no series" if series is None else f"with the series {tree.patched_tree}"
    shop.reporter.line(f"commit {tree.commit}, tree {tree.tree} as pinned; {applied}")
    print(tree.path)


@task(name="list", help=_JSON_HELP)
@guarded
def patches_list(c: Context, json: bool = False) -> None:
    """The carried patches: order, subject, files, lines added and removed, sha256."""
    shop = _workshop()
    rows = tables.patch_rows(shop.series)
    if json:
        print(dumps(rows, indent=2))
    else:
        print(tables.patch_table(shop.series))


def _sources(shop: Workshop, name: str) -> list[Source]:
    """The source of that name; every source without one."""
    if not name:
        return list(shop.matrix.sources.values())
    if name not in shop.matrix.sources:
        raise UsageError(
            f"--source {name}: there is no such source",
            hint=f"matrix.yaml has {', '.join(shop.matrix.sources)}",
        )
    return [shop.matrix.sources[name]]


def _source(shop: Workshop, name: str) -> Source:
    """The source of that name; the default one without."""
    return _sources(shop, name or shop.matrix.defaults.source)[0]


def _series_adapters(shop: Workshop) -> tuple[GitSeriesTrees, GitSeriesWork]:
    git = Git(shop.programs, shop.cache / "source", shop.environment)
    trees = _source_tree(shop.programs, shop.reporter)
    return (
        GitSeriesTrees(git, trees, shop.reporter),
        GitSeriesWork(git, trees, shop.cache, shop.reporter),
    )


_SERIES_HELP = {
    "repo": f"a clone that holds the pinned commit, or a URL; {REPO_VARIABLE} gives the same",
    "source": "a source of the matrix; the default one without",
}


def _number(value: str, option: str) -> int | None:
    if not value:
        return None
    if not re.fullmatch(r"[1-9][0-9]{0,3}", value):
        raise UsageError(f"{option} {value}: not a number", hint="a whole number from 1 to 9999")
    return int(value)


@task(
    name="check",
    help={
        **_SERIES_HELP,
        **_JSON_HELP,
        "source": "a source of the matrix; all of them without",
        "compile": "compile the tree after each patch (on by default)",
        "jobs": "compilers at once; as many as cores and memory allow by default",
    },
)
@guarded
def patches_check(
    c: Context, repo: str = "", source: str = "", compile: bool = True, jobs: str = "", json: bool = False
) -> None:
    """Every patch: a complete header, exact hunks, clean white space, allowed paths, and it compiles."""
    if jobs and not compile:
        raise UsageError("--jobs has no use with --no-compile", hint="leave one of them out")
    shop = _workshop()
    trees, _ = _series_adapters(shop)
    folders, patches = CompileFolders(shop.cache, shop.reporter), PatchFolders(ROOT / "patches")
    checked = [
        check_series(
            shop,
            trees,
            folders.open,
            one,
            patches.listed(one.series),
            repo=_repo(repo),
            compile_patches=compile,
            jobs=_number(jobs, "--jobs"),
        )
        for one in _sources(shop, source)
    ]
    if json:
        print(dumps(tables.check_rows(checked), indent=2))
    else:
        for one in checked:
            print(tables.check_table(one))
    raise_for(checked)


@task(
    name="status",
    help={
        **_SERIES_HELP,
        **_JSON_HELP,
        "onto": "a commit, or a ref such as pull/24423/head; the source's own ref by default",
    },
)
@guarded
def patches_status(c: Context, onto: str = "", repo: str = "", source: str = "", json: bool = False) -> None:
    """How each patch fares on a newer commit: applies, moved, merges, conflicts, absorbed."""
    shop = _workshop()
    trees, _ = _series_adapters(shop)
    one = _source(shop, source)
    found = trees.compare(one, shop.series[one.series], repo=_repo(repo), onto=onto or one.ref)
    if json:
        print(dumps(tables.status_rows(one, found), indent=2))
    else:
        print(tables.status_table(one, found))


@task(
    name="rebase",
    help={
        **_SERIES_HELP,
        "onto": "a commit, or a ref such as pull/24423/head; the pin itself gives a work tree to edit",
        "continue_": "go on after a conflict that was resolved",
        "skip": "leave out the patch that conflicts, and go on",
        "abort": "remove the work tree with all that is in it",
    },
)
@guarded
def patches_rebase(
    c: Context,
    onto: str = "",
    continue_: bool = False,
    skip: bool = False,
    abort: bool = False,
    repo: str = "",
    source: str = "",
) -> None:
    """Rebase the series onto another commit, in a work tree of the cache."""
    if sum((bool(onto), continue_, skip, abort)) != 1:
        raise UsageError("patches.rebase takes one of --onto REV, --continue, --skip and --abort")
    if repo and not onto:
        option = "--continue" if continue_ else "--skip" if skip else "--abort"
        raise UsageError(
            f"--repo has no use with {option}",
            hint="the work tree keeps the repository that --onto was given",
        )
    shop = _workshop()
    _, work = _series_adapters(shop)
    one = _source(shop, source)
    if abort:
        shop.reporter.line(f"removed {work.abort(one)}")
        return
    if onto:
        found = work.start(one, shop.series[one.series], repo=_repo(repo), onto=onto)
    else:
        found = work.resume(one, skip=skip, repo=_repo(None))
    raise_for_conflict(one, found)
    print(rebase_report(one, found))


@task(
    name="export",
    help={
        "worktree": "a work tree of your own; that of patches.rebase by default",
        "base": "the commit that its commits are on; that of the rebase, or the pin, by default",
        "overwrite": "also undo what changed in patches/ since the rebase, and leave commits out",
        "source": _SERIES_HELP["source"],
    },
)
@guarded
def patches_export(
    c: Context, worktree: str = "", base: str = "", overwrite: bool = False, source: str = ""
) -> None:
    """Write the commits of a work tree as the series: one patch a commit, the same bytes every time."""
    shop = _workshop()
    _, work = _series_adapters(shop)
    one = _source(shop, source)
    done = export_series(
        work,
        PatchFolders(ROOT / "patches"),
        one,
        work_tree=Path(worktree).expanduser() if worktree else None,
        base=base or None,
        overwrite=overwrite,
    )
    if done.base != one.commit:
        shop.reporter.warn(
            f"the series goes on {done.base}, and matrix.yaml pins {one.commit[:12]}; move the pin too"
        )
    count = counted(len(done.series.patches), "patch", "patches")
    where = f"patches/{done.series.name}"
    if done.is_changed:
        shop.reporter.line(f"{where}: {done.change}")
        shop.reporter.line(f"{where}: {count} written, from {done.path}; run invoke render")
    else:
        shop.reporter.line(f"{where}: {count}, no change")


@task(
    name="update",
    iterable=["only"],
    help={
        "only": "images, wheels or source; repeatable, all three by default",
        "dry_run": "show what would change, write nothing",
    },
)
@guarded
def pins_update(c: Context, only: list[str], dry_run: bool = False) -> None:
    """Write the newest fitting digests and wheel versions into the matrix; say if the pull request moved."""
    upstreams = PublicUpstreams(SystemPrograms(), cache_folder(), os.environ)
    update_pins(ROOT / "matrix.yaml", upstreams, ConsoleReporter(), only=only, dry_run=dry_run, show=print)


@task(help={**_ENGINE_HELP, "rebuild": "make it anew, with today's packages"})
@guarded
def base(c: Context, engine: str = "", rebuild: bool = False) -> None:
    """Make the base image of the debian base from the distribution's packages."""
    shop = _workshop()
    chosen = _engine(shop, engine or None)
    for one in shop.matrix.bases.values():
        if one.kind == "bootstrap":
            platform = chosen.info().platform
            image = ensure_base(shop, chosen, one, files=shop.rendered(), platform=platform, rebuild=rebuild)
            print(f"base {one.name}: {image.id[:19]}, {image.size_bytes / 1e6:.0f} MB")


@task(
    iterable=["arch", "flavor"],
    help={
        **_SELECT_HELP,
        **_ENGINE_HELP,
        "repo": f"a clone that holds the pinned commit; {REPO_VARIABLE} gives the same",
        "builder": "name of a buildx builder; what it builds is loaded into the engine",
        "rebuild": "build also what is up to date",
        "smoke": "test each image without a GPU when it is built (on by default)",
    },
)
@guarded
def build(
    c: Context,
    arch: list[str],
    flavor: list[str],
    base: str = "",
    repo: str = "",
    engine: str = "",
    builder: str = "",
    rebuild: bool = False,
    smoke: bool = True,
) -> None:
    """Build images: parse the matrix, plan, render, check out and patch, build, test without a GPU."""
    shop = _workshop()
    _check_words(shop, arch, flavor, base or None)
    chosen = _engine(shop, engine or None, builder or None)
    info = chosen.info()
    platform = choose_platform(shop.matrix, arch, info.builds_for)
    made = _plan_for(shop, arch, flavor, base or None, platform)
    for path in drifted_paths(files := shop.rendered(), shop.present(files)):
        shop.reporter.warn(
            f"{path} is not what the matrix says; this build goes by the matrix (run invoke render)"
        )
    results: list[Built] = []
    try:
        build_all(shop, chosen, made, repo=_repo(repo), rebuild=rebuild, on_built=results.append)
    finally:
        # Where one of many failed, those before it are finished all the same.
        if results:
            print(tables.build_table(results))
    if smoke and platform != info.platform:
        shop.reporter.warn(f"not tested: images for {platform} do not run on this engine, {info.platform}")
    elif smoke:
        _smoke_all(shop, chosen, made)


@task(iterable=["arch", "flavor"], name="smoke", help={**_SELECT_HELP, **_ENGINE_HELP})
@guarded
def smoke_task(c: Context, arch: list[str], flavor: list[str], base: str = "", engine: str = "") -> None:
    """Test built images without a GPU: contents, libraries, start, a generation with the tiny model."""
    shop = _workshop()
    _check_words(shop, arch, flavor, base or None)
    chosen = _engine(shop, engine or None)
    made = _plan_for(shop, arch, flavor, base or None, chosen.info().platform)
    for target in made.targets:
        built_image(shop, chosen, target)
    _smoke_all(shop, chosen, made)


def _smoke_all(shop: Workshop, engine: Engine, made: Plan) -> None:
    model = _tiny_model(shop)
    failed = []
    for target in made.targets:
        result = run_smoke(shop, engine, target, model)
        print(tables.smoke_table(result))
        failed += [] if result.passed else [target.id]
    if failed:
        raise CheckFailed(
            f"smoke test failed: {', '.join(failed)}", hint="the lines marked FAIL above say what"
        )


@task(
    name="test",
    iterable=["arch", "flavor", "case"],
    help={
        **_SELECT_HELP,
        "gpus": f"how many GPUs the tests are about, {MEANT} by default",
        "model": "a GGUF file; the synthetic model by default, of full size on GPUs and tiny without",
        "engine": "docker or podman, the first that answers by default; host runs --binary as it is",
        "binary": "with --engine host: the program to test",
        "stock_binary": "with --engine host: the same program without the series, to compare times with",
        "require_gpu": "fail, not skip, where there are too few GPUs",
        "logical_gpus": "make one card look like so many GPUs",
        "soak": "two hours more of the same two prompts",
        "case": "only cases of this name, and what they are compared with; * and ? match; repeatable",
        "at_once": "so many cases side by side at most, 1 by default; what takes times or memory runs alone",
        "deadline": "seconds after which no further case starts; what is left is skipped",
        "out": "folder for the evidence; evidence/ in the cache by default",
    },
)
@guarded
def run_tests(
    c: Context,
    arch: list[str],
    flavor: list[str],
    case: list[str],
    base: str = "",
    gpus: str = "",
    model: str = "",
    engine: str = "",
    binary: str = "",
    stock_binary: str = "",
    require_gpu: bool = False,
    logical_gpus: str = "",
    soak: bool = False,
    at_once: str = "",
    deadline: str = "",
    out: str = "",
) -> None:
    """Test images by running them: on GPUs, or cpu without; leaves a JSON document and JUnit XML."""
    if gpus and logical_gpus:
        raise UsageError("--gpus and --logical-gpus both say how many", hint="give one of the two")
    meant = _count(logical_gpus, "--logical-gpus") or _count(gpus, "--gpus") or MEANT
    seconds = _number(deadline, "--deadline")
    end = None if seconds is None else time.monotonic() + seconds
    shop = _workshop()
    options = SuiteOptions(
        gpus=meant,
        logical=logical_gpus_library(shop) if logical_gpus else None,
        soak_seconds=SOAK_SECONDS if soak else 0.0,
        patterns=tuple(case),
        end=end,
        at_once=_number(at_once, "--at-once") or 1,
    )
    if engine == "host":
        subjects = [_binary(shop, arch, flavor, base or None, binary, stock_binary)]
        name, platform = "host", platform_of(machine.machine())
    else:
        if binary or stock_binary:
            raise UsageError("--binary is for --engine host", hint="images are tested as they are")
        _check_words(shop, arch, flavor, base or None)
        chosen = _engine(shop, engine or None)
        info = chosen.info()
        name, platform = f"{info.name} {info.version}", info.platform
        targets = _plan_for(shop, arch, flavor, base or None, platform).targets
        subjects = [
            image_subject(chosen, one, _stock_of(shop, one), functools.partial(ImageProgram, chosen))
            for one in targets
        ]
    folder = Path(out).expanduser() if out else shop.cache / "evidence"
    for one in subjects:
        suite_cases(one, options)  # a wrong --case is told before a model is made
    results = [
        _test_one(shop, one, options, Path(model) if model else None, name, platform, folder)
        for one in subjects
    ]
    failed = [f"{result.subject.name}: {case.name}" for result in results for case in result.failed]
    if failed:
        raise CheckFailed(
            f"{len(failed)} case(s) failed: {', '.join(failed[:4])}" + (" …" if len(failed) > 4 else ""),
            hint=f"the lines marked FAIL above say what; raw output is in {shop.cache / 'logs'}",
        )
    if require_gpu and any(result.short_of_gpus for result in results):
        raise CheckFailed(f"--require-gpu: {TOO_FEW_GPUS} here, so cases were skipped")


def _count(word: str, option: str) -> int:
    """A number of GPUs; 0 where nothing is given."""
    if not word:
        return 0
    if not word.isdecimal() or not 1 <= int(word) <= 16:
        raise UsageError(f"{option} {word}: a number of GPUs from 1 to 16 is needed")
    return int(word)


def _stock_of(shop: Workshop, target: Target) -> Target:
    return make_target(
        shop.matrix,
        target.architecture.name,
        flavor="stock",
        base=target.base.name,
        source=target.source.name,
    )


def _binary(
    shop: Workshop, arch: Sequence[str], flavor: Sequence[str], base: str | None, binary: str, stock: str
) -> Subject:
    if not binary:
        raise UsageError("--engine host needs --binary", hint="name the llama-diffusion-cli to test")
    if len(arch) > 1 or len(flavor) > 1:
        raise UsageError(
            "a binary is of one architecture and one flavor", hint="give --arch and --flavor once"
        )
    target = None
    if arch:
        platform = platform_of(machine.machine())
        (target, *more) = _plan_for(shop, arch, flavor, base, platform).targets
        if more:
            raise UsageError(f"--arch {arch[0]} is more than one architecture", hint="name the binary's own")
    kind = make_target(shop.matrix, "cpu", flavor=flavor[0] if flavor else None).flavor
    return binary_subject(
        Path(binary),
        flavor=kind,
        target=target,
        stock=Path(stock) if stock else None,
        on_gpus=target is None or target.toolkit is not None,
        make=functools.partial(BareProgram, shop.programs),
        reporter=shop.reporter,
    )


def _test_one(
    shop: Workshop,
    subject: Subject,
    options: SuiteOptions,
    model: Path | None,
    engine: str,
    platform: str,
    folder: Path,
) -> Evidence:
    found, driver = (
        find_gpus(NvidiaGpus(), os.environ.get("CUDA_VISIBLE_DEVICES")) if subject.on_gpus else ((), None)
    )
    rig = Rig(
        engine=engine,
        platform=platform,
        gpus=found,
        driver=driver,
        memory=CudaMemory(),
        model=_test_model(shop, model, full=subject.on_gpus) if found or not subject.on_gpus else None,
    )
    written: list[Path] = []
    with termination_as_interrupt():  # the threads of cases get no signals
        result = run_suite(
            shop,
            subject,
            rig,
            options,
            save=lambda evidence: written.append(write_evidence(folder, evidence)),
        )
    shop.reporter.line(tables.suite_table(result))
    shop.reporter.line(f"evidence: {written[-1]}")
    return result


def _test_model(shop: Workshop, model: Path | None, *, full: bool) -> HashedModel:
    if model is None:
        size: Size = "full" if full else "tiny"
        path = shop.cache / "models" / f"{size}.gguf"
        path.parent.mkdir(parents=True, exist_ok=True)
        model = _synthetic(shop.reporter, size, path).path
    return hashed_model(model, shop.cache / "models" / "hashes.json", shop.reporter)


@task(iterable=["arch", "flavor"], help={**_SELECT_HELP, **_ENGINE_HELP, **_JSON_HELP})
@guarded
def layers(
    c: Context, arch: list[str], flavor: list[str], base: str = "", engine: str = "", json: bool = False
) -> None:
    """Sizes of built images by layer, uncompressed and as a registry would hold them."""
    shop = _workshop()
    _check_words(shop, arch, flavor, base or None)
    chosen = _engine(shop, engine or None)
    made = _plan_for(shop, arch, flavor, base or None, chosen.info().platform)
    for target in made.targets:
        built_image(shop, chosen, target)
    sizes = {target.id: chosen.layers(local_reference(target)) for target in made.targets}
    if json:
        print(dumps(tables.layer_rows(sizes), indent=2))
    else:
        print(tables.layer_table(sizes))


@task(
    positional=["out"],
    help={"size": "tiny (28 MB) or full (15.4 GB)", "out": "the file to write", "seed": "of the weights"},
)
@guarded
def synthetic(c: Context, out: str, size: str = "tiny", seed: str = "1") -> None:
    """Write a synthetic model of DiffusionGemma's architecture: random weights, byte-identical everywhere."""
    if size not in ("tiny", "full"):
        raise UsageError(f"--size {size}: there is no such size", hint="tiny or full")
    number = _number(seed, "--seed")
    reporter = ConsoleReporter()
    info = _synthetic(
        reporter, "tiny" if size == "tiny" else "full", Path(out), seed=1 if number is None else number
    )
    reporter.line(f"{info.path}: {info.bytes} bytes, sha256 {info.sha256}")
    print(info.path)


def _synthetic(reporter: Reporter, size: Size, path: Path, *, seed: int = 1) -> ModelInfo:
    with reporter.activity(f"model {size}") as activity:
        return write_model(
            size,
            path,
            seed=seed,
            on_progress=lambda done, total: activity.update(f"{done / 1e6:.0f} of {total / 1e6:.0f} MB"),
        )


@task(
    help={
        "model": "a model of the matrix; its default one otherwise",
        "out": "the file to write, or an existing folder; the cache's models folder otherwise",
        "repo": "OWNER/NAME on the hub, in place of the matrix's",
        "file": "path of the file in the repository",
        "revision": "a commit, branch or tag of the repository",
        "sha256": "what the file must hash to",
    }
)
@guarded
def fetch(
    c: Context,
    model: str = "",
    out: str = "",
    repo: str = "",
    file: str = "",
    revision: str = "",
    sha256: str = "",
) -> None:
    """Bring a model from the Hugging Face Hub, go on where it stopped, check its hash; print its path."""
    shop = _workshop()
    wanted = choose_model(
        shop.matrix,
        model=model or None,
        repository=repo or None,
        file=file or None,
        revision=revision or None,
        sha256=sha256 or None,
    )
    target = Path(out).expanduser().absolute() if out else shop.cache / "models" / wanted.name
    fetched = fetch_model(HuggingFaceHub(), shop.reporter, wanted, target)
    shop.reporter.line(f"{fetched.path}: {fetched.size_bytes} bytes, sha256 {fetched.sha256}")
    if not fetched.pinned:
        shop.reporter.warn(
            f"{wanted.file} of {wanted.repository} is unpinned; to pin what came now: "
            f"--revision {fetched.commit} --sha256 {fetched.sha256}"
        )
    print(fetched.path)


@task(help=DOCTOR_HELP)
@guarded
def doctor(c: Context, offline: bool = False, json: bool = False) -> None:
    """What this machine lacks for the images, and what mends it; the image for it, and how to run that."""
    diagnose_machine(json=json, offline=offline)


@task(iterable=["gpu", "memory"], name="fit", help=FIT_HELP)
@guarded
def fit_task(
    c: Context,
    gpu: list[str],
    memory: list[str],
    model: str = "",
    tokens: str = "",
    prompt: str = "",
    tensor_split: str = "",
    json: bool = False,
) -> None:
    """How a model runs best on the cards of this machine, or on described ones, and what it takes of each."""
    fit_model(
        FitWords(
            model=model,
            gpu=gpu,
            memory=memory,
            tokens=tokens,
            prompt=prompt,
            tensor_split=tensor_split,
            json=json,
        )
    )


@task(help=REPORT_HELP)
@guarded
def report(c: Context, model: str = "", out: str = "", offline: bool = False) -> None:
    """One file to attach to an issue: doctor, fit and versions, without names of people and machines."""
    report_machine(model=model, out=out, offline=offline)


@task(name="run", iterable=["gpu"], help=RUN_HELP)
@guarded
def run_task(
    c: Context,
    gpu: list[str],
    model: str = "",
    prompt: str = "",
    arch: str = "",
    image: str = "",
    engine: str = "",
    tokens: str = "",
    tensor_split: str = "",
    options: str = "",
    visual: bool = True,
    dry_run: bool = False,
) -> None:
    """Run a model in the right image with the right options: a chat, or one answer with --prompt."""
    run_model(
        RunWords(
            model=model,
            prompt=prompt,
            arch=arch,
            image=image,
            engine=engine,
            gpu=gpu,
            tokens=tokens,
            tensor_split=tensor_split,
            options=options,
            visual=visual,
            dry_run=dry_run,
        )
    )


@task(
    iterable=["gpus", "workload"],
    help={
        "arch": "as for build: whose images are measured; not with --engine host",
        "base": _SELECT_HELP["base"],
        "engine": "docker, podman, or host for bare programs: --binary and --stock-binary",
        "binary": "llama-diffusion-cli with the series, for --engine host",
        "stock_binary": "the same without the series",
        "gpus": "how many; repeatable; 1 and 2 by default where they are there, 0 for a CPU",
        "workload": "short or long; repeatable; both by default",
        "rounds": "how often each is run",
        "model": "a GGUF file; the tiny synthetic one by default on a CPU",
        "out": "folder for the results; a new one in the cache by default",
        "steps": "most denoising steps of a block",
        "seed": "of every run",
        "note": "a sentence for the page, such as what is special about the machine",
        "from_json": "draw the page and the picture again from this bench.json; nothing is run",
    },
)
@guarded
def bench(
    c: Context,
    gpus: list[str],
    workload: list[str],
    arch: str = "",
    base: str = "",
    engine: str = "",
    binary: str = "",
    stock_binary: str = "",
    rounds: str = "3",
    model: str = "",
    out: str = "",
    steps: str = "12",
    seed: str = "1",
    note: str = "",
    from_json: str = "",
) -> None:
    """Time stock against patched, in turns: a table, a JSON document, a page and a picture."""
    round_count = _number(rounds, "--rounds") or 3
    step_count = _number(steps, "--steps") or 12
    seed_number = _number(seed, "--seed") or 1
    shop = _workshop()
    if from_json:
        result = read_document(Path(from_json))
        folder = Path(out or Path(from_json).parent).expanduser().absolute()
    else:
        now = datetime.now(UTC)
        folder = Path(out or shop.cache / "bench" / f"{now:%Y%m%dT%H%M%SZ}").expanduser().absolute()
        gpu_library = NvidiaGpus()
        present = gpu_library.gpus()
        chosen = None if engine == HOST else _engine(shop, engine or None)
        targets: Sequence[Target] = ()
        if chosen is not None:
            words = [arch] if arch else []
            _check_words(shop, words, FLAVORS, base or None)
            targets = both_flavors(_plan_for(shop, words, FLAVORS, base or None, chosen.info().platform))
        request = BenchRequest(
            places=places_of(gpus, present=len(present), targets=targets),
            workloads=workloads_of(workload),
            rounds=round_count,
            seed=seed_number,
            max_steps=step_count,
            note=note,
            taken_at=f"{now:%Y-%m-%dT%H:%M:%SZ}",
            hardware=Hardware(
                gpus=tuple(described(gpu) for gpu in present),
                driver=gpu_library.driver_version(),
                processor=processor(),
                engine=HOST if chosen is None else f"{chosen.info().name} {chosen.info().version}",
            ),
            folder=folder,
        )
        file = Path(model).expanduser().absolute() if model else _bench_model(shop, request.places)
        beds = (
            host_beds(
                shop.reporter,
                stock=stock_binary,
                patched=binary,
                program=lambda path: BareProgram(shop.programs, path),
            )
            if chosen is None
            else image_beds(shop, chosen, targets, functools.partial(ImageProgram, chosen))
        )
        result = measure(beds, file, request, shop.reporter)
    artist = MatplotlibArtist(shop.cache / "matplotlib")
    files = write_results(result, folder, artist=artist, template=page_template(shop.root))
    shop.reporter.line(f"{files.document}, {files.picture.name}, {files.page.name}")
    print(tables.bench_table(result))


def _bench_model(shop: Workshop, places: Sequence[int]) -> Path:
    if any(places):
        raise UsageError(
            "no --model given",
            hint="invoke model.fetch brings the real one; invoke model.synthetic --size full makes one",
        )
    return _tiny_model(shop)


def _tiny_model(shop: Workshop) -> Path:
    folder = shop.cache / "models"
    folder.mkdir(parents=True, exist_ok=True)
    return write_model("tiny", folder / "tiny.gguf", on_progress=None).path


@task(help={**_ENGINE_HELP, "repo": f"a clone that holds the pinned commit; {REPO_VARIABLE} gives the same"})
@guarded
def demo(c: Context, repo: str = "", engine: str = "") -> None:
    """The whole chain on this machine without a GPU: build, run, judge, push to a registry."""
    shop = _workshop()
    chosen = _engine(shop, engine or None)
    log = DemoLog()
    try:
        result = run_demo(
            shop,
            chosen,
            log,
            repo=_repo(repo),
            model=lambda: _tiny_model(shop),
            registry=LocalRegistry(SystemPrograms(), shop.cache / "registry"),
            reader=RegistryClient,
        )
    finally:
        print(tables.demo_table(log))
    print(tables.demo_result(result))


@task(iterable=["arch", "flavor"], help={**_SELECT_HELP, **_ENGINE_HELP})
@guarded
def scan(c: Context, arch: list[str], flavor: list[str], base: str = "", engine: str = "") -> None:
    """Search built images for secrets, layer by layer; let installed scanners read what they hold."""
    shop = _workshop()
    _check_words(shop, arch, flavor, base or None)
    chosen = _engine(shop, engine or None)
    made = _plan_for(shop, arch, flavor, base or None, chosen.info().platform)
    store = CachedImages(shop.cache / "oci")
    results = [run_scan(shop, chosen, store, target) for target in made.targets]
    for result in results:
        shop.reporter.line(tables.scan_table(result))
    if failed := [result.target.id for result in results if not result.passed]:
        raise CheckFailed(
            f"the scan found something: {', '.join(failed)}", hint="the lines marked FAIL say what"
        )


def _registry(shop: Workshop, host: str, *, writes: bool = False) -> RegistryClient:
    authorities = authorities_for(host, shop.environment, Path.home())
    return connect(host, authorities=authorities, writes=writes, on_wait=shop.reporter.warn)


_REGISTRY_HELP = {"registry": "HOST/NAMESPACE, as in ghcr.io/me/llama-diffusion; logins are docker login's"}


@task(
    iterable=["arch", "flavor", "evidence", "mount_from"],
    help={
        **_SELECT_HELP,
        **_ENGINE_HELP,
        **_REGISTRY_HELP,
        "key": f"file with the private key that signs; {KEY_VARIABLE} names one too, or holds it",
        "evidence": "file that invoke test wrote; repeatable, those in the cache by default",
        "allow_untested": "publish what has no evidence too, and mark it as untested",
        "mount_from": "another repository of the registry that may have the layers; repeatable",
        "dry_run": "show every tag, digest and size, and send nothing",
        "move": "move the moving tags (on by default); without, only those that never move are set",
        "move_only": "move them to what is published already, once every platform of a version is there",
    },
)
@guarded
def publish(
    c: Context,
    arch: list[str],
    flavor: list[str],
    evidence: list[str],
    mount_from: list[str],
    registry: str = "",
    base: str = "",
    engine: str = "",
    key: str = "",
    allow_untested: bool = False,
    dry_run: bool = False,
    move: bool = True,
    move_only: bool = False,
) -> None:
    """Push tested images, say and sign what they are, and move the tags once all of it is there."""
    shop = _workshop()
    if not registry:
        raise UsageError("no --registry given", hint=f"name one: {_REGISTRY_HELP['registry']}")
    repository = parse_repository(registry)
    _check_words(shop, arch, flavor, base or None)
    if move_only:
        if not move:
            raise UsageError("--move-only has no use with --no-move", hint="leave one of them out")
        targets = select(shop.matrix, arch, flavors=flavor, base=base or None, native=_native).targets
        client = _registry(shop, repository.host, writes=not dry_run)
        with termination_as_interrupt():  # a cancelled job must not leave tags half moved
            moved = move_tags(shop, targets, repository, client, dry_run=dry_run)
        shop.reporter.line(tables.moved_table(repository, moved, dry_run=dry_run))
        return
    signer = None if dry_run else load_signer(Path(key) if key else None, shop.environment)
    given = read_evidence(shop, [Path(file) for file in evidence])
    chosen = _engine(shop, engine or None)
    # The engine may hold images of another platform, from a builder beside it.
    own = chosen.info().platform
    platform = choose_platform(shop.matrix, arch, (own, *(one for one in MACHINES if one != own)))
    cells = prepare(
        shop,
        chosen,
        _plan_for(shop, arch, flavor, base or None, platform),
        CachedImages(shop.cache / "oci"),
        evidence=given,
        allow_untested=allow_untested,
    )
    with termination_as_interrupt():
        results = run_publish(
            shop,
            cells,
            repository,
            _registry(shop, repository.host, writes=not dry_run),
            signer,
            mount_from=mount_from,
            dry_run=dry_run,
            move=move,
        )
    shop.reporter.line(tables.published_table(repository, results, dry_run=dry_run))


@task(
    positional=["ref"],
    help={
        "ref": "HOST/NAMESPACE:TAG or HOST/NAMESPACE@DIGEST",
        "key": f"file with the publisher's public key; {KEY_VARIABLE} names one too",
    },
)
@guarded
def verify(c: Context, ref: str, key: str = "") -> None:
    """Check an image's signatures, and its provenance against the matrix; say what it is in ten lines."""
    shop = _workshop()
    reference = parse_reference(ref)
    verifier = load_verifier(Path(key) if key else None, shop.environment)
    result = run_verify(shop, reference, _registry(shop, reference.repository.host), verifier)
    print(printable(tables.verification_table(result)))
    if result.problems:
        for problem in result.problems:
            shop.reporter.warn(problem)
        raise CheckFailed(
            f"{reference} is not what it should be: {result.problems[0]}",
            hint="is it the publisher's key, and the checkout that it was published from?",
        )
    shop.reporter.line(f"signed by {verifier.name}, and as this matrix says")


@task(
    help={
        **_REGISTRY_HELP,
        "keep": "how many versions stay, the newest; 3 by default",
        "apply": "remove them; without it, only say what would go",
    }
)
@guarded
def prune(c: Context, registry: str = "", keep: str = "3", apply: bool = False) -> None:
    """Remove old versions from a registry; never what a moving tag or an index needs."""
    shop = _workshop()
    number = _number(keep, "--keep")
    if number is None:
        raise UsageError("--keep: no number given", hint="how many versions stay, 3 by default")
    if not registry:
        raise UsageError("no --registry given", hint=f"name one: {_REGISTRY_HELP['registry']}")
    repository = parse_repository(registry)
    client = _registry(shop, repository.host)
    with shop.reporter.activity(f"look through {repository}"):
        pruning = plan_pruning(client, repository, number)
    if apply:
        with termination_as_interrupt():
            run_prune(client, repository, pruning, shop.reporter)
    shop.reporter.line(tables.pruning_table(repository, pruning, applied=apply))


@task(help={"fix": "let ruff mend what it can"})
@guarded
def check(c: Context, fix: bool = False) -> None:
    """Lint, types, the import contracts, drift, and every test that this machine can run."""
    shop = _workshop()
    failed = run_checks(shop, Path(sys.executable).parent, fix=fix)
    if failed:
        raise CheckFailed(f"failed: {', '.join(failed)}")


def _namespace() -> Collection:
    top = Collection(
        *(matrix_task, plan, render, source, base, build, smoke_task, run_tests, bench, layers),
        *(scan, publish, verify, demo, check),
    )
    for users in (doctor, fit_task, run_task, report):
        top.add_task(users)
    top.add_collection(Collection("registry", prune))
    top.add_collection(
        Collection("patches", patches_list, patches_check, patches_status, patches_rebase, patches_export)
    )
    top.add_collection(Collection("model", synthetic, fetch))
    top.add_collection(Collection("pins", pins_update))
    return top


ns = _namespace()
