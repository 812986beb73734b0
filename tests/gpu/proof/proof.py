"""The command line of the proofs: runs the binaries that ``proof.sh`` built, and judges what they print.

Exit code 0 where every verdict passed, 1 where one failed, 2 after a wrong use.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, without the usage."""
        print(f"proof: {message} (--help lists the options)", file=sys.stderr)
        sys.exit(2)


def _parser() -> argparse.ArgumentParser:
    from gpu_proof.campaign import DEFAULT, PARTS

    parser = _Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=Path, required=True, help="folder of the binaries")
    parser.add_argument("--model", type=Path, required=True, help="tiny.gguf and ties.gguf lie beside it")
    parser.add_argument("--out", type=Path, required=True, help="gets summary.json and logs/")
    parser.add_argument("--scratch", type=Path, required=True, help="gets the dumps, gigabytes")
    parser.add_argument("--built", type=Path, help="file that appears once no more binaries come")
    parser.add_argument("--parts", default=",".join(DEFAULT), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--seconds", type=float, default=360, help="time for all parts")
    parser.add_argument(
        "--at-once", type=int, default=5, help="runs that share a GPU, about 20 GB each, where not timed"
    )
    parser.add_argument(
        "--extra", action="store_true", help="run the builds with one patch more, which lie beside the others"
    )
    parser.add_argument("--logical", type=Path, help="logical_gpus.so: two devices of one card")
    for name in ("source", "series", "arch", "command"):
        parser.add_argument(
            f"--{name}", default="unknown", help="for the summary, which says what was proved"
        )
    parser.add_argument("--long-digits", type=int, default=1780, help="tokens of the long prompt")
    return parser


def _run(argv: Sequence[str]) -> int:
    from gpu_proof.campaign import PARTS, run_parts
    from gpu_proof.cards import CardError, chosen
    from gpu_proof.report import Report
    from gpu_proof.runs import Bench, Deadline, long_prompt

    parser = _parser()
    options = parser.parse_args(argv)
    parts = [name.strip() for name in options.parts.split(",")]
    for name in parts:
        if name not in PARTS:
            parser.error(f"there is no part '{name}'; parts: {', '.join(PARTS)}")
    if options.at_once < 1 or options.long_digits < 1:
        parser.error("--at-once and --long-digits take a number from 1")
    if not options.bin.is_dir():
        parser.error(f"--bin: {options.bin} is no folder")
    for name, path in (("--model", options.model), ("--logical", options.logical)):
        if path is not None and not path.is_file():
            parser.error(f"{name}: {path} is no file")
    beside = {"ties": "ties.gguf"} if options.logical else {"ties": "ties.gguf", "speed": "tiny.gguf"}
    for part, model in beside.items():
        if part in parts and not options.model.with_name(model).is_file():
            parser.error(f"the part '{part}' needs {model} beside {options.model}")
    try:
        cards = chosen(os.environ.get("CUDA_VISIBLE_DEVICES"), 1 if options.logical else 2)
    except CardError as error:
        print(f"proof: {error}", file=sys.stderr)
        return error.exit_code
    logs = options.out / "logs"
    try:
        for folder in (logs, options.scratch):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"no folder {error.filename}: {(error.strerror or str(error)).lower()}")
    bench = Bench(
        binaries=options.bin,
        built=options.built or options.bin,
        model=options.model,
        long_prompt=long_prompt(options.long_digits),
        logs=logs,
        scratch=options.scratch,
        logical=options.logical,
        extra=options.extra,
        cards=cards,
        at_once=options.at_once,
        deadline=Deadline(end=time.monotonic() + options.seconds),
    )
    report = Report(options.out / "summary.json")
    proved = {
        "series": options.series,
        "source": options.source,
        "arch": options.arch,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": options.command,
        "parts": parts,
        "logical": options.logical is not None,
    }
    report.keep("proved", {key: None if value == "unknown" else value for key, value in proved.items()})
    return 0 if run_parts(parts, bench, report) else 1


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the runs are ended too
    try:
        return _run(argv)
    except ModuleNotFoundError as error:
        print(
            f"proof: python3 finds no {error.name}: set PYTHONPATH to a folder that holds it", file=sys.stderr
        )
        return 2
    except KeyboardInterrupt:
        print("proof: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
