"""Which model file of the hub is meant: the matrix's pin, and what the command line says instead. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from llama_images.errors import UsageError
from llama_images.located_yaml import did_you_mean, listed, shown
from llama_images.matrix import Matrix
from llama_images.matrix_fields import HEX64, HUB_FILE, HUB_REPOSITORY, REF

BRANCH: Final = "main"
"""The revision that is fetched where none is named: the hub's default branch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WantedModel:
    """A file of the hub."""

    repository: str
    """OWNER/NAME."""
    file: str
    """Its path in the repository."""
    revision: str
    """A commit, a branch or a tag."""
    sha256: str | None
    """What the file must hash to; None where nobody has said."""

    @property
    def name(self) -> str:
        """The file's own name, without its folders."""
        return self.file.rpartition("/")[2]


def choose_model(
    matrix: Matrix,
    *,
    model: str | None = None,
    repository: str | None = None,
    file: str | None = None,
    revision: str | None = None,
    sha256: str | None = None,
) -> WantedModel:
    """The matrix's model of that name, or its default, with what else is given in place of its values.

    Another repository, file or revision is another file: the pinned hash then no longer counts, and outside
    of the pinned repository neither does the pinned revision. Raises UsageError for a name that the matrix
    lacks, for a value of the wrong form, and where nothing says which repository or file.
    """
    name = model or matrix.defaults.model
    if name is not None and name not in matrix.models:
        raise UsageError(
            f"--model {shown(name)}: there is no such model in the matrix{did_you_mean(name, matrix.models)}",
            hint=f"it has {listed(matrix.models, 'and')}" if matrix.models else "it has none",
        )
    pin = matrix.models[name] if name is not None else None
    for option, value, pattern, right in (
        ("--repo", repository, HUB_REPOSITORY, "OWNER/NAME"),
        ("--file", file, HUB_FILE, "the path of a .gguf file in the repository"),
        ("--revision", revision, rf"{REF}|refs/pr/[0-9]+", "a commit of 40 digits, a branch or a tag"),
        ("--sha256", sha256, HEX64, "64 lower-case hex digits"),
    ):
        if value is not None and not re.fullmatch(pattern, value):
            raise UsageError(f"{option} {shown(value)}: it is {right}")
    wanted_repository = repository or (pin.repository if pin else None)
    wanted_file = file or (pin.file if pin else None)
    if wanted_repository is None or wanted_file is None:
        raise UsageError(
            "the matrix names no model to fetch", hint="name one: --repo OWNER/NAME --file X.gguf"
        )
    same_repository = pin is not None and wanted_repository == pin.repository
    wanted_revision = revision or (pin.revision if pin is not None and same_repository else None)
    same_file = (
        pin is not None and same_repository and wanted_file == pin.file and wanted_revision == pin.revision
    )
    return WantedModel(
        repository=wanted_repository,
        file=wanted_file,
        revision=wanted_revision or BRANCH,
        sha256=sha256 or (pin.sha256 if pin is not None and same_file else None),
    )
