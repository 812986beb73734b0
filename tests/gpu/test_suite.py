"""``invoke test`` on the GPUs of this machine, case by case, on images that are built already.

The cases, their judging and the negative control are tested without a GPU in ``tests/unit``; here they are
run. A 15 GB model is not written for it: ``invoke test`` does that, and this uses the one in the cache.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

import tasks
from llama_images.adapters.engines import choose_engine
from llama_images.adapters.gpu_memory import CudaMemory
from llama_images.adapters.gpus import NvidiaGpus
from llama_images.adapters.programs import ImageProgram
from llama_images.cases import gpu_cases
from llama_images.errors import CheckFailed, UsageError
from llama_images.evidence import BAD, CaseRecord
from llama_images.matrix import FLAVORS, Flavor
from llama_images.plan import choose
from llama_images.selection import make_target
from llama_images.workflows.model_files import hashed_model
from llama_images.workflows.records import write_evidence
from llama_images.workflows.subjects import image_subject
from llama_images.workflows.suite import MEANT, Rig, SuiteOptions, find_gpus, run_suite

pytestmark = [pytest.mark.gpu, pytest.mark.engine, pytest.mark.slow]

CASES = [(flavor, case.name) for flavor in FLAVORS for case in gpu_cases(MEANT, flavor)]


@functools.cache
def results(flavor: Flavor) -> Mapping[str, CaseRecord] | str:
    """What became of every case of the native image in this flavor, or why it can't be run."""
    shop = tasks._workshop()
    engine = choose_engine(None, shop.programs, shop.reporter)
    info = engine.info()
    gpus = NvidiaGpus()
    try:
        (target, *_) = choose(
            shop.matrix,
            ["native"],
            flavors=[flavor],
            platform=info.platform,
            native=gpus.compute_capabilities,
        ).targets
        stock = make_target(shop.matrix, target.architecture.name, flavor="stock")
        subject = image_subject(engine, target, stock, functools.partial(ImageProgram, engine))
    except (CheckFailed, UsageError) as error:
        return f"{error.message} ({error.hint})"
    model = shop.cache / "models" / "full.gguf"
    if not model.is_file():
        return f"there is no {model.name} in the cache (invoke test makes it)"
    found, driver = find_gpus(gpus, os.environ.get("CUDA_VISIBLE_DEVICES"))
    rig = Rig(
        engine=f"{info.name} {info.version}",
        platform=info.platform,
        gpus=found,
        driver=driver,
        memory=CudaMemory(),
        model=hashed_model(model, model.with_name("hashes.json"), shop.reporter),
    )
    folder, written = shop.cache / "evidence", list[Path]()
    evidence = run_suite(
        shop,
        subject,
        rig,
        SuiteOptions(),
        save=lambda record: written.append(write_evidence(folder, record)),
    )
    return {case.name: case for case in evidence.cases}


@pytest.mark.parametrize(("flavor", "name"), CASES)
def test_case(flavor: Flavor, name: str) -> None:
    found = results(flavor)
    if isinstance(found, str):
        pytest.skip(found)
    case = found[name]
    if case.status == "skipped":
        pytest.skip(case.reason or "")
    wrong = [f"{rule.name}: {rule.detail}" for rule in case.verdicts if not rule.passed]
    assert case.status not in BAD, "; ".join(wrong) or case.reason
