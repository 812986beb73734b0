"""What a machine lacks for running the images, each with the command that mends it. Pure.

``workflows.doctor`` gathers a ``Machine``; ``diagnose`` judges it, chooses the image and writes the command.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, TypeAlias

from llama_images.capabilities import driver_is_enough, runs_on
from llama_images.matrix import Matrix
from llama_images.ports import GpuPair, GpuState, GpuSurvey
from llama_images.selection import Target, all_targets, build_command, local_reference, number_of
from llama_images.words import counted

State: TypeAlias = Literal["good", "note", "warn", "bad"]

MODEL_BYTES: Final = 17 * 10**9
"""Room that the real Q4_K_M model takes."""
IMAGE_BYTES: Final = 4 * 10**9
"""Room for pulling an image, and for the next one beside it."""

CA_VARIABLES: Final = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
PROXY_VARIABLES: Final = ("https_proxy", "http_proxy", "all_proxy", "no_proxy")

_TOOLKIT_PAGE: Final = (
    "https://docs.nvidia.com/datacenter/cloud-native/container-toolkit/latest/install-guide.html"
)
_INSTALL_TOOLKIT: Final = (
    f"# add NVIDIA's package source: {_TOOLKIT_PAGE}",
    "sudo apt-get install -y nvidia-container-toolkit",
)
_SET_UP_DOCKER: Final = (
    "sudo nvidia-ctk runtime configure --runtime=docker",
    "sudo systemctl restart docker",
)
_SET_UP_CDI: Final = ("sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml",)
_INSTALL_DRIVER: Final = (
    "sudo ubuntu-drivers install           # Ubuntu",
    "sudo apt-get install nvidia-driver    # Debian, from non-free",
    "sudo reboot",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that was looked at."""

    topic: str
    state: State
    text: str
    mend: tuple[str, ...] = ()
    """Commands, in their order; a line that starts with # is for reading."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineState:
    """A container engine that answers."""

    name: Literal["docker", "podman"]
    version: str
    nvidia_runtime: bool
    root: Path | None
    """Where it keeps images, if that is on this machine."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """A container that was started with all GPUs."""

    image: str
    exit_code: int
    output: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Room:
    """Free space on a disk."""

    purpose: str
    path: Path
    free_bytes: int
    needed_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What was found on a machine."""

    platform: str
    survey: GpuSurvey | None
    """None where the driver fails; ``driver_error`` then says how."""
    driver_error: str = ""
    bus: tuple[str, ...] = ()
    """PCI addresses of NVIDIA's cards."""
    environment: Mapping[str, str] = field(default_factory=dict)
    engine: EngineState | None = None
    engine_error: str = ""
    """Why there is none."""
    toolkit: str | None = None
    """Version of NVIDIA's container toolkit."""
    cdi: tuple[Path, ...] = ()
    trial: Trial | None = None
    """None where no image was there to try."""
    rooms: tuple[Room, ...] = ()
    missing_certificates: tuple[str, ...] = ()
    """Variables that name a file which is not there."""
    unreached: Mapping[str, str | None] = field(default_factory=dict)
    """Addresses that were asked, each with why it did not answer; None where it did."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Diagnosis:
    """Every finding, the image for this machine and how it is run."""

    findings: tuple[Finding, ...]
    image: str
    run: tuple[str, ...]

    @property
    def bad(self) -> int:
        """How many things keep the image from running as it should."""
        return sum(finding.state == "bad" for finding in self.findings)


def diagnose(machine: Machine, matrix: Matrix) -> Diagnosis:
    """Judge what was found."""
    target = image_for(machine, matrix)
    findings = (
        *_gpus(machine),
        *_links(machine),
        *_visible(machine),
        *_driver(machine, matrix, target),
        *_engine(machine),
        *_container(machine, matrix, target),
        *_disk(machine),
        *_network(machine),
    )
    return Diagnosis(
        findings=findings, image=local_reference(target), run=run_line(machine, local_reference(target))
    )


def image_for(machine: Machine, matrix: Matrix) -> Target:
    """The image that runs on every GPU of the machine: its architecture's own, else one that serves them all.

    The CPU's where there is no GPU, and where no image serves them.
    """
    targets = [
        target
        for target in all_targets(matrix)
        if target.flavor == matrix.defaults.flavor and machine.platform in target.architecture.platforms
    ]
    cpu = next(target for target in all_targets(matrix) if target.architecture.name == "cpu")
    found = capabilities(machine)
    if not found:
        return next((target for target in targets if target.architecture.name == "cpu"), cpu)
    numbers = {number_of(one) for one in found}
    serving = [
        target
        for target in targets
        if all(runs_on(one, sass=target.architecture.sass, ptx=target.architecture.ptx) for one in found)
    ]
    # Its own architecture's first; then more machine code before code that the driver must compile.
    serving.sort(
        key=lambda target: (
            {target.architecture.name} != numbers,
            not target.architecture.sass,
            target.base.name != matrix.defaults.base,
        )
    )
    driver = machine.survey.driver if machine.survey else None
    able = [target for target in serving if driver is None or _driver_runs(driver, target)]
    return next(iter([*able, *serving]), cpu)


def capabilities(machine: Machine) -> tuple[str, ...]:
    """Compute capabilities of the GPUs, each once."""
    if machine.survey is None:
        return ()
    return tuple(dict.fromkeys(state.gpu.compute_capability for state in machine.survey.gpus))


def run_line(machine: Machine, image: str) -> tuple[str, ...]:
    """The command that starts a container; MODEL.gguf and its folder are the reader's to fill in."""
    engine = machine.engine.name if machine.engine else "docker"
    words = [engine, "run", "--rm", "-it"]
    gpus = machine.survey.gpus if machine.survey else ()
    if gpus:
        words += ["--device", "nvidia.com/gpu=all"] if engine == "podman" else ["--gpus", "all"]
    if len(gpus) > 1:
        words += ["-e", "CUDA_DEVICE_ORDER=PCI_BUS_ID"]
    words += ["-v", "/path/to/models:/models:ro", image, "-m", "/models/MODEL.gguf", "-n", "256"]
    if gpus:
        words += ["-ngl", "99"]
    if len(gpus) > 1:
        for name in ("kv-cache", "gpu-sampling", "gpu-sample-reduce"):
            words += [f"--diffusion-{name}", "on"]
    return (*words, "-p", "Hello")


def _driver_runs(driver: str, target: Target) -> bool:
    return target.toolkit is None or driver_is_enough(driver, target.toolkit.minimum_driver)


def _gpus(machine: Machine) -> Iterator[Finding]:
    if machine.survey is None:
        yield Finding(
            topic="GPU",
            state="bad",
            text=machine.driver_error,
            mend=("nvidia-smi", "sudo reboot      # after an update of the driver"),
        )
        return
    if not machine.survey.gpus:
        if machine.bus:
            yield Finding(
                topic="GPU",
                state="bad",
                text=f"{counted(len(machine.bus), 'NVIDIA card')} on the bus ({', '.join(machine.bus)}), and "
                "no driver that answers",
                mend=_INSTALL_DRIVER,
            )
        else:
            yield Finding(
                topic="GPU", state="note", text="no NVIDIA GPU on this machine: the image for CPUs runs here"
            )
        return
    for state in machine.survey.gpus:
        yield from _gpu(state)


def _gpu(state: GpuState) -> Iterator[Finding]:
    gpu = state.gpu
    memory = "memory shared with the machine"
    if gpu.memory_bytes is not None:
        memory = f"{gpu.memory_bytes / 2**30:.1f} GiB"
        if gpu.free_bytes is not None:
            memory = f"{gpu.free_bytes / 2**30:.1f} of {memory} free"
    topic = f"GPU {gpu.index}"
    text = f"{gpu.name}, compute capability {gpu.compute_capability}, {memory}"
    link = state.pcie
    if link is not None:
        text += f", PCIe {link.generation} x{link.width}"
    yield Finding(topic=topic, state="good", text=text)
    if link is not None and link.width < link.most_width:
        yield Finding(
            topic=topic,
            state="warn",
            text=f"its link has {link.width} of {link.most_width} lanes: another slot, or seating the card "
            "again, may give it the rest",
        )
    if state.shared is False:
        yield Finding(
            topic=topic,
            state="bad",
            text="it is kept for one program, or for none (compute mode)",
            mend=(f"sudo nvidia-smi -i {gpu.index} -c DEFAULT",),
        )
    if state.mig:
        yield Finding(
            topic=topic,
            state="warn",
            text="it is cut into instances (MIG), and a program sees one of them",
            mend=(f"sudo nvidia-smi -i {gpu.index} -mig 0",),
        )


def _links(machine: Machine) -> Iterator[Finding]:
    for pair in machine.survey.pairs if machine.survey else ():
        yield _link(pair)


def _link(pair: GpuPair) -> Finding:
    topic = f"GPU {pair.first}-{pair.second}"
    between = f" ({pair.path})" if pair.path else ""
    if pair.nvlink:
        return Finding(topic=topic, state="good", text="NVLink")
    if pair.peer_access:
        return Finding(topic=topic, state="good", text=f"PCIe{between}, each reads the other's memory")
    if pair.peer_access is None:
        return Finding(topic=topic, state="note", text=f"PCIe{between}; the driver says no more")
    return Finding(
        topic=topic,
        state="note",
        text=f"PCIe{between}, no peer access: what one sends the other goes through the machine's memory",
    )


def _visible(machine: Machine) -> Iterator[Finding]:
    gpus = machine.survey.gpus if machine.survey else ()
    chosen = machine.environment.get("CUDA_VISIBLE_DEVICES")
    if not gpus:
        return
    if chosen is not None:
        seen = _seen(chosen, [state.gpu.uuid for state in gpus])
        if seen < len(gpus):
            yield Finding(
                topic="visible",
                state="warn",
                text=f"CUDA_VISIBLE_DEVICES={chosen} hides {len(gpus) - seen} of {counted(len(gpus), 'GPU')} "
                "from programs that are started here",
                mend=("unset CUDA_VISIBLE_DEVICES",),
            )
    order = machine.environment.get("CUDA_DEVICE_ORDER")
    if len(capabilities(machine)) > 1 and order != "PCI_BUS_ID":
        yield Finding(
            topic="visible",
            state="note",
            text="the GPUs differ, and CUDA counts the fastest first where it is not told otherwise",
            mend=("export CUDA_DEVICE_ORDER=PCI_BUS_ID",),
        )


def _seen(chosen: str, uuids: Sequence[str]) -> int:
    """How many GPUs a ``CUDA_VISIBLE_DEVICES`` leaves; CUDA stops at the first word that names none."""
    found: set[int] = set()
    for word in chosen.split(","):
        name = word.strip()
        if re.fullmatch(r"\d{1,4}", name) and int(name) < len(uuids):
            found.add(int(name))
            continue
        matching = [index for index, uuid in enumerate(uuids) if name and uuid.startswith(name)]
        if len(matching) != 1:
            break
        found.add(matching[0])
    return len(found)


def _driver(machine: Machine, matrix: Matrix, target: Target) -> Iterator[Finding]:
    driver = machine.survey.driver if machine.survey else None
    found = capabilities(machine)
    if driver is None or not found:
        return
    if target.toolkit is None:
        yield Finding(
            topic="image",
            state="bad",
            text=f"no image has code for compute capability {' and '.join(found)} on {machine.platform}; "
            f"{local_reference(target)} runs on the processor",
        )
        return
    wanted = target.toolkit.minimum_driver
    if not _driver_runs(driver, target):
        yield Finding(
            topic="driver",
            state="bad",
            text=f"{driver} is too old: {local_reference(target)} has CUDA {target.toolkit.version} and "
            f"needs {wanted} or newer",
            mend=_INSTALL_DRIVER,
        )
        return
    too_new = sorted(
        {
            one.toolkit.version
            for one in all_targets(matrix)
            if one.toolkit is not None and not _driver_runs(driver, one)
        }
    )
    text = f"{driver}; {local_reference(target)} needs {wanted} or newer (CUDA {target.toolkit.version})"
    if too_new:
        text += f"; too old for the images with CUDA {', '.join(too_new)}"
    yield Finding(topic="driver", state="good", text=text)


def _engine(machine: Machine) -> Iterator[Finding]:
    engine = machine.engine
    if engine is None:
        yield Finding(
            topic="engine",
            state="bad",
            text=machine.engine_error or "no container engine answers",
            mend=(
                "sudo apt-get install -y docker.io",
                "sudo systemctl enable --now docker",
                'sudo usermod -aG docker "$USER"      # then log in again',
            ),
        )
        return
    yield Finding(topic="engine", state="good", text=f"{engine.name} {engine.version}")
    if machine.survey is None or not machine.survey.gpus:
        return
    setup = _SET_UP_CDI if engine.name == "podman" else _SET_UP_DOCKER
    known = engine.nvidia_runtime if engine.name == "docker" else False
    if machine.toolkit is None and not machine.cdi and not known:
        yield Finding(
            topic="toolkit",
            state="bad",
            text="NVIDIA's container toolkit is not installed: no container gets a GPU",
            mend=(*_INSTALL_TOOLKIT, *setup),
        )
    elif not known and not machine.cdi:
        yield Finding(
            topic="toolkit",
            state="bad",
            text=f"NVIDIA's container toolkit {machine.toolkit} is installed, and {engine.name} does not "
            "know it",
            mend=setup,
        )
    else:
        how = "its runtime is set up" if known else f"CDI: {', '.join(map(str, machine.cdi))}"
        yield Finding(
            topic="toolkit",
            state="good",
            text=f"NVIDIA's container toolkit{' ' + machine.toolkit if machine.toolkit else ''}, {how}",
        )


def _container(machine: Machine, matrix: Matrix, target: Target) -> Iterator[Finding]:
    gpus = machine.survey.gpus if machine.survey else ()
    if machine.engine is None or not gpus:
        return
    trial = machine.trial
    if trial is None:
        yield Finding(
            topic="container",
            state="note",
            text=f"not tried whether a container gets the GPUs: {machine.engine.name} has no image "
            f"{local_reference(target)}",
            mend=(build_command(target, matrix),),
        )
        return
    devices = len(re.findall(r"^\s*CUDA\d+:", trial.output, re.MULTILINE))
    if trial.exit_code == 0 and devices == len(gpus):
        yield Finding(
            topic="container",
            state="good",
            text=f"{trial.image} sees {counted(devices, 'GPU')} in a container",
        )
    elif trial.exit_code == 0 and devices:
        yield Finding(
            topic="container",
            state="bad",
            text=f"{trial.image} sees {devices} of {len(gpus)} GPUs in a container",
            mend=_SET_UP_CDI if machine.engine.name == "podman" else _SET_UP_DOCKER,
        )
    else:
        yield Finding(
            topic="container",
            state="bad",
            text=f"a container gets no GPU: {_why(trial)}",
            mend=_SET_UP_CDI if machine.engine.name == "podman" else _SET_UP_DOCKER,
        )


def _why(trial: Trial) -> str:
    """The line that tells why, of an engine's message."""
    if "could not select device driver" in trial.output:
        return "the engine has no driver for --gpus"
    if "unresolvable CDI devices" in trial.output:
        return "the engine knows no CDI device nvidia.com/gpu=all"
    if trial.exit_code == 0:
        return f"{trial.image} lists no CUDA device"
    lines = [line.strip() for line in trial.output.splitlines()]
    # Docker's client ends its errors with where its help is.
    told = [line for line in lines if line and not re.match(r"(Run|See) '\w+ run --help'", line)]
    return told[-1] if told else f"it ended with exit code {trial.exit_code}"


def _disk(machine: Machine) -> Iterator[Finding]:
    for room in machine.rooms:
        enough = room.free_bytes >= room.needed_bytes
        text = f"{room.free_bytes / 1e9:.0f} GB free in {room.path} for {room.purpose}"
        yield Finding(
            topic="disk",
            state="good" if enough else "bad",
            text=text if enough else f"{text}, which takes {room.needed_bytes / 1e9:.0f} GB",
            mend=() if enough else (f"du -xh --max-depth=2 {room.path} | sort -h | tail", "docker system df"),
        )


def _network(machine: Machine) -> Iterator[Finding]:
    for name in machine.missing_certificates:
        yield Finding(
            topic="CA",
            state="bad",
            text=f"{name} names {machine.environment.get(name)}, which is not there",
            mend=(f"unset {name}",),
        )
    given = [name for name in CA_VARIABLES if machine.environment.get(name)]
    if good := [name for name in given if name not in machine.missing_certificates]:
        yield Finding(topic="CA", state="good", text=f"certificates by {', '.join(good)}")
    if proxies := list(_proxies(machine.environment)):
        yield Finding(topic="proxy", state="good", text=", ".join(proxies))
    for url, error in machine.unreached.items():
        host = url.partition("://")[2].partition("/")[0].rpartition("@")[2] or url
        if error is None:
            yield Finding(topic="network", state="good", text=f"{host} answers")
        else:
            yield Finding(
                topic="network",
                state="warn",
                text=f"{host} can't be reached: {error}",
                mend=(f"curl -sSI {url}", "export https_proxy=http://HOST:PORT      # if there is a proxy"),
            )


def _proxies(environment: Mapping[str, str]) -> Iterable[str]:
    """Proxies by variable, without the passwords that stand in some."""
    for name in PROXY_VARIABLES:
        value = environment.get(name) or environment.get(name.upper())
        if value:
            yield f"{name}={re.sub(r'//[^/@]*@', '//…@', value)}"
