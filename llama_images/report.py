"""A page to attach to an issue, without what tells whose machine it is about. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from llama_images.matrix import Matrix
from llama_images.ports import ImageInfo
from llama_images.redaction import Self, redacted
from llama_images.render import LABEL_PREFIX
from llama_images.screens import Screen
from llama_images.workflows.doctor import HUB

_LABELS: Final = ("target", "flavor", "series", "series-digest", "toolkit")


def image_rows(reference: str, image: ImageInfo | None) -> Mapping[str, str]:
    """What an image says of itself; that it is missing, where it is."""
    if image is None:
        return {"image": f"{reference} is not on this engine"}
    said = {label: image.labels.get(f"{LABEL_PREFIX}.{label}", "") for label in _LABELS}
    said["version"] = image.labels.get("org.opencontainers.image.version", "")
    return {
        "image": f"{reference}, {image.id}",
        **{f"image's {name}": value for name, value in said.items() if value},
    }


def report_text(
    rows: Mapping[str, str], sections: Mapping[str, Screen | str], of: Self, matrix: Matrix
) -> str:
    """A page in Markdown: a table of versions, then what the commands show, each under its name."""
    urls = [HUB, "https://docs.nvidia.com", *(source.repository for source in matrix.sources.values())]
    lines = ["# Report", "", "| what | which |", "|---|---|"]
    lines += [f"| {name} | {value.replace('|', '/')} |" for name, value in rows.items()]
    for name, shown in sections.items():
        lines += ["", f"## {name}", "", "```", *_plain(shown), "```"]
    return redacted("\n".join(lines) + "\n", of, public=[url.split("/")[2] for url in urls])


def _plain(shown: Screen | str) -> Iterable[str]:
    if isinstance(shown, str):
        return shown.splitlines()
    return ("".join(span.text for span in line).rstrip() for line in shown)
