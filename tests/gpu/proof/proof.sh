#!/usr/bin/env bash
# proof.sh --out DIR [OPTION VALUE]...
#
# Proves the carried patch series on GPUs, in one call of under 9 minutes: builds what the parts need, writes the
# synthetic models meanwhile, runs the parts, judges. README.md beside it says what each part shows.
#
#   --out DIR            gets summary.json, the builds' logs and logs.tar.gz, which holds every run's output
#   --source TARBALL     the pinned llama.cpp tree; not needed where no binary is missing
#   --patches DIR        the series: the file `series`, and the patches that it names; likewise
#   --parts LIST         of validate,ties,identity,drift,negative,pressure,speed,explain,router; all but router by default
#   --arch NUMBER        CUDA architecture to compile for (90)
#   --deadline SECONDS   time for everything (540); a part without time left fails
#   --work DIR           trees, build folder, models, dumps (/tmp/proof)
#   --bin DIR            the binaries (WORK/bin); those that are there are not built again
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
# 3: a program is missing, or the series did not build.
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
}

# --- options ---

source_tar='' patches='' out='' work=/tmp/proof bin='' arch=90 deadline=540 at_once=5 logical=no
parts=validate,ties,identity,drift,negative,pressure,speed,explain
model='' writer=$here/../../.. debug_patch=$here/debug-logits.patch extra_patch='' ccache=''
while [ $# -gt 0 ]; do
    if [ "$1" = --help ]; then
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
for part in "${part_names[@]}"; do
    more=$(needs "$part")
    needed+="$more "
done
parts=$(IFS=, && echo "${part_names[*]}")

work=$(mkdir -p "$work" && cd "$work" && pwd)
out=$(mkdir -p "$out" && cd "$out" && pwd)
bin=${bin:-$work/bin}
bin=$(mkdir -p "$bin" && cd "$bin" && pwd)
missing=()
for name in patched extra patched-dump broken-copy broken-pointer broken-kv stock stock-dump extra-dump; do
    if [[ $needed = *" $name "* && ! -x $bin/$name ]]; then missing+=("$name"); fi
done
if [ ${#missing[@]} -gt 0 ]; then
    [[ $source_tar && $patches ]] || wrong "$bin has no ${missing[*]}: give --source and --patches"
    file --source "$source_tar"
    file --patches "$patches/series"
    for program in cmake ninja nvcc c++ ${ccache:+"$ccache"}; do
        [ -n "$(command -v "$program")" ] || die 3 "$program is not installed, or not in PATH"
    done
fi

export PYTHONPATH=$writer${PYTHONPATH:+:$PYTHONPATH}
python3 -c 'import numpy, llama_images.validators' 2> /dev/null ||
    wrong "python3 finds no numpy, or no llama_images: give --writer DIR"
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

src=$work/src build=$work/build

series() { # the patches of the series, in order
    sed 's/#.*//' "$patches/series" | awk -v folder="$patches" 'NF { print folder "/" $1 }'
}
patches_of() { # variant: what is applied to the pinned tree
    case $1 in patched* | extra* | broken-*) series ;; esac
    case $1 in *-dump | broken-*) echo "$debug_patch" ;; esac
    case $1 in
        extra*) echo "$extra_patch" ;;
        broken-*) echo "$here/$1.patch" ;;
    esac
}
lay_out() { # variant: change the source tree into it; a file that stays the same keeps its time stamp
    local list file
    mapfile -t list < <(patches_of "$1")
    rm -rf "$work/next"
    while read -r file; do
        mkdir -p "$work/next/$(dirname "$file")"
        cp "$work/stock/$file" "$work/next/$file"
    done < "$work/touched"
    [ ${#list[@]} -eq 0 ] || python3 "$here/apply_patch.py" "$work/next" "${list[@]}"
    while read -r file; do
        cmp -s "$work/next/$file" "$src/$file" || cp "$work/next/$file" "$src/$file"
    done < "$work/touched"
}
build_variant() { # variant jobs
    lay_out "$1"
    ninja -C "$build" -j "$2" llama-diffusion-cli >> "$out/build.log" 2>&1
    cp "$build/bin/llama-diffusion-cli" "$bin/$1.part"
    mv "$bin/$1.part" "$bin/$1"
    say "built $1"
}
unpack() { # the pinned tree, twice: one to build, one to go back to
    local file
    rm -rf "$src" "$work/stock"
    mkdir -p "$src"
    # Time stamps of now: objects of an earlier call may be of another variant.
    tar xmf "$source_tar" -C "$src" || wrong "--source: $source_tar can't be unpacked"
    if [ ! -e "$src/CMakeLists.txt" ]; then
        src=$(find "$src" -mindepth 2 -maxdepth 2 -name CMakeLists.txt -printf '%h\n' -quit)
        [ -n "$src" ] || wrong "--source: $source_tar holds no tree with a CMakeLists.txt"
    fi
    cp -r "$src" "$work/stock"
    for name in patched "${missing[@]}"; do patches_of "$name"; done | sort -u > "$work/patch-list"
    while read -r file; do
        [ -f "$file" ] || wrong "--patches: $file is no file"
        sed -n 's|^+++ b/||p' "$file"
    done < "$work/patch-list" | sort -u > "$work/touched"
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

rm -f "$work/built"
build_pid=''
if [ ${#missing[@]} -gt 0 ]; then
    : > "$out/build.log"
    unpack
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
