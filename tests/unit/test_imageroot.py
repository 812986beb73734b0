"""Image file systems, good and bad, as tar archives made on the spot, with ELF files made by hand."""

from __future__ import annotations

import io
import json
import struct
import sys
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_images.elf import ElfDamaged, read_elf
from llama_images.errors import UsageError
from llama_images.imageroot import (
    Finding,
    LayerContents,
    LeakSearch,
    RootExpectation,
    check_root,
    judge_configuration,
    judge_layers,
    read_root,
    search,
)

X86, ARM = 62, 183


def elf(
    *,
    needed: Sequence[str] = (),
    soname: str | None = None,
    runpath: str | None = None,
    rpath: str | None = None,
    interpreter: str | None = None,
    symbols: bool = False,
    machine: int = X86,
) -> bytes:
    """A 64-bit ELF file with headers and a dynamic section, and nothing to run."""
    strings = b"\0"
    tags: list[tuple[int, int]] = []

    def text(tag: int, value: str) -> None:
        nonlocal strings
        tags.append((tag, len(strings)))
        strings += value.encode() + b"\0"

    for name in needed:
        text(1, name)
    if soname:
        text(14, soname)
    if rpath:
        text(15, rpath)
    if runpath:
        text(29, runpath)
    base = 0x400000
    interp = (interpreter or "").encode() + b"\0" if interpreter else b""
    segments = 2 + bool(interp)
    strings_at = 64 + 56 * segments
    interp_at = strings_at + len(strings)
    dynamic_at = interp_at + len(interp)
    tags.append((5, base + strings_at))
    tags.append((0, 0))
    dynamic = b"".join(struct.pack("<qQ", *tag) for tag in tags)
    sections_at = dynamic_at + len(dynamic)
    kinds = [0, 3, 2] if symbols else [0, 3]
    sections = b"".join(struct.pack("<IIQQQQIIQQ", 0, kind, 0, 0, 0, 0, 0, 0, 0, 0) for kind in kinds)
    head = b"\x7fELF\x02\x01\x01" + bytes(9)
    head += struct.pack(
        "<HHIQQQIHHHHHH", 3, machine, 1, 0, 64, sections_at, 0, 64, 56, segments, 64, len(kinds), 0
    )

    def segment(kind: int, offset: int, size: int) -> bytes:
        return struct.pack("<IIQQQQQQ", kind, 4, offset, base + offset, base + offset, size, size, 1)

    table = segment(1, 0, sections_at) + segment(2, dynamic_at, len(dynamic))
    if interp:
        table += segment(3, interp_at, len(interp))
    return head + table + strings + interp + dynamic + sections


PEM = "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n"
MOZILLA = PEM.format("TW96aWxsYQ==")
COMPANY = PEM.format("Q29tcGFueQ==")


@dataclass
class Node:
    """One member of an archive."""

    content: bytes | str = b""
    mode: int = 0o644
    link: str | None = None
    hard: bool = False
    folder: bool = False


def image() -> dict[str, Node]:
    """A good CUDA image's file system, laid out as this project lays it out."""
    lib = "usr/lib/x86_64-linux-gnu"
    return {
        "usr": Node(folder=True, mode=0o755),
        "tmp": Node(folder=True, mode=0o1777),
        "dev/shm": Node(folder=True, mode=0o1777),
        "lib": Node(link="usr/lib"),
        "lib64": Node(link="usr/lib64"),
        "etc/passwd": Node("root:x:0:0:root:/root:/bin/sh\nllama:x:10001:10001::/:/usr/sbin/nologin\n"),
        "etc/ld.so.conf": Node("include /etc/ld.so.conf.d/*.conf\n"),
        "etc/ld.so.conf.d/cuda.conf": Node("# CUDA\n/opt/cuda/lib\n"),
        "etc/ssl/certs/ca-certificates.crt": Node(MOZILLA),
        "etc/ssl/certs/mozilla.pem": Node(link="/usr/share/ca-certificates/mozilla.crt"),
        "usr/share/ca-certificates/mozilla.crt": Node(MOZILLA),
        "usr/lib64/ld-linux-x86-64.so.2": Node(link=f"../../{lib}/ld-linux-x86-64.so.2"),
        f"{lib}/ld-linux-x86-64.so.2": Node(elf(soname="ld-linux-x86-64.so.2"), 0o755),
        f"{lib}/libc.so.6": Node(
            elf(soname="libc.so.6", needed=["ld-linux-x86-64.so.2"], symbols=True), 0o755
        ),
        "opt/cuda/lib/libcublasLt.so.13": Node(elf(soname="libcublasLt.so.13", needed=["libc.so.6"])),
        "opt/cuda/lib/libcublas.so.13": Node(link="libcublas.so.13.0.2"),
        "opt/cuda/lib/libcublas.so.13.0.2": Node(
            elf(soname="libcublas.so.13", needed=["libcublasLt.so.13", "libc.so.6"])
        ),
        "opt/llama/libggml-base.so.0": Node(elf(soname="libggml-base.so.0", needed=["libc.so.6"])),
        "opt/llama/libggml-cuda.so": Node(
            elf(
                needed=["libggml-base.so.0", "libcublas.so.13", "libcuda.so.1"]
            )  # opened late, without a RUNPATH
        ),
        "opt/llama/llama-diffusion-cli": Node(
            elf(
                needed=["libggml-base.so.0", "libc.so.6"],
                runpath="$ORIGIN",
                interpreter="/lib64/ld-linux-x86-64.so.2",
            ),
            0o755,
        ),
        "usr/bin/llama-diffusion-cli": Node(link="/opt/llama/llama-diffusion-cli"),
        "usr/share/doc/llama.cpp/copyright": Node("MIT License\n"),
        "usr/share/doc/cuda/copyright": Node("NVIDIA\n"),
        "usr/lib/gcc": Node(folder=True, mode=0o755),
        "var/cache/apt/archives/lock": Node(""),
    }


WANTED = RootExpectation(
    programs=("/usr/bin/llama-diffusion-cli",),
    licences=("/usr/share/doc/llama.cpp/copyright", "/usr/share/doc/cuda/copyright"),
    platform="linux/amd64",
    from_host=frozenset({"libcuda.so.1"}),
)


def write(folder: Path, nodes: dict[str, Node]) -> Path:
    archive = folder / "root.tar"
    with tarfile.open(archive, "w") as tar:
        for name, node in nodes.items():
            info = tarfile.TarInfo(name)
            info.mode = node.mode
            data = node.content.encode() if isinstance(node.content, str) else node.content
            if node.folder:
                info.type = tarfile.DIRTYPE
            elif node.link is not None:
                info.type = tarfile.LNKTYPE if node.hard else tarfile.SYMTYPE
                info.linkname = node.link
                info.mode = 0o777
            else:
                info.size = len(data)
            tar.addfile(info, io.BytesIO(data) if info.isreg() else None)
    return archive


def failed(findings: Sequence[Finding]) -> dict[str, str]:
    return {finding.name: finding.detail for finding in findings if not finding.passed}


def test_a_good_image_passes_every_rule(tmp_path: Path) -> None:
    findings = check_root(write(tmp_path, image()), WANTED)
    assert failed(findings) == {}
    assert len(findings) == 15


def put(path: str, node: Node) -> Callable[[dict[str, Node]], None]:
    return lambda nodes: nodes.__setitem__(path, node)


def drop(path: str) -> Callable[[dict[str, Node]], None]:
    return lambda nodes: nodes.__delitem__(path)


def alter(path: str, **changes: object) -> Callable[[dict[str, Node]], None]:
    return lambda nodes: nodes.__setitem__(path, replace(nodes[path], **changes))  # type: ignore[arg-type]


PROGRAM = "opt/llama/llama-diffusion-cli"
LOADER = "/lib64/ld-linux-x86-64.so.2"
DRIVER, CACHES, PYTHON = "no driver libraries or stubs", "no package caches", "no Python leftovers"
CERTIFICATES, CLOSURE = "only the distribution's CA certificates", "library closure"
KEY = "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASC\n-----END PRIVATE KEY-----\n"


@pytest.mark.parametrize(
    ("rule", "word", "change"),
    [
        (DRIVER, "/opt/cuda/lib/stubs", put("opt/cuda/lib/stubs/libcuda.so", Node(elf()))),
        (DRIVER, "libcuda.so.1", put("opt/x/libcuda.so.1", Node(elf()))),
        (DRIVER, "libcuda.so", put("opt/x/libcuda.so", Node(link="gone"))),
        (DRIVER, "libnvidia-ml.so.1", put("usr/lib/libnvidia-ml.so.1", Node(elf()))),
        (
            "no compat libraries",
            "/usr/local/cuda-13.0/compat",
            put("usr/local/cuda-13.0/compat/libother.so.1", Node(elf())),
        ),
        ("no compiler", "/usr/bin/nvcc", put("usr/bin/nvcc", Node(elf(), 0o755))),
        ("no compiler", "cicc", put("opt/cuda/nvvm/bin/cicc", Node(elf(), 0o755))),
        ("no compiler", "ptxas", put("opt/cuda/bin/ptxas", Node(elf(), 0o755))),
        ("no compiler", "gcc-12", put("usr/bin/x86_64-linux-gnu-gcc-12", Node(elf(), 0o755))),
        ("no compiler", "/usr/bin/cc", put("usr/bin/cc", Node(link="/etc/alternatives/cc"))),
        ("no compiler", "cmake", put("usr/bin/cmake", Node(elf(), 0o755))),
        (CACHES, "/var/lib/apt/lists", put("var/lib/apt/lists/deb_main_Packages", Node("Package: x"))),
        (CACHES, "/var/cache/apt/pkgcache.bin", put("var/cache/apt/pkgcache.bin", Node("x"))),
        (CACHES, "/tmp/wheel", put("tmp/wheel.whl", Node("x"))),
        ("no secrets", ".netrc", put("root/.netrc", Node("machine x"))),
        ("no secrets", "pip.conf", put("etc/pip.conf", Node("[global]"))),
        ("no secrets", ".pypirc", put("root/.pypirc", Node("[pypi]"))),
        ("no secrets", "config.json", put("root/.docker/config.json", Node("{}"))),
        ("no secrets", "/run/secrets/ca", put("run/secrets/ca", Node("x"))),
        ("no secrets", "private key", put("usr/share/notes.txt", Node(KEY))),
        ("no secrets", "holds a GitHub token", put("app/notes.txt", Node("x " + "ghp_" + "a" * 36))),
        ("no secrets", "address with a password", put("etc/x.conf", Node("get https://me:secret@h/"))),
        ("no proxy settings", "/etc/environment", put("etc/environment", Node("https_proxy=http://p:3128\n"))),
        (
            "no proxy settings",
            "apt.conf.d",
            put("etc/apt/apt.conf.d/80proxy", Node('Acquire::http::Proxy "http://p:3128";\n')),
        ),
        (
            CERTIFICATES,
            "ca-certificates.crt",
            alter("etc/ssl/certs/ca-certificates.crt", content=MOZILLA + COMPANY),
        ),
        (
            CERTIFICATES,
            "/usr/local/share/ca-certificates/company.crt",
            put("usr/local/share/ca-certificates/company.crt", Node(COMPANY)),
        ),
        (
            CERTIFICATES,
            "1 certificates",
            drop("usr/share/ca-certificates/mozilla.crt"),
        ),
        (
            CERTIFICATES,
            "too large",
            alter("etc/ssl/certs/ca-certificates.crt", content=MOZILLA + " " * 300_000),
        ),
        (PYTHON, "__pycache__", put("usr/lib/x/__pycache__", Node(folder=True, mode=0o755))),
        (PYTHON, "/usr/bin/pip3", put("usr/bin/pip3", Node("#!", 0o755))),
        ("no setuid or setgid files", "4755", put("usr/bin/su", Node(elf(), 0o4755))),
        ("no setuid or setgid files", "2755", put("usr/bin/wall", Node(elf(), 0o2755))),
        ("nothing world-writable", "/var/tmp", put("var/tmp", Node(folder=True, mode=0o1777))),
        ("nothing world-writable", "/etc/hosts", put("etc/hosts", Node("x", 0o666))),
        ("nothing world-writable", "sticky", alter("tmp", mode=0o777)),
        ("temporary folder", "0755", alter("tmp", mode=0o755)),
        ("temporary folder", "missing", drop("tmp")),
        ("licence files", "/usr/share/doc/cuda/copyright is missing", drop("usr/share/doc/cuda/copyright")),
        ("licence files", "empty", alter("usr/share/doc/cuda/copyright", content="")),
        ("unprivileged user", "10001", alter("etc/passwd", content="root:x:0:0:root:/root:/bin/sh\n")),
        ("unprivileged user", "missing", drop("etc/passwd")),
        ("programs", "missing", drop("usr/bin/llama-diffusion-cli")),
        ("programs", "missing", drop(PROGRAM)),
        ("programs", "can't be run by everyone", alter(PROGRAM, mode=0o700)),
        ("programs", "not an ELF file", alter(PROGRAM, content="#!/bin/sh\n")),
        ("programs", "not stripped", alter(PROGRAM, content=elf(symbols=True))),
        ("programs", "is for AArch64", alter(PROGRAM, content=elf(machine=ARM))),
        ("programs", "needs the loader", alter(PROGRAM, content=elf(interpreter="/lib/ld-musl.so.1"))),
        (CLOSURE, "needs libcublasLt.so.13", drop("opt/cuda/lib/libcublasLt.so.13")),
        (CLOSURE, "needs libcublas.so.13", alter("etc/ld.so.conf.d/cuda.conf", content="#/opt/cuda/lib\n")),
        (CLOSURE, "needs libggml-base.so.0", drop("opt/llama/libggml-base.so.0")),
        (
            "library closure",
            "needs libcublas.so.13",
            alter("opt/cuda/lib/libcublas.so.13.0.2", content=elf(machine=ARM)),  # the loader passes it over
        ),
        (CLOSURE, "needs libcublas.so.13", alter("opt/cuda/lib/libcublas.so.13", link="libcublas.so.13")),
        (CLOSURE, "starts as ELF", put("usr/lib/libbroken.so", Node(b"\x7fELF\x02\x01" + bytes(30)))),
    ],
)  # fmt: skip
def test_one_change_breaks_one_rule(
    tmp_path: Path, rule: str, word: str, change: Callable[[dict[str, Node]], None]
) -> None:
    nodes = image()
    change(nodes)
    found = failed(check_root(write(tmp_path, nodes), WANTED))
    assert rule in found
    assert word in found[rule]
    # A missing program or a broken library may break a second rule; nothing else may.
    extra = set(found) - {rule, "programs", "library closure", "temporary folder", "nothing world-writable"}
    assert extra == set()


@pytest.mark.parametrize(
    "change",
    [
        put("usr/share/doc/gcc", Node("not a program")),
        put("usr/share/doc/gcc-12-base", Node(folder=True, mode=0o755)),
        put("etc/apt/apt.conf.d/01proxy", Node('// Acquire::http::Proxy "http://p";\n# http_proxy=x\n')),
        put("run/secrets", Node(folder=True, mode=0o700)),
        put("usr/share/doc/openssl.txt", Node("a file starts with -----BEGIN PRIVATE KEY-----\n")),
        put("proc/x", Node(folder=True, mode=0o777)),
        put("opt/cuda/lib/libcudart.so.13", Node(elf(soname="libcudart.so.13"))),
        put("usr/share/compat/readme.txt", Node("text")),
        put("usr/lib/loop", Node(link="loop")),
    ],
)
def test_what_only_looks_bad_passes(tmp_path: Path, change: Callable[[dict[str, Node]], None]) -> None:
    nodes = image()
    change(nodes)
    assert failed(check_root(write(tmp_path, nodes), WANTED)) == {}


def test_a_host_library_is_needed_only_where_the_image_names_it(tmp_path: Path) -> None:
    found = failed(check_root(write(tmp_path, image()), replace(WANTED, from_host=frozenset())))
    assert found == {"library closure": "/opt/llama/libggml-cuda.so needs libcuda.so.1, which is nowhere"}


def test_an_empty_folder_of_the_library_path_is_no_folder(tmp_path: Path) -> None:
    nodes = image()
    nodes["libcuda.so.1"] = Node(elf())
    wanted = replace(WANTED, from_host=frozenset(), library_path=("", "."))
    assert "needs libcuda.so.1" in failed(check_root(write(tmp_path, nodes), wanted))["library closure"]


def test_libraries_are_found_by_library_path_runpath_and_rpath(tmp_path: Path) -> None:
    nodes = image()
    del nodes["etc/ld.so.conf"]
    archive = write(tmp_path, nodes)
    assert "libcublas.so.13" in failed(check_root(archive, WANTED))["library closure"]
    assert failed(check_root(archive, replace(WANTED, library_path=("/opt/cuda/lib",)))) == {}
    needed = ["libcublas.so.13", "libggml-base.so.0"]
    nodes["opt/llama/libggml-cuda.so"] = Node(elf(needed=needed, runpath="/nowhere:${ORIGIN}/../cuda/lib"))
    nodes["opt/cuda/lib/libcublas.so.13.0.2"] = Node(elf(needed=["libcublasLt.so.13"], rpath="$ORIGIN"))
    assert failed(check_root(write(tmp_path, nodes), WANTED)) == {}


def test_hard_links_are_the_file_they_name(tmp_path: Path) -> None:
    nodes = image()
    nodes["usr/bin/llama-diffusion-cli"] = Node(link=PROGRAM, hard=True)
    root = read_root(write(tmp_path, nodes))
    entry = root.resolve("/usr/bin/llama-diffusion-cli")
    assert entry is not None
    assert entry.elf == root.entries["/" + PROGRAM].elf
    assert entry.size == 0


def test_files_and_sizes(tmp_path: Path) -> None:
    root = read_root(write(tmp_path, image()))
    files = dict(root.files)
    assert files["/usr/share/doc/cuda/copyright"] == 7
    assert "/usr" not in files
    assert "/opt/cuda/lib/libcublas.so.13" not in files
    assert root.bytes == sum(files.values())


@pytest.mark.parametrize("content", [b"", b"not a tar archive" * 100, b"\x1f\x8b\x08" + bytes(600)])
def test_what_is_no_archive_is_one_clear_line(tmp_path: Path, content: bytes) -> None:
    archive = tmp_path / "x.tar"
    archive.write_bytes(content)
    with pytest.raises(UsageError, match=r"x\.tar can't be read as a tar archive") as caught:
        read_root(archive)
    assert "\n" not in caught.value.message


def test_a_truncated_archive_is_one_clear_line(tmp_path: Path) -> None:
    archive = write(tmp_path, image())
    archive.write_bytes(archive.read_bytes()[:5000])
    with pytest.raises(UsageError, match="can't be read as a tar archive"):
        read_root(archive)


def test_a_missing_archive_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        read_root(tmp_path / "gone.tar")


def test_a_real_elf_file_is_read() -> None:
    with Path(sys.executable).resolve().open("rb") as file:
        found = read_elf(file)
    assert found is not None
    assert found.machine in (X86, ARM)
    assert found.interpreter is not None
    assert any(name.startswith("libc.so") for name in found.needed)


def test_other_files_are_no_elf() -> None:
    assert read_elf(io.BytesIO(b"")) is None
    assert read_elf(io.BytesIO(b"#!/bin/sh\n")) is None


@settings(deadline=None)
@given(st.data())
def test_damaged_elf_files_raise_nothing_else(data: st.DataObject) -> None:
    good = bytearray(elf(needed=["libc.so.6"], soname="x.so", runpath="$ORIGIN", interpreter="/lib/ld.so"))
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(4, len(good) - 1))
        good[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(4, len(good)))
    try:
        found = read_elf(io.BytesIO(bytes(good[:cut])))
    except ElfDamaged:
        return
    assert found is not None


TOKENS = {
    "a GitHub token": b"github_pat_" + b"a1" * 35,
    "a GitLab token": b"glpat-" + b"a1-_" * 5,
    "a Hugging Face token": b"hf_" + b"Ab" * 17,
    "a PyPI token": b"pypi-AgEI" + b"aB1_" * 20,
    "a Slack token": b"xoxb-1234567890-abcdefghij",
    "an AWS access key": b"AKIA" + b"A1" * 8,
    "a Docker Hub token": b"dckr_pat_" + b"a1_-" * 6,
    "a private key": KEY.encode(),
}


@pytest.mark.parametrize("kind", TOKENS)
def test_every_kind_of_secret_is_found_wherever_chunks_end(kind: str) -> None:
    data = b"\x00 x=" + TOKENS[kind] + b"\n" + bytes(600)
    for cut in range(len(TOKENS[kind]) + 8):
        leaks = LeakSearch()
        leaks.feed(data[:cut])
        leaks.feed(data[cut:])
        assert leaks.found == (kind,)


BODY = "MIIEvQIBADANBgkqhkiG9w0BAQ"


@pytest.mark.parametrize(
    "text",
    [
        f"-----BEGIN PRIVATE KEY-----\n{BODY}",
        f"-----BEGIN OPENSSH PRIVATE KEY-----\r\n{BODY}",
        f"-----BEGIN ENCRYPTED PRIVATE KEY-----\n{BODY}",
        f"-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----\n{BODY}",
        f"-----BEGIN PGP PRIVATE KEY BLOCK-----\nVersion: 1\n\n{BODY}",
        f"-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,7D4A\n\n{BODY}",
    ],
)
def test_a_private_key_is_found_in_every_form_and_in_json_too(text: str) -> None:
    quoted = json.dumps({"stdin": text})
    for data in (text, quoted, json.dumps({"log": quoted})):
        assert search(data.encode()) == ("a private key",)
        leaks = LeakSearch()
        for byte in data.encode():
            leaks.feed(bytes([byte]))
        assert leaks.found == ("a private key",)


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("https://me:secret@host/x", ("an address with a password",)),
        ("https://:token@host/x", ("an address with a password",)),
        ("https://me:se:cret@[::1]/x", ("an address with a password",)),
        ("https://host:5000/me@x", ()),
        ("git+https://host/me/x@refs/pull/1/head", ()),
        ("HTTPS_PROXY=http://proxy:3128 curl", ("a proxy's address",)),
        ("RUN --env all_proxy='socks5://p:1' x", ("a proxy's address",)),
        ("https_proxy: proxy:3128", ("a proxy's address",)),
        ("https_proxy=", ()),
        ("https_proxy=$https_proxy", ()),
        ("my_https_proxy=x", ()),
        ("no_proxy=localhost", ()),
    ],
)
def test_addresses_and_proxies_are_found_in_json_too(text: str, kinds: tuple[str, ...]) -> None:
    for data in (text, json.dumps({"Env": [text, "PATH=/app"]}), json.dumps(json.dumps([text]))):
        assert search(data.encode()) == kinds


def test_a_proxy_is_found_as_a_key_in_json() -> None:
    assert search(b'{"env": {"https_proxy": "http://proxy:3128"}}') == ("a proxy's address",)


@pytest.mark.parametrize(
    "data",
    [
        b"ghp_short",
        b"AKIAshort",
        b"hf_" + b"a" * 33,
        b"-----BEGIN PUBLIC KEY-----",
        b"",
        bytes(range(256)) * 40,
    ],
)
def test_what_only_looks_like_a_secret_is_none(data: bytes) -> None:
    assert search(data) == ()


def layer_of(
    tmp_path: Path, change: Callable[[dict[str, Node]], None], leaks: tuple[str, ...] = ()
) -> LayerContents:
    nodes = image()
    change(nodes)
    return LayerContents(digest="sha256:" + "1" * 64, root=read_root(write(tmp_path, nodes)), leaks=leaks)


def test_a_layer_is_searched_by_itself(tmp_path: Path) -> None:
    good = layer_of(tmp_path, lambda _nodes: None)
    bad = layer_of(tmp_path, put("root/.netrc", Node("machine x")))
    found = judge_layers([good, bad, replace(good, leaks=("a GitHub token",))])
    assert [finding.passed for finding in found] == [True, False, False]
    assert found[1].name == "nothing secret in layer 2, 111111111111"
    assert found[1].detail == "/root/.netrc"
    assert found[2].detail == "it holds a GitHub token"


@pytest.mark.parametrize(
    ("configuration", "words"),
    [
        (b'{"config": {"Env": ["PATH=/app"]}, "history": [{"created_by": "COPY"}]}', ""),
        (b'{"config": {"Env": ["T=' + TOKENS["a GitHub token"] + b'"]}}', "it holds a GitHub token"),
        (b'{"config": {"Env": ["https_proxy=http://proxy:3128"]}}', "it holds a proxy's address"),
        (
            b'{"history": [{"created_by": "RUN https_proxy=http://me:secret@p:1 x"}]}',
            "an address with a password",
        ),
    ],
)
def test_a_configuration_is_searched_too(configuration: bytes, words: str) -> None:
    finding = judge_configuration(configuration)
    assert finding.passed == (not words)
    assert words in finding.detail
    assert "secret@" not in finding.detail
