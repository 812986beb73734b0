#!/bin/bash
# The proofs of the carried patch series on two real GPUs, in one call of under 9 minutes.
#
#   proof.sh --source TARBALL --patches DIR --out DIR [--work DIR] [--arch 90] [--parts LIST] [--deadline S]
#            [--debug-patch FILE] [--extra-patch FILE] [--model FILE] [--writer DIR] [--bin DIR] [--ccache PROGRAM]
#            [--logical yes] [--at-once N]
#
# Needs nvcc, cmake, ninja, a C++ compiler, python3 with numpy; PyTorch only for the part "pressure".
# TARBALL unpacks to the pinned llama.cpp tree; DIR holds `series` and the patches it names.
# --writer: PYTHONPATH that holds the packages llama_images and gguf (writes the synthetic models);
# --model:  use this full model instead (tiny.gguf beside it).  --bin: binaries that an earlier call left there are not built again.
# --logical yes: two devices on one card (logical_gpus.c), where there is no second one.
# --extra-patch: one more build, with this on top (part router), and timed beside the others (--parts speed).
# Parts (default: all): validate ties identity negative pressure speed explain
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
source_tar='' patches='' out='' work=/tmp/proof arch=90 parts=validate,ties,identity,negative,pressure,speed,explain
deadline=540 debug_patch=$here/debug-logits.patch model='' writer='' bin='' extra_patch='' ccache='' logical='' at_once=5
while [ $# -gt 0 ]; do
    [ $# -ge 2 ] || { echo "proof: $1 needs a value" >&2; exit 2; }
    case $1 in
        --source) source_tar=$2 ;;  --patches) patches=$2 ;;  --out) out=$2 ;;  --work) work=$2 ;;
        --arch) arch=$2 ;;  --parts) parts=$2 ;;  --deadline) deadline=$2 ;;  --debug-patch) debug_patch=$2 ;;
        --extra-patch) extra_patch=$2 ;;  --ccache) ccache=$2 ;;  --logical) logical=$2 ;;  --at-once) at_once=$2 ;;  --model) model=$2 ;;  --writer) writer=$2 ;;  --bin) bin=$2 ;;
        *) echo "proof: unknown option $1" >&2; exit 2 ;;
    esac
    shift 2
done
[ -n "$out" ] || { echo "proof: --out is missing" >&2; exit 2; }
start=$(date +%s)
mkdir -p "$work" "$out"
bin=${bin:-$work/bin}
mkdir -p "$bin"
say() { echo "[$(( $(date +%s) - start )) s] $*"; }

# --- the model, while the compiler runs ---
model_pid=''
if [ -z "$model" ]; then
    model=$work/full.gguf
    if [ ! -e "$model" ]; then
        [ -n "$writer" ] || { echo "proof: give --model FILE or --writer DIR" >&2; exit 2; }
        PYTHONPATH=$writer python3 - "$model" > "$out/model.log" 2>&1 <<'PY' &
import sys, time
from pathlib import Path
from llama_images.synthetic import write_model
t = time.time()
tiny = Path(sys.argv[1]).with_name("tiny.gguf")
print(write_model("tiny", tiny))
# exact ties: every loud word once more, further up, where the sampler's reduction meets it earlier
import shutil
from gguf import GGUFReader
from llama_images.model_shape import loud_tokens
ties = tiny.with_name("ties.gguf")
shutil.copy(tiny, ties)
rows = next(t for t in GGUFReader(ties, "r+").tensors if t.name == "token_embd.weight").data
loud = set(loud_tokens(len(rows)))
for word in sorted(loud):
    copy = (word // 256 + 1) * 256 + word % 256 // 2
    if copy < len(rows) and not {copy, copy - 1} & loud:
        rows[copy] = rows[word]
rows.flush()
print(write_model("full", Path(sys.argv[1])), f"{time.time() - t:.1f} s")
PY
        model_pid=$!
    fi
fi

# --- the binaries: one build folder, so that every variant after the first compiles only what differs ---
src=$work/src build=$work/build
variant() { # name jobs
    ninja -C "$build" -j "$2" llama-diffusion-cli >> "$out/build.log" 2>&1
    cp "$build/bin/llama-diffusion-cli" "$bin/$1.part" && mv "$bin/$1.part" "$bin/$1"
    say "built $1"
}
changed() { sed -n 's|^+++ b/||p' "$@" | sort -u; }
put() { # from-folder files...: restore files with a new time stamp
    local from=$1 f; shift
    for f in "$@"; do cp "$from/$f" "$src/$f"; done
}
series() { sed 's/#.*//' "$patches/series" | awk 'NF {print $1}'; }
edit() { # file sed-expression: an edit that changes nothing is an error
    cp "$src/$1" "$work/before"
    sed -i "$2" "$src/$1"
    ! cmp -s "$work/before" "$src/$1" || { echo "proof: the negative control does not apply to $1" >&2; exit 1; }
}
more_variants() {
    local j=$(( $(nproc) * 3 / 4 )) dg=src/models/diffusion-gemma.cpp cu=ggml/src/ggml-cuda/diffusion-sampling.cu
    if [ "$parts" = speed ]; then # nothing else is run, and it waits for the compiler
        if [ -n "$extra_patch" ]; then
            python3 "$here/apply_patch.py" "$src" "$extra_patch"
            variant extra "$(nproc)"
        fi
        put "$work/stock" $(changed "${files[@]}" ${extra_patch:+"$extra_patch"})
        variant stock "$(nproc)"
        return
    fi
    python3 "$here/apply_patch.py" "$src" "$debug_patch"
    variant patched-dump "$j"
    # negative controls: a skipped copy, a wrong pointer, and K/V that no validator looks at
    edit $dg 's|ggml_build_forward_expand(gf, sc_cpy);|(void) sc_cpy;|'
    variant broken-copy "$j"; put "$work/patched" $dg
    edit $cu 's|logits + (size_t) row \* n_vocab;|logits + (size_t) (row > 0 ? row - 1 : 0) * n_vocab;|'
    variant broken-pointer "$j"; put "$work/patched" $cu
    edit $dg 's|ggml_build_forward_expand(gf, ggml_cpy(ctx0, Vcur, sv));|if (il != n_layer - 1) { & }|'
    variant broken-kv "$j"; put "$work/patched" $dg
    put "$work/stock" $(changed "${files[@]}" "$debug_patch")
    variant stock "$j"
    python3 "$here/apply_patch.py" "$src" "$debug_patch"
    variant stock-dump "$j"
    if [ -n "$extra_patch" ]; then
        put "$work/patched" $(changed "${files[@]}" "$debug_patch")
        python3 "$here/apply_patch.py" "$src" "$debug_patch" "$extra_patch"
        variant extra-dump "$j"
    fi
}
names="patched patched-dump broken-copy broken-pointer broken-kv stock stock-dump${extra_patch:+ extra-dump}"
missing=''; for n in $names; do [ -x "$bin/$n" ] || missing=1; done
rm -f "$work/built"
if [ -n "$missing" ]; then
    rm -rf "$src"; mkdir -p "$src"
    tar xf "$source_tar" -C "$src"
    [ -e "$src/CMakeLists.txt" ] || src=$(dirname "$(find "$src" -maxdepth 2 -name CMakeLists.txt | head -1)")
    files=(); while read -r p; do files+=("$patches/$p"); done < <(series)
    cp -r "$src" "$work/stock.new"; rm -rf "$work/stock"; mv "$work/stock.new" "$work/stock"
    python3 "$here/apply_patch.py" "$src" "${files[@]}"
    rm -rf "$work/patched"; cp -r "$src" "$work/patched"
    cmake -S "$src" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF -DGGML_CUDA=ON \
        -DCMAKE_CUDA_ARCHITECTURES="$arch" -DGGML_CUDA_NCCL=OFF -DGGML_CCACHE=OFF -DCMAKE_CUDA_RUNTIME_LIBRARY=Shared \
        ${ccache:+-DCMAKE_C_COMPILER_LAUNCHER="$ccache" -DCMAKE_CXX_COMPILER_LAUNCHER="$ccache" -DCMAKE_CUDA_COMPILER_LAUNCHER="$ccache"} \
        -DLLAMA_OPENSSL=OFF \
        -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_APP=OFF \
        -DLLAMA_BUILD_UI=OFF -DLLAMA_BUILD_COMMIT=10a2613aa -DLLAMA_BUILD_NUMBER=0 > "$out/cmake.log" 2>&1
    say configured
    variant patched "$(nproc)"
    # a plain background command: set -e ends it at the first variant that does not build
    ( trap 'touch "$work/built"' EXIT; more_variants ) &
    build_pid=$!
else
    touch "$work/built"; build_pid=''
fi

if [ -n "$model_pid" ]; then wait "$model_pid" || { tail -3 "$out/model.log" >&2; exit 1; }; say "model written"; fi
cat "$model" > /dev/null  # into the page cache: a run should not time the disk

if [ -n "$logical" ]; then cc -shared -fPIC -O2 -o "$work/logical_gpus.so" "$here/../logical_gpus.c" -ldl; fi

rc=0
python3 "$here/proof.py" --bin "$bin" --model "$model" --out "$out" --parts "$parts" --built "$work/built" \
    --scratch "$work" --at-once "$at_once" ${logical:+--logical "$work/logical_gpus.so"} --seconds "$(( deadline - ( $(date +%s) - start ) ))" || rc=$?
[ -z "$build_pid" ] || wait "$build_pid" || { echo "proof: a variant did not build, see build.log" >&2; rc=1; }
(cd "$out" && tar czf logs.tar.gz $(ls -d logs *.log 2> /dev/null)) || true
say "done, exit code $rc"
exit $rc
