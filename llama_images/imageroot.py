"""Judgement of an image's file system, exported as a tar archive, before it may be tagged.

Nothing is started and nothing unpacked: names, modes, small files and ELF headers are read out of the
archive. What an image must not hold comes from what users of such images met: stubs and compat libraries
that override a newer driver, libraries that are missing, secrets of the builder.
"""

from __future__ import annotations

import fnmatch
import posixpath
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from llama_images.elf import MACHINES, Elf, ElfDamaged, read_elf
from llama_images.errors import UsageError

Kind: TypeAlias = Literal["file", "directory", "symlink", "other"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RootExpectation:
    """What one image's file system must hold."""

    programs: tuple[str, ...]
    """Absolute paths of the programs that the image is for: ELF, executable, stripped."""
    licences: tuple[str, ...]
    """Absolute paths of the licence files, one or more for each component; none may be empty."""
    platform: str
    """"linux/amd64" or "linux/arm64"."""
    library_path: tuple[str, ...] = ()
    """LD_LIBRARY_PATH of the image, folder by folder."""
    from_host: frozenset[str] = frozenset()
    """Sonames that the host's driver brings at run time: libcuda.so.1 for CUDA."""
    user_id: int = 10001
    world_writable: frozenset[str] = frozenset({"/tmp"})  # noqa: S108 - a folder of the image
    """Folders that everyone may write to; each needs the sticky bit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """The result of one rule."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One name in the file system."""

    path: str
    """Absolute."""
    kind: Kind
    size: int
    """In bytes; a hard link counts as nothing."""
    mode: int
    owner: int
    target: str
    """Of a symbolic link, as written."""
    content: bytes | None = field(default=None, repr=False)
    """Of a file of at most ``READ_WHOLE`` bytes."""
    elf: Elf | None = None
    damage: str | None = None
    """Why a file that starts as ELF could not be read as such."""


_NOTHING = RootExpectation(programs=(), licences=(), platform="linux/amd64")

READ_WHOLE = 256 * 1024
"""Files up to this size are read and searched; the CA bundle of Debian has 220 KB."""


class Root:
    """The file system by its paths."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self.entries: Mapping[str, Entry] = {entry.path: entry for entry in entries}
        # An archive need not name every folder that its files are in.
        self._folders: set[str] = set()
        for path in self.entries:
            while (path := posixpath.dirname(path)) not in self._folders:
                self._folders.add(path)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries.values())

    def resolve(self, path: str) -> Entry | None:
        """The entry that a path leads to, through links in every part of it; None where it leads nowhere."""
        return self._resolve(path, 40)  # the kernel's own limit

    def _resolve(self, path: str, links: int) -> Entry | None:
        done = "/"
        parts = [part for part in path.split("/") if part not in ("", ".")]
        for number, part in enumerate(parts):
            if part == "..":
                done = posixpath.dirname(done)
                continue
            here = posixpath.join(done, part)
            entry = self.entries.get(here)
            if entry is None and here not in self._folders:
                return None
            if entry is not None and entry.kind == "symlink":
                if not links:
                    return None
                rest = "/".join(parts[number + 1 :])
                return self._resolve(posixpath.join(done, entry.target, rest), links - 1)
            done = here
        return self.entries.get(done)

    @property
    def files(self) -> tuple[tuple[str, int], ...]:
        """Every file with its size in bytes, by path."""
        return tuple(sorted((entry.path, entry.size) for entry in self if entry.kind == "file"))

    @property
    def bytes(self) -> int:
        return sum(size for _, size in self.files)


def read_root(archive: Path) -> Root:
    """Read an uncompressed tar archive. Raises UsageError where it can't be read as one."""
    try:
        with tarfile.open(archive, "r:") as tar:
            root = Root(_entries(tar))
            end = tar.offset
        with archive.open("rb") as file:
            file.seek(end)
            # tarfile takes a cut or damaged header for the end; the real end is a block of zeros.
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"it is cut off or damaged at byte {end:,}")
            return root
    except (OSError, tarfile.TarError, EOFError) as error:
        reason = str(error) or type(error).__name__
        raise UsageError(
            f"{archive} can't be read as a tar archive: {reason}", hint="export it again"
        ) from None


def _entries(tar: tarfile.TarFile) -> Iterator[Entry]:
    seen: dict[str, Entry] = {}
    for member in tar:
        path = posixpath.normpath("/" + member.name.lstrip("/"))
        kind: Kind = "other"
        content, elf, damage = None, None, None
        if member.isdir():
            kind = "directory"
        elif member.issym():
            kind = "symlink"
        elif member.islnk():
            original = seen.get(posixpath.normpath("/" + member.linkname.lstrip("/")))
            if original is not None:
                kind, content, elf, damage = original.kind, original.content, original.elf, original.damage
        elif member.isfile():
            kind = "file"
            file = tar.extractfile(member)
            assert file is not None
            with file:
                try:
                    elf = read_elf(file)
                except ElfDamaged as error:
                    damage = str(error)
                if member.size <= READ_WHOLE:
                    file.seek(0)
                    content = file.read()
        entry = Entry(
            path=path,
            kind=kind,
            size=member.size if member.isfile() else 0,
            mode=member.mode,
            owner=member.uid,
            target=member.linkname if member.issym() else "",
            content=content,
            elf=elf,
            damage=damage,
        )
        seen[path] = entry
        yield entry


def check_root(archive: Path, expectation: RootExpectation) -> tuple[Finding, ...]:
    """Judge an exported file system; the image is good if every finding passed.

    Raises UsageError where the archive can't be read.
    """
    return judge_root(read_root(archive), expectation)


def judge_root(root: Root, expectation: RootExpectation) -> tuple[Finding, ...]:
    """The same for a file system that has been read. One finding a rule, in a fixed order."""
    rules: Mapping[str, Callable[[Root, RootExpectation], Iterable[str]]] = {
        "no driver libraries or stubs": _driver_libraries,
        "no compat libraries": _compat_libraries,
        "no compiler": _compilers,
        "no package caches": _caches,
        "no secrets": _secrets,
        "no proxy settings": _proxies,
        "only the distribution's CA certificates": _certificates,
        "no Python leftovers": _python,
        "no setuid or setgid files": _setuid,
        "nothing world-writable": _world_writable,
        "temporary folder": _temporary,
        "licence files": _licences,
        "unprivileged user": _user,
        "programs": _programs,
        "library closure": _closure,
    }
    findings = []
    for name, rule in rules.items():
        complaints = list(rule(root, expectation))
        findings.append(Finding(name=name, passed=not complaints, detail=_few(complaints) or "as wanted"))
    return tuple(findings)


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerContents:
    """One layer of an image by itself."""

    digest: str
    root: Root
    leaks: tuple[str, ...]
    """Kinds of secrets that its bytes hold, see ``LeakSearch``."""


def judge_layers(layers: Iterable[LayerContents]) -> tuple[Finding, ...]:
    """What must be in no layer, not even below another that hides it. One finding a layer."""
    rules = (_secrets, _certificates, _proxies, _caches)
    findings = []
    for number, layer in enumerate(layers, 1):
        # None of these rules looks at what is expected of the image.
        complaints = [text for rule in rules for text in rule(layer.root, _NOTHING)]
        complaints += [f"it holds {leak}" for leak in layer.leaks]
        findings.append(
            Finding(
                name=f"nothing secret in layer {number}, {layer.digest.removeprefix('sha256:')[:12]}",
                passed=not complaints,
                detail=_few(complaints) or f"{len(layer.root.files)} files searched",
            )
        )
    return tuple(findings)


def judge_configuration(configuration: bytes) -> Finding:
    """The same for an image's configuration: variables, labels, and the commands of its history."""
    complaints = [f"it holds {leak}" for leak in search(configuration)]
    return Finding(
        name="nothing secret in the configuration",
        passed=not complaints,
        detail=_few(complaints) or "as wanted",
    )


def search(data: bytes) -> tuple[str, ...]:
    """Kinds of secrets in a whole document: keys, tokens, addresses with a password, and proxies; sorted."""
    leaks = LeakSearch()
    leaks.feed(data)
    found = list(leaks.found)
    found += [_ADDRESS] if _URL_WITH_PASSWORD.search(data) else []
    found += [_PROXY_SETTING] if _PROXY_SET.search(data) else []
    return tuple(sorted(found))


class LeakSearch:
    """Searches bytes as they stream by for what looks like a key or a token; keeps what kind, not which."""

    def __init__(self) -> None:
        self._kinds: set[str] = set()
        self._rest = b""

    def feed(self, chunk: bytes) -> None:
        """The next bytes; a secret may lie across two chunks."""
        data = self._rest + chunk
        # A search for fixed bytes is some twenty times as fast, and mostly finds none.
        if any(mark in data for mark in _LEAK_MARKS):
            for match in _LEAKS.finditer(data):
                self._kinds.add(_LEAK_NAMES[match.lastgroup or ""])
        self._rest = data[-_LONGEST_LEAK:]

    @property
    def found(self) -> tuple[str, ...]:
        """Kinds of secrets, sorted."""
        return tuple(sorted(self._kinds))


_LONGEST_LEAK = 512
_LEAK_NAMES = {
    "key": "a private key",
    "github": "a GitHub token",
    "gitlab": "a GitLab token",
    "aws": "an AWS access key",
    "hub": "a Docker Hub token",
    "face": "a Hugging Face token",
    "pypi": "a PyPI token",
    "slack": "a Slack token",
}
_LEAK_MARKS = (
    *(
        b"PRIVATE KEY-----",
        b"PRIVATE KEY BLOCK-----",
        b"ghp_",
        b"gho_",
        b"ghu_",
        b"ghs_",
        b"ghr_",
        b"github_pat_",
        b"glpat-",
    ),
    *(b"AKIA", b"ASIA", b"dckr_pat_", b"hf_", b"pypi-AgEI", b"xox"),
)
"""Each kind of secret has one of these in it."""

_LEAKS = re.compile(
    # What PEM allows: words in front, as in ENCRYPTED SIGSTORE PRIVATE KEY, and headers such as Proc-Type. In
    # JSON the end of a line is written \n.
    rb"(?P<key>-----BEGIN (?:[A-Z0-9]+ ){0,4}PRIVATE KEY(?: BLOCK)?-----(?:\s|\\+[nrt]){1,16}"
    rb"(?:[A-Za-z-]{1,32}:[^\r\n\\]{0,100}(?:\s|\\+[nrt]){1,16}){0,3}[A-Za-z0-9+/]{16})"
    rb"|(?P<github>\b(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{60,90}))\b"
    rb"|(?P<gitlab>\bglpat-[A-Za-z0-9_-]{20,40})"
    rb"|(?P<aws>\b(?:AKIA|ASIA)[0-9A-Z]{16}\b)"
    rb"|(?P<hub>\bdckr_pat_[A-Za-z0-9_-]{20,40})"
    rb"|(?P<face>\bhf_[A-Za-z0-9]{34}\b)"
    rb"|(?P<pypi>\bpypi-AgEI[A-Za-z0-9_-]{50,400})"
    rb"|(?P<slack>\bxox[abprs]-[0-9]{8,}-[A-Za-z0-9-]{10,})"
)
_ADDRESS = "an address with a password"
_URL_WITH_PASSWORD = re.compile(rb"://[^/\s:@\"']{0,256}:[^/\s@\"']{1,256}@[A-Za-z0-9\[]")
_PROXY_SETTING = "a proxy's address"
_PROXY_SET = re.compile(
    rb"(?<![A-Za-z0-9_])(?:https?|ftp|all)_proxy\\*[\"']?(?:=|\s*:[ \t]*)\\*[\"']?[A-Za-z0-9\[]",
    re.IGNORECASE,
)
"""As a variable is set: ``https_proxy=http://…``, in JSON or not; not where one is only handed on."""


def _few(complaints: list[str]) -> str:
    shown = "; ".join(complaints[:5])
    return f"{shown}; and {len(complaints) - 5} more" if len(complaints) > 5 else shown


# What must not be there. Each rule yields one complaint for each offence.

_DRIVER = re.compile(r"lib(cuda|cudadebugger|nvidia-[\w-]+|nvcuvid)\.so(\.|$)")
_COMPILER = re.compile(
    r"([\w]+-linux-gnu-)?(gcc|g\+\+|cpp|cc|c\+\+|cc1|cc1plus|collect2|lto1|ld|ld\.(bfd|gold|lld)|as|clang|clang\+\+"
    r"|nvcc|cicc|ptxas|fatbinary|nvlink|cudafe\+\+|bin2c|cuobjdump|nvdisasm|cmake|ninja|make|ccache)(-\d+(\.\d+)*)?"
)


def _driver_libraries(root: Root, _: RootExpectation) -> Iterator[str]:
    for entry in root:
        if "stubs" in entry.path.split("/"):
            yield f"{entry.path} is a stub"
        elif entry.kind != "directory" and _DRIVER.match(posixpath.basename(entry.path)):
            yield f"{entry.path} belongs to the host's driver"


def _compat_libraries(root: Root, _: RootExpectation) -> Iterator[str]:
    for entry in root:
        if entry.kind != "directory" and re.search(r"/compat/(.*/)?lib[^/]*\.so", entry.path):
            yield f"{entry.path} would override a newer driver"


def _compilers(root: Root, _: RootExpectation) -> Iterator[str]:
    for entry in root:
        runs = entry.kind == "symlink" or (entry.kind == "file" and entry.mode & 0o111)
        if runs and _COMPILER.fullmatch(posixpath.basename(entry.path)):
            yield entry.path


def _caches(root: Root, _: RootExpectation) -> Iterator[str]:
    for entry in root:
        if entry.kind == "file" and entry.size and _under(entry.path, *_CACHES):
            yield f"{entry.path} ({entry.size:,} bytes)"


_CACHES = (
    "/var/lib/apt/lists", "/var/cache", "/root/.cache", "/tmp", "/var/tmp", "/var/log/apt",  # noqa: S108
)  # fmt: skip
_SECRET_NAMES = (
    ".netrc", "_netrc", "pip.conf", ".pypirc", ".git-credentials", ".dockercfg", ".npmrc", "id_rsa", "id_dsa",
    "id_ecdsa", "id_ed25519", "auth.json", "credentials",
)  # fmt: skip
_PROXY = re.compile(
    rb"^\s*(?:export\s+|ENV\s+)?(?:https?|ftp|all)_proxy\s*[= ]\s*\S|^\s*Acquire::\w+::proxy\s",
    re.IGNORECASE | re.MULTILINE,
)


def _under(path: str, *folders: str) -> bool:
    return any(path.startswith(folder + "/") for folder in folders)


def _secrets(root: Root, _: RootExpectation) -> Iterator[str]:
    for entry in root:
        if entry.kind != "file":
            continue
        name = posixpath.basename(entry.path)
        if name in _SECRET_NAMES or fnmatch.fnmatch(entry.path, "*/.docker/config.json"):
            yield entry.path
        elif entry.size and _under(entry.path, "/run/secrets", "/var/run/secrets"):
            yield f"{entry.path} is a build secret"
        elif entry.content and entry.elf is None:
            for leak in search(entry.content):
                # A script may name a proxy that is nobody's; where one would be used, `_proxies` finds it.
                if leak != _PROXY_SETTING:
                    yield f"{entry.path} holds {leak}"


def _proxies(root: Root, _: RootExpectation) -> Iterator[str]:
    for entry in root:
        if entry.content and _under(entry.path, "/etc", "/root", "/home") and _PROXY.search(entry.content):
            yield f"{entry.path} sets a proxy"


_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----(.*?)-----END CERTIFICATE-----", re.DOTALL)
_STORE = "/etc/ssl/certs"
_SOURCES = "/usr/share/ca-certificates"


def _pem(data: bytes) -> set[bytes]:
    return {b"".join(body.split()) for body in _PEM.findall(data)}


def _certificates(root: Root, _: RootExpectation) -> Iterator[str]:
    """Certificates may lie in the distribution's folder and, being the same ones, in the store made from it.

    A bundle that the builder was given (for a network that opens TLS) must not reach a layer.
    """
    known: set[bytes] = set()
    for entry in root:
        if entry.kind == "file" and _under(entry.path, _SOURCES):
            known |= _pem(entry.content or b"")
    for entry in root:
        if entry.kind != "file" or _under(entry.path, _SOURCES):
            continue
        if _under(entry.path, _STORE) and entry.content is None and entry.size:
            yield f"{entry.path} is too large to be the distribution's bundle ({entry.size:,} bytes)"
        elif entry.content and entry.elf is None:
            strange = _pem(entry.content) - known
            if strange:
                yield f"{entry.path} holds {len(strange)} certificates that are not the distribution's"


def _python(root: Root, _: RootExpectation) -> Iterator[str]:
    for entry in root:
        name = posixpath.basename(entry.path)
        if (
            name == "__pycache__"
            or (name == "pip" and entry.kind == "directory")
            or (entry.kind in ("file", "symlink") and re.fullmatch(r"pip[\d.]*", name))
        ):
            yield entry.path


def _setuid(root: Root, _: RootExpectation) -> Iterator[str]:
    for entry in root:
        if entry.kind == "file" and entry.mode & 0o6000:
            yield f"{entry.path} (mode {entry.mode & 0o7777:04o})"


def _world_writable(root: Root, expectation: RootExpectation) -> Iterator[str]:
    for entry in root:
        if entry.kind in ("symlink", "other") or not entry.mode & 0o002:
            continue
        if _under(entry.path + "/", "/dev", "/proc", "/sys"):  # mount points, made by the engine
            continue
        if entry.path not in expectation.world_writable:
            yield f"{entry.path} (mode {entry.mode & 0o7777:04o})"
        elif not entry.mode & 0o1000:
            yield f"{entry.path} lacks the sticky bit"


# What must be there.


def _temporary(root: Root, _: RootExpectation) -> Iterator[str]:
    entry = root.entries.get("/tmp")  # noqa: S108
    if entry is None or entry.kind != "directory":
        yield "/tmp is missing"  # noqa: S108
    elif entry.mode & 0o7777 != 0o1777:
        yield f"/tmp has mode {entry.mode & 0o7777:04o}, 1777 wanted"  # noqa: S108


def _licences(root: Root, expectation: RootExpectation) -> Iterator[str]:
    for path in expectation.licences:
        entry = root.resolve(path)
        if entry is None or entry.kind != "file":
            yield f"{path} is missing"
        elif not (entry.content or entry.size):
            yield f"{path} is empty"


def _user(root: Root, expectation: RootExpectation) -> Iterator[str]:
    entry = root.resolve("/etc/passwd")
    if entry is None or entry.content is None:
        yield "/etc/passwd is missing"
        return
    lines = entry.content.decode("utf-8", "replace").splitlines()
    fields = [line.split(":") for line in lines]
    if not any(len(words) == 7 and words[2] == str(expectation.user_id) for words in fields):
        yield f"/etc/passwd has no user {expectation.user_id}"


def _machine(expectation: RootExpectation) -> int:
    return {"linux/amd64": 62, "linux/arm64": 183}[expectation.platform]


def _programs(root: Root, expectation: RootExpectation) -> Iterator[str]:
    for path in expectation.programs:
        entry = root.resolve(path)
        if entry is None or entry.kind != "file":
            yield f"{path} is missing"
        elif entry.elf is None:
            yield f"{path} is not an ELF file" + (f": it {entry.damage}" if entry.damage else "")
        else:
            if not entry.mode & 0o001:
                yield f"{path} can't be run by everyone (mode {entry.mode & 0o7777:04o})"
            if entry.elf.machine != _machine(expectation):
                found = MACHINES.get(entry.elf.machine, str(entry.elf.machine))
                yield f"{path} is for {found}, the image for {expectation.platform}"
            if not entry.elf.stripped:
                yield f"{path} is not stripped"
            loader = entry.elf.interpreter
            if loader and root.resolve(loader) is None:
                yield f"{path} needs the loader {loader}, which is missing"


# The library closure.


def _default_folders(root: Root, machine: int) -> tuple[str, ...]:
    """Folders that the loader searches without being told: those of ld.so.conf, then its own."""
    triplet = {62: "x86_64-linux-gnu", 183: "aarch64-linux-gnu"}.get(machine, "")
    own = (f"/lib/{triplet}", f"/usr/lib/{triplet}") if triplet else ()
    return (*_loader_folders(root, "/etc/ld.so.conf", 8), *own, "/lib64", "/usr/lib64", "/lib", "/usr/lib")


def _loader_folders(root: Root, path: str, depth: int) -> tuple[str, ...]:
    entry = root.resolve(path)
    if entry is None or entry.content is None or not depth:
        return ()
    folders: list[str] = []
    for line in entry.content.decode("utf-8", "replace").splitlines():
        words = line.partition("#")[0].split()
        if words[:1] == ["include"]:
            for pattern in words[1:]:
                full = posixpath.join(posixpath.dirname(path), pattern)
                for name in sorted(fnmatch.filter(root.entries, full)):
                    folders += _loader_folders(root, name, depth - 1)
        else:
            folders += words
    return tuple(folders)


def _find(root: Root, entry: Entry, soname: str, expectation: RootExpectation) -> Entry | None:
    """Where the loader would find a library that ``entry`` needs; ld.so(8) has the order."""
    elf = entry.elf
    assert elf is not None
    origin = posixpath.dirname(entry.path)
    if "/" in soname:
        candidates: tuple[str, ...] = (soname,)
    else:
        folders = (
            *elf.rpath,
            *expectation.library_path,
            *elf.runpath,
            *_default_folders(root, elf.machine),
        )
        origins = (re.sub(r"\$ORIGIN\b|\$\{ORIGIN\}", lambda _: origin, folder) for folder in folders)
        # An empty or relative folder means the working folder of the moment: nothing to rely on.
        candidates = tuple(posixpath.join(folder, soname) for folder in origins if folder.startswith("/"))
    for candidate in candidates:
        found = root.resolve(candidate)
        # A library of another machine is passed over, as the loader does.
        if found and found.elf and (found.elf.machine, found.elf.bits) == (elf.machine, elf.bits):
            return found
    return None


def _closure(root: Root, expectation: RootExpectation) -> Iterator[str]:
    """Every library that any ELF file names is found, or comes from the host.

    A backend that a program opens later may lean on libraries that the program has loaded by then, whatever
    its own search path is: names in the programs' closures count as found.
    """
    loaded: set[str] = set()
    waiting = [found for path in expectation.programs if (found := root.resolve(path)) and found.elf]
    while waiting:
        entry = waiting.pop()
        assert entry.elf is not None
        for soname in entry.elf.needed:
            if soname not in loaded and (found := _find(root, entry, soname, expectation)):
                loaded.add(soname)
                waiting.append(found)
    for entry in root:
        if entry.kind != "file":
            continue
        if entry.damage:
            yield f"{entry.path} starts as ELF and {entry.damage}"
        for soname in entry.elf.needed if entry.elf else ():
            known = soname in expectation.from_host or soname in loaded
            if not known and _find(root, entry, soname, expectation) is None:
                yield f"{entry.path} needs {soname}, which is nowhere"
