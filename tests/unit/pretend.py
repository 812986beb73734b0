"""A program that prints what ``llama-diffusion-cli`` would, for tests of the suite without a GPU.

It follows the formats of real output (``data/runs``) and does what the series' build does on GPUs, or what
the pin alone does. ``faults`` break it in one way each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from llama_images.errors import TimedOut
from llama_images.ports import ProgramRun, RunResult

WEIGHTS_MIB = 15_000.0
BUFFER_MIB = 1_408.0


@dataclass
class Pretend:
    """Implements ``ports.Program``."""

    flavor: str = "patched"
    faults: frozenset[str] = frozenset()
    step_ms: int = 70
    logical: bool = False
    asked: list[ProgramRun] = field(default_factory=list)
    free_mib: Callable[[int], int | None] = lambda _gpu: None
    """What is free on a GPU, where memory is held."""

    def place(self, file: Path) -> str:
        return f"/models/{file.name}"

    def run(self, request: ProgramRun) -> RunResult:
        self.asked.append(request)
        run = _Run(self, request)
        code = run.execute()
        return RunResult(
            exit_code=code,
            stdout="".join(run.out).encode(),
            stderr="".join(run.log).encode(),
            seconds=run.at / 1e6,
            interrupted_after=0.5 if request.interrupt_on else None,
        )


class _Run:
    def __init__(self, program: Pretend, request: ProgramRun) -> None:
        self.program = program
        self.request = request
        self.patched = program.flavor == "patched"
        self.out: list[str] = []
        self.log: list[str] = []
        self.at = 5_000_000
        words = request.arguments
        self.options = {
            word: words[index + 1] if index + 1 < len(words) else ""
            for index, word in enumerate(words)
            if word.startswith("-")
        }

    # --- printing ---

    def stamp(self) -> str:
        minutes, rest = divmod(self.at, 60_000_000)
        seconds, rest = divmod(rest, 1_000_000)
        return f"{minutes}.{seconds:02}.{rest // 1000:03}.{rest % 1000:03}"

    def line(self, level: str, text: str) -> None:
        self.at += 11
        self.log.append(f"{self.stamp()} {level} {text}\n")

    # --- what it does ---

    def execute(self) -> int:
        if "hangs" in self.program.faults:
            raise TimedOut("it did not end within 600 seconds")
        if self.patched and (error := self.refusal()):
            self.line("E", f"error: {error}")
            return 1
        self.devices()
        if "no memory" in self.program.faults and self.limits():
            self.line("E", "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 9.00 MiB on device 0: x")
            self.line("E", "error: failed to create context")
            return 1
        for turn in range(2 if "/clear" in self.stdin else 1):
            self.turn(turn)
        return 0

    @property
    def stdin(self) -> str:
        return (self.request.stdin or b"").decode()

    def refusal(self) -> str | None:
        if "refuses nothing" in self.program.faults:
            return None
        if self.options.get("-sm") == "tensor":
            return "--split-mode tensor is not supported by diffusion models, use layer, row or none"
        if self.mode("sample-reduce") == "on" and self.mode("sampling") == "off":
            return "--diffusion-gpu-sample-reduce on needs --diffusion-gpu-sampling"
        return None

    def mode(self, name: str) -> str:
        options = {
            "kv": "--diffusion-kv-cache",
            "sampling": "--diffusion-gpu-sampling",
            "sample-reduce": "--diffusion-gpu-sample-reduce",
        }
        return self.options.get(options[name], "auto")

    @property
    def gpus(self) -> int:
        environment: Mapping[str, str] = self.request.environment
        if "LOGICAL_GPUS" in environment:
            return int(environment["LOGICAL_GPUS"])
        return len([one for one in environment["CUDA_VISIBLE_DEVICES"].split(",") if one])

    def limits(self) -> list[int]:
        """MiB free on each GPU beside what the driver takes; empty without a limit."""
        text = self.request.environment.get("LOGICAL_GPU_MIB")
        if text is not None:
            return [int(word) - 512 if int(word) else 1 << 20 for word in text.split(",")]
        free = [self.program.free_mib(gpu) for gpu in range(self.gpus)]
        return (
            [1 << 20 if mib is None else mib for mib in free] if any(mib is not None for mib in free) else []
        )

    def on(self, name: str) -> bool:
        if f"{name} stays off" in self.program.faults:
            return False
        mode = self.mode(name)
        if self.patched:
            return mode == "on" or (mode == "auto" and self.gpus == 1)
        return mode != "off" and self.gpus == 1

    def devices(self) -> None:
        gpus, total = self.gpus, 30
        shares = [1.0] * gpus
        if self.patched and "-ts" in self.options and "drops -ts" not in self.program.faults:
            shares = [float(word) for word in self.options["-ts"].split(",")]
        layers = [round(total * share / sum(shares)) for share in shares]
        layers[0] += total - sum(layers)
        on_cpu = "layers on the processor" in self.program.faults
        self.line("I", f"load_tensors: offloaded {30 if on_cpu else 31}/31 layers to GPU")
        weights = [WEIGHTS_MIB * count / total for count in layers]
        for gpu, mib in enumerate(weights):
            self.line("I", f"load_tensors:        CUDA{gpu} model buffer size = {mib:8.2f} MiB")
        sc_embd = self.place_buffer(weights)
        kv, sampling, reduce = (
            self.on("kv"),
            self.on("sampling"),
            self.on("sample-reduce") and self.on("sampling"),
        )
        if self.patched:
            names = ",".join(f"CUDA{gpu}" for gpu in range(gpus))
            last = f"CUDA{gpus - 1}"
            split = "layer" if "drops -sm" in self.program.faults else self.options.get("-sm", "layer")
            counts = ",".join(f"CUDA{gpu}:{count}" for gpu, count in enumerate(layers))
            where = {True: f"on:{last}", False: "off"}
            self.line(
                "I",
                f"diffusion_devices: split={split} layers={counts} output={last} sc_embd={sc_embd} "
                f"kv_cache={f'on:{names}' if kv else 'off'} gpu_sampling={where[sampling]} "
                f"sample_reduce={where[reduce]}",
            )
        elif gpus > 1:
            self.line("I", f"diffusion_eb: gpu sampling off ({gpus} GPUs; sc_dev is single-device)")
        words = ["on" if one else "off" for one in (kv, sampling, reduce)]
        self.line(
            "I",
            f"diffusion_eb: max_steps=12 t=[0.400,0.800] entropy_bound=0.1000 stability=1 confidence=0.0050 "
            f"kv_cache={words[0]} gpu_sampling={words[1]} sample_reduce={words[2]}",
        )
        if "-cnv" in self.options:
            self.line("I", "conversation mode: /help for commands, /clear to reset, /exit to quit")

    def place_buffer(self, weights: list[float]) -> str:
        """The self-conditioning embedding: on the last GPU, or where there is room for it."""
        last = f"CUDA{len(weights) - 1}"
        limits = self.limits()
        if not (self.patched and limits) or "never moves" in self.program.faults:
            return last
        order = [len(weights) - 1, *range(len(weights) - 1)]
        for gpu in order:
            if limits[gpu] - weights[gpu] >= BUFFER_MIB + 300:
                break
            self.line(
                "E",
                "ggml_backend_cuda_buffer_type_alloc_buffer: allocating "
                f"{BUFFER_MIB:.2f} MiB on device {gpu}: cudaMalloc failed: out of memory",
            )
        else:
            gpu = -1
        place = f"CUDA{gpu}" if gpu >= 0 else "CUDA_Host"
        if place != last:
            text = f"no room for sc_embT ({BUFFER_MIB:.2f} MiB) on {last}, it is on {place} instead (slower)"
            self.line("W", f"dg_warn_sc_buft: {text}")
        return place

    def turn(self, number: int) -> None:
        blocks = max(1, -(-int(self.options["-n"]) // 256)) if "-n" in self.options else 1
        sc = "DG_SC_CHECK" in self.request.environment and self.on("sampling")
        device = "DG_DEVSAMPLE_CHECK" in self.request.environment and self.on("sample-reduce")
        start = self.at
        for block in range(blocks):
            self.at += 300_000
            for step in range(12):
                # Without the prompt's cache a step takes longer with every block.
                factor = (3 if number == 0 else 1) * (1 if self.on("kv") else 2 + block)
                self.at += factor * self.program.step_ms * 1000
                if sc and not ("a validator's line is lost" in self.program.faults and step == 3):
                    self.line(
                        "I",
                        f"DG_SC_CHECK step {step}: got=67108864 maxabs=0 sumabs=0 nmiss=0/67108864 "
                        "sc_dev[0]=0.9071 host[0]=0.9071",
                    )
                if device:
                    self.line(
                        "I",
                        f"DG_DEVSAMPLE_CHECK step {step}: amax_mismatch=0/256 tok_diff=0/256 "
                        "max|dH|=5.007e-06 max_relH=4.168e-06",
                    )
                self.log.append(f"{self.stamp()} I \rdiffusion step: {step}/12 [{' ' * 50}] 0%")
        salt = "" if "split shows" not in self.program.faults else str(self.gpus)
        if "turns differ" in self.program.faults:
            salt += str(len(self.program.asked)) + str(number)
        prompt = self.options["-p"][:20]
        self.out.append("\n> conversation history cleared\n\n> " if number else "")
        self.out.append(f"\n reply to {prompt} {self.options.get('-n')} {salt}\n")
        total = (self.at - start) / 1000
        steps = 12 * blocks
        self.out.append(
            f"total time: {total:.2f}ms, time per step: {total / steps:.2f}ms "
            f"({steps} steps over {blocks} blocks, entropy-bound)\n"
        )
