#!/usr/bin/env bash
# proof.sh --out DIR [OPTION VALUE]...
#
# Proves the carried patch series on GPUs, in one call of under 9 minutes: builds what the parts need, writes the
# synthetic models meanwhile, runs the parts, judges. README.md beside it says what each part shows.
#
#   --out DIR            gets summary.json, the builds' logs and logs.tar.gz, which holds every run's output
#   --source TARBALL     the pinned llama.cpp tree; not needed where no binary is missing
#   --patches DIR        the series: the file `series`, and the patches that it names; likewise. A binary that was
#                        built of another source, series or architecture is built again
#   --parts LIST         of validate,ties,identity,drift,negative,pressure,speed,explain,router; all but router by default
#   --arch NUMBER        CUDA architecture to compile for (as nvidia-smi tells, else 90)
#   --deadline SECONDS   time for everything (540); a part without time left fails
#   --work DIR           trees, build folder, models, dumps (/tmp/proof)
#   --bin DIR            the binaries (WORK/bin), each with NAME.of, which says what it was built of
#   --ccache PROGRAM     goes before every compiler
#   --model FILE         a full model, with tiny.gguf and ties.gguf beside it; else they are written
#   --writer DIR         goes into PYTHONPATH: holds llama_images, and gguf where models are written (this checkout)
#   --debug-patch FILE   what lets a binary dump its logits (debug-logits.patch)
#   --extra-patch FILE   one more build with this on top, for the parts speed and router
#   --logical yes|no     make two devices of one card (no); see logical_gpus.c
#   --at-once N          runs that share a GPU where they are not timed, about 20 GB each (5)
#   --help               this text
#
# Exit code 0: every verdict passed. 1: one failed, or a variant did not build. 2: wrong use or a bad file.
# 3: no GPU is found, a program is missing, or the series did not build.
# shellcheck disable=SC2317 # functions are reached through `spawn`
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
start=$(date +%s)

die() { # exit-code message
    echo "proof: $2" >&2
    exit "$1"
}
wrong() { die 2 "$*"; }
say() { echo "[$(($(date +%s) - start)) s] $*"; }
number() { # option value
    [[ $2 =~ ^[1-9][0-9]{0,5}$ ]] || wrong "$1: '$2' is no number from 1"
}
file() { # option path
    [ -f "$2" ] || wrong "$1: $2 is no file"
    [ -r "$2" ] || wrong "$1: $2 can't be read"
}
folder() { # option path: makes it, and prints where it is
    mkdir -p -- "$2" 2> /dev/null || wrong "$1: the folder $2 can't be made"
    [ -w "$2" ] || wrong "$1: $2 can't be written to"
    (cd -- "$2" && pwd)
}

# --- options ---

called=proof.sh # for the summary: the command line as it can be given again
for word; do
    [[ $word =~ ^[A-Za-z0-9_./,:=@+-]+$ ]] || word=${word@Q}
    called+=" $word"
done
source_tar='' patches='' out='' work=/tmp/proof bin='' arch='' deadline=540 at_once=5 logical=no
parts=validate,ties,identity,drift,negative,pressure,speed,explain
model='' writer=$here/../../.. debug_patch=$here/debug-logits.patch extra_patch='' ccache=''
while [ $# -gt 0 ]; do
    if [ "$1" = --help ] || [ "$1" = -h ]; then
        sed -n '2,/^# 3:/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
        exit 0
    fi
    case $1 in
        --out | --source | --patches | --parts | --arch | --deadline | --work | --bin | --ccache) ;;
        --model | --writer | --debug-patch | --extra-patch | --logical | --at-once) ;;
        *) wrong "unknown option $1 (--help lists them)" ;;
    esac
    if [ $# -lt 2 ] || [ -z "$2" ]; then wrong "$1 needs a value"; fi
    case $1 in
        --out) out=$2 ;;
        --source) source_tar=$2 ;;
        --patches) patches=$2 ;;
        --parts) parts=$2 ;;
        --arch) arch=$2 ;;
        --deadline) deadline=$2 ;;
        --work) work=$2 ;;
        --bin) bin=$2 ;;
        --ccache) ccache=$2 ;;
        --model) model=$2 ;;
        --writer) writer=$2 ;;
        --debug-patch) debug_patch=$2 ;;
        --extra-patch) extra_patch=$2 ;;
        --logical) logical=$2 ;;
        --at-once) at_once=$2 ;;
    esac
    shift 2
done
[ -n "$out" ] || wrong "--out is missing (--help lists the options)"
number --deadline "$deadline"
number --at-once "$at_once"
[[ $logical = yes || $logical = no ]] || wrong "--logical: '$logical' is neither yes nor no"
if [ -n "$arch" ] && ! [[ $arch =~ ^[1-9][0-9]{1,2}$ ]]; then
    digits=${arch//[!0-9]/}
    wrong "--arch: '$arch' is no number such as 90${digits:+: give ${digits:0:3}}"
fi
[ -d "$writer" ] || wrong "--writer: $writer is no folder"
file --debug-patch "$debug_patch"
[ -z "$extra_patch" ] || file --extra-patch "$extra_patch"

needs() { # part: the binaries that it runs
    case $1 in
        validate | pressure) echo patched ;;
        ties) echo patched stock ;;
        identity) echo patched-dump ;;
        negative) echo patched-dump broken-copy broken-pointer broken-kv ;;
        speed) echo patched stock ${extra_patch:+extra} ;;
        drift | explain) echo patched-dump stock-dump ;;
        router) echo patched-dump stock-dump ${extra_patch:+extra-dump} ;;
        *) wrong "--parts: there is no part '$1' (--help lists them)" ;;
    esac
}
needed=' '
IFS=, read -ra part_names <<< "$parts"
for at in "${!part_names[@]}"; do
    read -r part <<< "${part_names[at]}" # without the blanks around it
    part_names[at]=$part
    more=$(needs "$part")
    needed+="$more "
done
parts=$(IFS=, && echo "${part_names[*]}")

work=$(folder --work "$work")
out=$(folder --out "$out")
bin=$(folder --bin "${bin:-$work/bin}")

# --- what the binaries are built of, and which have to be built ---

series() { # the patches of the series, in order
    sed 's/#.*//' "$patches/series" | awk -v folder="$patches" 'NF { print folder "/" $1 }'
}
on_top() { # variant: what is applied to the pinned tree after the series, if that is
    case $1 in *-dump | broken-*) echo "$debug_patch" ;; esac
    case $1 in
        extra*) echo "$extra_patch" ;;
        broken-*) echo "$here/$1.patch" ;;
    esac
}
patches_of() { # variant: what is applied to the pinned tree
    case $1 in patched* | extra* | broken-*) series ;; esac
    on_top "$1"
}
digest() { # FILE...: sha256 over them, one after the other
    cat -- /dev/null "$@" | sha256sum | cut -d ' ' -f 1
}
wanted() { # variant: what it should be built of, a line "KEY VALUE" each, as far as that is told
    local list
    [ -z "$source_tar" ] || echo "source $source_digest"
    case $1 in
        stock*) ;;
        *) [ -z "$patches" ] || echo "series $series_digest" ;;
    esac
    mapfile -t list < <(on_top "$1")
    echo "more $(digest "${list[@]}")"
    [ -z "$arch" ] || echo "arch $arch"
}
built_of() { # variant key: the value in the file beside the binary, if there is one
    [ ! -e "$bin/$1.of" ] || sed -n "s/^$2 //p" "$bin/$1.of"
}
scan() { # sets `missing`, the variants that have to be built, and `why`
    local name key value
    missing=() why=''
    for name in patched extra patched-dump broken-copy broken-pointer broken-kv stock stock-dump extra-dump; do
        [[ $needed = *" $name "* ]] || continue
        if [ ! -x "$bin/$name" ]; then
            missing+=("$name")
            continue
        fi
        # Without a word of what is asked for, what someone laid there is taken as it is.
        if [ ! -e "$bin/$name.of" ] && [[ -z $source_tar$patches$arch ]]; then continue; fi
        while read -r key value; do
            [ "$value" != "$(built_of "$name" "$key")" ] || continue
            missing+=("$name")
            case $key in
                more) key='patch on top' ;;
                arch) key=architecture ;;
            esac
            why=${why:-"$bin/$name is not known to be of this $key"}
            break
        done < <(wanted "$name")
    done
}
agreed() { # key: its value, which all binaries share; "unknown" where nothing tells
    local name value values
    values=$(for name in $needed; do
        if [[ $1 = series && $name = stock* ]]; then continue; fi
        value=$(wanted "$name" | sed -n "s/^$1 //p")
        value=${value:-$(built_of "$name" "$1")}
        echo "${value:-unknown}"
    done | sort -u)
    [ "$(wc -l <<< "$values")" -eq 1 ] ||
        wrong "the binaries in $bin are of different ${2:-$1}: give --source and --patches"
    echo "${values:-unknown}"
}
[ -z "$source_tar" ] || file --source "$source_tar"
[ -z "$patches" ] || file --patches "$patches/series"
source_digest='' series_digest=''
[ -z "$source_tar" ] || source_digest=$(digest "$source_tar")
if [ -n "$patches" ]; then
    mapfile -t list < <(series)
    for path in "${list[@]}"; do file --patches "$path"; done
    series_digest=$(digest "${list[@]}")
fi
scan
if [ ${#missing[@]} -gt 0 ]; then
    [[ $source_tar && $patches ]] ||
        wrong "${why:-"$bin has no ${missing[*]}"}: give --source and --patches"
fi

# --- the trees, before anything takes long: whatever can't be unpacked or patched is told at once ---

unpack() { # the pinned tree, twice: one to build, one to go back to
    local found list name path
    src=$work/src
    rm -rf "$src" "$work/stock"
    mkdir -p "$src"
    # Time stamps of now: objects of an earlier call may be of another variant.
    tar xmf "$source_tar" -C "$src" 2> /dev/null || wrong "--source: $source_tar can't be unpacked"
    if [ ! -e "$src/CMakeLists.txt" ]; then
        found=$(find "$src" -mindepth 2 -maxdepth 2 -name CMakeLists.txt -printf '%h\n' -quit)
        [ -n "$found" ] || wrong "--source: $source_tar holds no tree with a CMakeLists.txt"
        src=$found
    fi
    cp -r "$src" "$work/stock"
    for name in patched "${missing[@]}"; do
        mapfile -t list < <(patches_of "$name")
        for path in "${list[@]}"; do sed -n 's|^+++ b/\([^\t]*\).*|\1|p' "$path"; done
    done | sort -u > "$work/touched"
}
mix() { # variant: into WORK/next come the files that any patch touches, as this variant has them
    local list file error
    mapfile -t list < <(patches_of "$1")
    rm -rf "$work/next"
    mkdir "$work/next"
    while read -r file; do
        [ -f "$work/stock/$file" ] || continue # apply_patch.py says which patch wants what is not there
        mkdir -p "$work/next/$(dirname "$file")"
        cp "$work/stock/$file" "$work/next/$file"
    done < "$work/touched"
    [ ${#list[@]} -gt 0 ] || return 0
    error=$(python3 "$here/apply_patch.py" "$work/next" "${list[@]}" 2>&1) || wrong "${error#apply_patch: }"
}
prepare() {
    local name
    unpack
    for name in patched "${missing[@]}"; do mix "$name"; done
}
if [ ${#missing[@]} -gt 0 ]; then prepare; fi
source_digest=$(agreed source sources)
series_digest=$(agreed series)

export PYTHONPATH=$writer${PYTHONPATH:+:$PYTHONPATH}
python3 -c 'import numpy, llama_images.validators' 2> /dev/null ||
    wrong "python3 finds no numpy, or no llama_images: give --writer DIR"
beside() { # part model: one that the part runs as well, if it is asked for
    [[ ,$parts, != *,$1,* || -f $(dirname "$model")/$2 ]] || wrong "--model: the part $1 needs $2 beside $model"
}
write=''
if [ -z "$model" ]; then
    model=$work/full.gguf
    [ -e "$model" ] || write=yes
fi
if [ -n "$write" ]; then
    python3 -c 'import gguf, llama_images.synthetic' 2> /dev/null ||
        wrong "python3 finds no gguf to write models with: give --writer DIR, or --model FILE"
else
    file --model "$model"
    beside ties ties.gguf
    [ "$logical" = yes ] || beside speed tiny.gguf
fi

# --- the GPUs, whose architecture may ask for more builds ---

cards=2
[ "$logical" = no ] || cards=1
if [ -z "$arch" ] && [[ -z $source_tar || -z $patches ]]; then
    arch=$(agreed arch architectures)
    arch=${arch#unknown}
    # Nothing is built: what is there was built for that, or nobody knows for what.
    python3 "$here/find_gpus.py" "$cards" ${arch:+"$arch"} > /dev/null || exit
    arch=${arch:-unknown}
else
    arch=$(python3 "$here/find_gpus.py" "$cards" ${arch:+"$arch"}) || exit
    before=${#missing[@]}
    scan
    if [ ${#missing[@]} -gt "$before" ]; then prepare; fi
fi
if [ ${#missing[@]} -gt 0 ]; then
    for program in cmake ninja nvcc c++ ${ccache:+"$ccache"}; do
        [ -n "$(command -v "$program")" ] || die 3 "$program is not installed, or not in PATH"
    done
fi

# shellcheck disable=SC2154 # the loop assigns it
trap 'for pid in $(jobs -pr); do kill -TERM -- "-$pid" 2> /dev/null || true; done' EXIT
trap 'exit 130' INT TERM
spawn() { # command...: in the background, as a group of processes that can be ended as one
    set -m
    "$@" &
    set +m
}

# --- the models, while the compiler runs ---

model_pid=''
write_models() { python3 "$here/write_models.py" "$model" > "$out/model.log" 2>&1; }
if [ -n "$write" ]; then
    spawn write_models
    model_pid=$!
fi

# --- the binaries: one build folder, so that every variant after the first compiles only what differs ---

build=$work/build

lay_out() { # variant: change the source tree into it; a file that stays the same keeps its time stamp
    local file
    mix "$1"
    while read -r file; do
        cmp -s "$work/next/$file" "$src/$file" || cp "$work/next/$file" "$src/$file"
    done < "$work/touched"
}
build_variant() { # variant jobs
    lay_out "$1"
    ninja -C "$build" -j "$2" llama-diffusion-cli >> "$out/build.log" 2>&1
    cp "$build/bin/llama-diffusion-cli" "$bin/$1.part"
    mv "$bin/$1.part" "$bin/$1"
    wanted "$1" > "$bin/$1.of.part"
    mv "$bin/$1.of.part" "$bin/$1.of"
    say "built $1"
}
configure() {
    local options=(
        -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF
        -DGGML_CUDA=ON "-DCMAKE_CUDA_ARCHITECTURES=$arch" -DGGML_CUDA_NCCL=OFF -DGGML_CCACHE=OFF
        -DCMAKE_CUDA_RUNTIME_LIBRARY=Shared # so that logical_gpus.c can stand before it
        -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_SERVER=OFF
        -DLLAMA_BUILD_APP=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_BUILD_COMMIT=proof -DLLAMA_BUILD_NUMBER=0
    )
    local language
    for language in C CXX CUDA; do options+=("-DCMAKE_${language}_COMPILER_LAUNCHER=$ccache"); done
    cmake -S "$src" -B "$build" -G Ninja "${options[@]}" > "$out/cmake.log" 2>&1
}
build_rest() { # in its own shell, which ends at the first variant that does not build
    trap 'touch "$work/built"' EXIT
    local jobs=$(($(nproc) * 3 / 4)) name
    # Runs go on meanwhile; where only times are taken, they wait for the compiler.
    if [ "$parts" = speed ] || [ "$jobs" -lt 1 ]; then jobs=$(nproc); fi
    for name in "${missing[@]}"; do
        [ "$name" = patched ] || build_variant "$name" "$jobs"
    done
}

say "series $series_digest"
say "source $source_digest, architecture $arch"
rm -f "$work/built"
build_pid=''
if [ ${#missing[@]} -gt 0 ]; then
    : > "$out/build.log"
    # A run takes a binary as soon as it is there, so that one of something else must be gone.
    for name in "${missing[@]}"; do rm -f "$bin/$name.of" "$bin/$name"; done
    lay_out patched
    # What fails in `a || b` does not end the functions that a calls; in the background it does.
    spawn configure
    wait $! || die 3 "cmake failed, see $out/cmake.log"
    say configured
    if [ "${missing[0]}" = patched ]; then
        spawn build_variant patched "$(nproc)"
        wait $! || die 3 "the series did not build, see $out/build.log"
    fi
    spawn build_rest
    build_pid=$!
else
    touch "$work/built"
fi

# --- the parts ---

if [ -n "$model_pid" ]; then
    wait "$model_pid" || die 3 "the models were not written: $(tail -n 1 "$out/model.log")"
    say "models written"
fi
cat "$model" > /dev/null # into the page cache: a run should not time the disk

options=(--bin "$bin" --model "$model" --out "$out" --parts "$parts" --built "$work/built" --scratch "$work")
options+=(--at-once "$at_once")
[ -z "$extra_patch" ] || options+=(--extra)
options+=(--source "$source_digest" --series "$series_digest" --arch "$arch" --command "$called")
if [ "$logical" = yes ]; then
    cc -shared -fPIC -O2 -o "$work/logical_gpus.so" "$here/../logical_gpus.c" -ldl ||
        die 3 "logical_gpus.c did not compile"
    options+=(--logical "$work/logical_gpus.so")
fi
rc=0
python3 "$here/proof.py" "${options[@]}" --seconds "$((deadline - ($(date +%s) - start)))" || rc=$?
if [ -n "$build_pid" ] && ! wait "$build_pid"; then
    echo "proof: a variant did not build, see $out/build.log" >&2
    [ "$rc" -ne 0 ] || rc=1
fi
cd "$out"
shopt -s nullglob
tar czf logs.tar.gz logs ./*.log
say "done, exit code $rc"
exit "$rc"
