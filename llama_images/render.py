"""From the matrix and the templates to every file that follows from them. Pure: text in, text out."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2

from llama_images import evidence
from llama_images.errors import UsageError
from llama_images.matrix import Base, Matrix, Source, Toolkit, json_schema
from llama_images.patch_series import PatchSeries
from llama_images.platforms import MACHINES
from llama_images.selection import Target, all_targets, local_reference, valid_words

LABEL_PREFIX = "io.github.llama-images"
"""Reverse-DNS name space of this project's own image labels; the rest are OCI's."""

INPUTS_LABEL = f"{LABEL_PREFIX}.inputs"
"""Label with the digest of everything that went into an image; how a finished target is recognised."""

TABLE_BEGIN = "<!-- images:begin -->"
TABLE_END = "<!-- images:end -->"

# llama.cpp; glibc; libstdc++, libgcc and libgomp. Then CUDA's libraries.
_LICENCES = ("MIT", "LGPL-2.1-or-later", "(GPL-3.0-or-later WITH GCC-exception-3.1)")
_CUDA_LICENCES = (*_LICENCES, "LicenseRef-NVIDIA-CUDA-EULA")

# Characters that end or escape a word, a quoted string, a variable or a line of a Dockerfile or its shell.
_UNSAFE = re.compile(r"[\x00-\x1f\x7f\"'`$\\<>|&!*?\u0085\u2028\u2029]")


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """Everything that rendering reads."""

    matrix: Matrix
    series: Mapping[str, PatchSeries]
    """By the name that a source gives its series."""
    templates: Mapping[str, str]
    """Text of each template by file name."""
    readme: str
    """README.md as it is; the table between its markers is replaced."""


def safe(value: object, what: str = "a value") -> str:
    """Return ``value`` as text, or refuse it where it could break out of a Dockerfile line.

    Raises UsageError. Everything that a template prints passes through here (see ``_environment``).
    """
    text = str(value)
    found = _UNSAFE.search(text)
    if found is not None:
        raise UsageError(
            f"{what} holds {found.group()!r}: {text[:60]!r} would break out of its line in a Dockerfile",
            hint="use letters, digits, spaces and . , : ; / @ + = _ ( ) - # ~ % only",
        )
    return text


class _Trusted(str):
    """Text made by this module, line breaks and quotes included, of parts that passed ``safe``."""

    __slots__ = ()


def _finalize(value: object) -> object:
    return value if isinstance(value, _Trusted) else safe(value)


def _environment(templates: Mapping[str, str]) -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.DictLoader(dict(templates)),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_finalize,
        autoescape=False,  # the output is no HTML; ``safe`` guards what a Dockerfile cares about
    )


def base_reference(base: Base) -> str:
    """Local name of the base image that a bootstrap base is built into.

    The host makes it a name that no engine looks for in a public registry, where anybody could have taken it.
    """
    return f"localhost/llama-images/base:{base.suite}"


def rootfs_name(platform: str) -> str:
    """The archive that the base's Dockerfile unpacks on that platform."""
    return f"rootfs.{platform.removeprefix('linux/')}.tar"


def bootstrap_argv(base: Base, platform: str, folder: str) -> tuple[str, ...]:
    """The command that makes the base's root file system, a tar archive in ``folder``.

    A platform other than the machine's own needs qemu-user's binfmt handlers.
    """
    return (
        "mmdebstrap",
        f"--architectures={platform.removeprefix('linux/')}",
        "--variant=minbase",
        f"--include={','.join(base.packages)}",
        "--dpkgopt=force-unsafe-io",
        "--dpkgopt=path-exclude=/usr/share/man/*",
        "--dpkgopt=path-exclude=/usr/share/locale/*",
        "--dpkgopt=path-exclude=/usr/share/doc/*",
        "--dpkgopt=path-include=/usr/share/doc/*/copyright",
        str(base.suite),
        f"{folder}/{rootfs_name(platform)}",
    )


def source_folder(source: Source, flavor: str) -> str:
    """Where a build finds the source, relative to the build context."""
    return f"src/{source.name}-{flavor}"


def context_commands(target: Target, series: PatchSeries | None) -> tuple[str, ...]:
    """The three git commands that prepare the build context, for a shell in the root of this repository."""
    source = target.source
    folder = f"images/{source_folder(source, target.flavor)}"
    # By the file `series`: ten names in one line are no help to a reader.
    patches = f"{'../' * (folder.count('/') + 1)}patches/{source.series}"
    last = (
        f"sed -e 's/#.*//' -e '/^ *$/d' -e 's,^,{patches}/,' patches/{source.series}/series"
        f" | xargs git -C {folder} apply --index"
        if series is not None and series.patches
        else f"git -C {folder} rev-parse HEAD^{{tree}}      (prints {source.tree})"
    )
    return (
        f"git init --quiet {folder}",
        f"git -C {folder} pull --quiet --depth 1 {source.repository} {source.commit}",
        last,
    )


def build_commit(target: Target, series: PatchSeries | None) -> str:
    """What the program's ``--version`` calls its commit: the pin, and the series where there is one."""
    short = target.source.commit[:9]
    return f"{short}-{series.short}" if series is not None else short


def series_of(target: Target, series: Mapping[str, PatchSeries]) -> PatchSeries | None:
    """The series that a target's source is built with; None for the stock flavor."""
    return series[target.source.series] if target.flavor == "patched" else None


def labels(target: Target, series: PatchSeries | None) -> dict[str, str]:
    """Every label of the target's image, OCI's and this project's, in the order in which they are written."""
    source, architecture, toolkit = target.source, target.architecture, target.toolkit
    serves = ", ".join(architecture.serves)
    result = {
        "org.opencontainers.image.title": f"llama-diffusion-cli {target.id}",
        "org.opencontainers.image.description": (
            f"DiffusionGemma in llama.cpp ({source.ref}), {target.flavor}, for {serves}"
        ),
        "org.opencontainers.image.source": source.repository,
        "org.opencontainers.image.revision": source.commit,
        "org.opencontainers.image.version": build_commit(target, series),
        "org.opencontainers.image.created": source.date.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "org.opencontainers.image.licenses": " AND ".join(_LICENCES if toolkit is None else _CUDA_LICENCES),
        f"{LABEL_PREFIX}.target": target.id,
        f"{LABEL_PREFIX}.flavor": target.flavor,
        f"{LABEL_PREFIX}.base": target.base.name,
        f"{LABEL_PREFIX}.source-ref": source.ref,
        f"{LABEL_PREFIX}.source-tree": source.tree,
    }
    if series is not None:
        result[f"{LABEL_PREFIX}.series"] = series.name
        result[f"{LABEL_PREFIX}.series-digest"] = f"sha256:{series.digest}"
    if toolkit is not None:
        result |= {
            f"{LABEL_PREFIX}.architectures": " ".join(f"sm_{name}" for name in architecture.sass),
            f"{LABEL_PREFIX}.ptx": " ".join(f"compute_{name}" for name in architecture.ptx),
            f"{LABEL_PREFIX}.toolkit": toolkit.name,
            f"{LABEL_PREFIX}.minimum-driver": toolkit.minimum_driver,
        }
    return {key: safe(value, f"label {key}") for key, value in result.items() if value}


def _install(packages: Sequence[str]) -> _Trusted:
    """Install packages of the distribution; what apt prints is shown only where it fails."""
    names = " ".join(safe(package, "a package's name") for package in packages)
    return _Trusted(
        "RUN --mount=type=secret,id=ca \\\n"
        "    { if [ -s /run/secrets/ca ]; then set -- -o Acquire::https::CAInfo=/run/secrets/ca; fi; \\\n"
        '      apt-get "$@" update -qq && apt-get "$@" install -y -qq --no-install-recommends \\\n'
        f"        {names}; }} > /tmp/install.log 2>&1 \\\n"
        "    || { tail -n 20 /tmp/install.log; exit 1; }; \\\n"
        "    rm -rf /tmp/install.log /var/lib/apt/lists/*"
    )


def _label_lines(values: Mapping[str, str]) -> list[_Trusted]:
    rows = [f'{key}="{value}"' for key, value in values.items()]
    return [
        _Trusted(("LABEL " if index == 0 else "      ") + row + (" \\" if index + 1 < len(rows) else ""))
        for index, row in enumerate(rows)
    ]


def render_dockerfile(inputs: Inputs, target: Target) -> str:
    """The Dockerfile of one target."""
    matrix, toolkit = inputs.matrix, target.toolkit
    series = series_of(target, inputs.series)
    flags = "" if target.base.name == matrix.defaults.base else f" --base {target.base.name}"
    flags += "" if target.flavor == matrix.defaults.flavor else f" --flavor {target.flavor}"
    return (
        _environment(inputs.templates)
        .get_template("Dockerfile.j2")
        .render(
            title=_title(target),
            target=target,
            install=_install,
            source=target.source,
            base=target.base,
            toolkit=toolkit,
            build_flags=flags,
            base_reference=base_reference(target.base),
            reference=local_reference(target),
            context_commands=[_Trusted(command) for command in context_commands(target, series)],
            source_folder=source_folder(target.source, target.flavor),
            toolkit_requirements=f"common/{toolkit.name}.txt" if toolkit is not None else "",
            build_commit=build_commit(target, series),
            epoch=int(target.source.date.timestamp()),
            label_lines=_label_lines(labels(target, series)),
        )
    )


def _title(target: Target) -> str:
    serves = ", ".join(target.architecture.serves)
    kind = (
        "the pin with its patch series" if target.flavor == "patched" else "the pin without its patch series"
    )
    return f"{target.id}: llama-diffusion-cli for {serves}; {kind}"


def requirements(toolkit: Toolkit) -> str:
    """The toolkit's wheels as pip's requirements, pinned by version and hash."""
    lines = [
        f"# {toolkit.name}, NVIDIA's wheels; made from matrix.yaml by `invoke render`, change that instead."
    ]
    assert toolkit.wheels is not None
    for wheel in (*toolkit.wheels.build, *toolkit.wheels.runtime):
        hashes = "".join(
            f" \\\n    --hash=sha256:{wheel.sha256[platform]}" for platform in sorted(wheel.sha256)
        )
        lines.append(f"{safe(wheel.name)}=={safe(wheel.version)}{hashes}")
    return "\n".join(lines) + "\n"


def dockerignore(matrix: Matrix) -> str:
    """Keeps what the build does not read out of the context of a build by hand."""
    lines = ["# Made from matrix.yaml by `invoke render`; change that, not this file.", "*", "!common"]
    for source in matrix.sources.values():
        lines += [
            f"!{source_folder(source, flavor)}/{path}" for flavor in matrix.flavors for path in source.paths
        ]
    return "\n".join(lines) + "\n"


def bake(matrix: Matrix) -> dict[str, Any]:
    """The whole matrix as a bake file: any buildx builder, local, remote or Kubernetes, can make it."""
    targets: dict[str, Any] = {}
    for base in matrix.bases.values():
        if base.kind == "bootstrap":
            targets[f"base-{base.name}"] = {"context": "images/base", "platforms": ["linux/amd64"]}
    groups: dict[str, list[str]] = {"default": [], "all": []}
    for target in all_targets(matrix):
        entry: dict[str, Any] = {
            "context": "images",
            "dockerfile": f"{target.id}/Dockerfile",
            "platforms": list(target.architecture.platforms),
            "tags": [local_reference(target)],
        }
        if target.base.kind == "bootstrap":
            # The base is made on the spot; a remote builder gets it as a target instead of a local image.
            entry["contexts"] = {base_reference(target.base): f"target:base-{target.base.name}"}
            platforms = targets[f"base-{target.base.name}"]["platforms"]
            platforms += [p for p in target.architecture.platforms if p not in platforms]
        targets[target.id] = entry
        groups["all"].append(target.id)
        if target.base.name == matrix.defaults.base and target.flavor == matrix.defaults.flavor:
            groups["default"].append(target.id)
    return {
        "//": (
            "Made from matrix.yaml by `invoke render`; change that, not this file. "
            "What it needs beside it: docs/other-builders.md."
        ),
        "group": {name: {"targets": members} for name, members in groups.items()},
        "target": targets,
    }


WORKFLOW = ".github/workflows/images.yml"

# By commit, as tags of others can move; the comment is the release that the commit was tagged with.
_ACTIONS = {
    "checkout": "actions/checkout@3d3c42e5aac5ba805825da76410c181273ba90b1 # v7.0.1",
    "upload": "actions/upload-artifact@bbbca2ddaa5d8feaa63e36b76fdaad77386f024f # v7.0.0",
    "download": "actions/download-artifact@3e5f45b2cfb9172054b4087a40e8e0b5a5461e7c # v8.0.1",
    "login": "docker/login-action@4907a6ddec9925e35a0a9e82d7399ccc52663121 # v4.1.0",
    "buildx": "docker/setup-buildx-action@37fe631027851001ddb9b187196cc803df7f5f0e # v4.3.0",
}


def workflow(inputs: Inputs) -> str:
    """A workflow for GitHub Actions that builds, tests and publishes what the matrix has."""
    matrix = inputs.matrix
    platforms = [
        platform
        for platform in MACHINES
        if any(platform in row.platforms for row in matrix.architectures.values())
    ]
    return (
        _environment(inputs.templates)
        .get_template("images.yml.j2")
        .render(
            matrix=matrix,
            words=[word for word in valid_words(matrix) if word != "native" and _makeable(matrix, word)],
            platforms=platforms,
            actions=_ACTIONS,
        )
    )


def _makeable(matrix: Matrix, word: str) -> bool:
    """Whether the default base makes something of what ``--arch`` calls ``word``."""
    rows = [row for row in matrix.architectures.values() if word in (row.name, row.family) or word == "all"]
    return any(matrix.defaults.base in matrix.bases_for(row) for row in rows)


def image_table(matrix: Matrix) -> str:
    """The README's table: one row an architecture."""
    rows = [
        "| `--arch` | GPUs | image | platforms | CUDA | driver at least |",
        "|---|---|---|---|---|---|",
    ]
    for architecture in matrix.architectures.values():
        toolkit = matrix.toolkits[architecture.toolkit] if architecture.toolkit else None
        bases = matrix.bases_for(architecture)
        suffix = "" if matrix.defaults.base in bases else f"-{bases[0]}"
        rows.append(
            f"| `{architecture.name}` | {', '.join(architecture.serves)} | `{architecture.label}{suffix}` "
            f"| {', '.join(p.removeprefix('linux/') for p in architecture.platforms)} "
            f"| {toolkit.version if toolkit else '–'} | {toolkit.minimum_driver if toolkit else '–'} |"
        )
    return "\n".join(rows)


def _readme(text: str, matrix: Matrix) -> str:
    before, begin, rest = text.partition(TABLE_BEGIN)
    _, end, after = rest.partition(TABLE_END)
    if not begin or not end:
        raise UsageError(
            f"README.md: the markers of the image table are gone; it needs {TABLE_BEGIN} and {TABLE_END}",
            hint="put both markers back, each on a line of its own",
        )
    return f"{before}{begin}\n{image_table(matrix)}\n{end}{after}"


def render_all(inputs: Inputs) -> dict[str, str]:
    """Every rendered file, by its path relative to the repository, in a stable order."""
    matrix = inputs.matrix
    files = {
        f"images/{target.id}/Dockerfile": render_dockerfile(inputs, target) for target in all_targets(matrix)
    }
    for base in matrix.bases.values():
        if base.kind == "bootstrap":
            files["images/base/Dockerfile"] = (
                _environment(inputs.templates)
                .get_template("base.Dockerfile.j2")
                .render(
                    base_reference=base_reference(base),
                    bootstrap_command=_Trusted(_shell(bootstrap_argv(base, "linux/amd64", "images/base"))),
                )
            )
    for toolkit in matrix.toolkits.values():
        if toolkit.wheels is not None:
            files[f"images/common/{toolkit.name}.txt"] = requirements(toolkit)
    for platform, variants in matrix.cpu_variants.items():
        files[f"images/common/cpu-variants.{MACHINES[platform]}"] = "\n".join(
            [
                "# CPU backends, from matrix.yaml by `invoke render`.",
                *(safe(variant) for variant in variants),
                "",
            ]
        )
    files["images/.dockerignore"] = dockerignore(matrix)
    files["docker-bake.json"] = json.dumps(bake(matrix), indent=2) + "\n"
    files[WORKFLOW] = workflow(inputs)
    files["matrix.schema.json"] = json_schema()
    files["evidence.schema.json"] = evidence.json_schema()
    files["README.md"] = _readme(inputs.readme, matrix)
    return files


def _shell(argv: Sequence[str]) -> str:
    return " ".join(f"'{word}'" if "*" in word else word for word in argv)


def is_rendered_path(path: str) -> bool:
    """Whether a file of the repository is one that rendering owns and may remove when its target is gone."""
    machines = "|".join(MACHINES.values())
    pattern = rf"images/[^/]+/Dockerfile|images/common/(cuda-[^/]+\.txt|cpu-variants\.({machines}))"
    return re.fullmatch(pattern, path) is not None


def drift(rendered: Mapping[str, str], present: Mapping[str, str]) -> str:
    """A unified diff from the files that are there to those that should be; empty where nothing differs."""
    parts: list[str] = []
    for path in sorted({*rendered, *(path for path in present if is_rendered_path(path))}):
        parts += difflib.unified_diff(
            _lines(present.get(path)),
            _lines(rendered.get(path)),
            f"a/{path}" if path in present else "/dev/null",
            f"b/{path}" if path in rendered else "/dev/null",
        )
    return "".join(parts)


def _lines(text: str | None) -> list[str]:
    lines = (text or "").splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n\\ No newline at end of file\n"
    return lines


def drifted_paths(rendered: Mapping[str, str], present: Mapping[str, str]) -> Iterable[str]:
    """Paths whose text differs, is missing, or should not be there."""
    for path in sorted({*rendered, *(path for path in present if is_rendered_path(path))}):
        if rendered.get(path) != present.get(path):
            yield path
