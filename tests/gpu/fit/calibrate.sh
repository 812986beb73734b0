#!/usr/bin/env bash
# BIN=llama-diffusion-cli MODEL=full.gguf OUT=dir [SHIM=logical_gpus.so] calibrate.sh [NAME...]
#
# Measures what each setting takes on each of two GPUs: the CLI's own account of its buffers (-lv 5), and the used
# memory of every GPU, sampled every 100 ms by nvidia-smi. About 100 s. Names choose settings; default: all, in the
# order of their worth, so that a run that is cut off has the best ones. OUT gets, for each setting, NAME.log (command
# in its first line, exit code in its last) and NAME.memory.csv; and peaks.tsv, machine.*, one for all.
set -u
: "${BIN:?}" "${MODEL:?}" "${OUT:?}"
mkdir -p "$OUT"
ON=(--diffusion-kv-cache on --diffusion-gpu-sampling on --diffusion-gpu-sample-reduce on)
LONG=$(awk 'BEGIN { for (i = 0; length(s) < 1780; i++) s = s (i * i % 7919); print substr(s, 1, 1780) }') # a digit is a token
export CUDA_DEVICE_ORDER=PCI_BUS_ID
began=$SECONDS

# the machine, once
ask() { # file command...
    "${@:2}" > "$OUT/$1" 2>> "$OUT/machine.err"
}
: > "$OUT/machine.err"
ask machine.xml nvidia-smi -q -x
ask machine.topo nvidia-smi topo -m
ask machine.p2p nvidia-smi topo -p2p r
ask machine.csv nvidia-smi --format=csv,nounits \
    --query-gpu=index,name,compute_cap,memory.total,memory.used,memory.free,memory.reserved,pcie.link.gen.current,pcie.link.gen.max,pcie.link.width.current,pcie.link.width.max,driver_version,mig.mode.current,compute_mode
ask machine.version nvidia-smi --version
ask version.txt "$BIN" --version
cat "$MODEL" > /dev/null # into the page cache

sampler=''
trap '[ -z "$sampler" ] || kill "$sampler" 2> /dev/null' EXIT
[ -s "$OUT/peaks.tsv" ] || printf 'setting\tvisible\tlimit_mib\texit\tseconds\tgpu\tbefore_mib\tpeak_mib\n' > "$OUT/peaks.tsv"

measure() { # name visible limits-or-none option...
    local name=$1 visible=$2 limit=$3; shift 3
    local csv=$OUT/$name.memory.csv log=$OUT/$name.log start=$SECONDS rc=0 words=()
    local more=()
    if [ "$limit" != none ]; then
        local cards=${limit//[^,]/}
        more=(LD_PRELOAD="$SHIM" LOGICAL_GPUS=$((${#cards} + 1)) LOGICAL_GPU_MIB="$limit")
    fi
    nvidia-smi --query-gpu=timestamp,index,memory.used --format=csv,noheader,nounits -lms 100 > "$csv" &
    sampler=$!
    sleep 0.6 # some samples of the idle machine
    for word in "$@"; do words+=("${word:0:60}"); done
    echo "$ CUDA_VISIBLE_DEVICES=$visible ${more[*]:-} $BIN -m $MODEL ${words[*]} (long prompt: ${#LONG} digits)" > "$log"
    date +'# started %Y/%m/%d %H:%M:%S.%N' >> "$log"
    env CUDA_VISIBLE_DEVICES="$visible" ${more[@]+"${more[@]}"} timeout 60 "$BIN" -m "$MODEL" -ngl 99 --seed 1 \
        --diffusion-eb-max-steps 3 -lv 5 "${ON[@]}" "$@" < /dev/null >> "$log" 2>&1 || rc=$?
    printf '\n[exit code %s]\n' "$rc" >> "$log"
    sleep 0.2
    kill "$sampler" 2> /dev/null; wait "$sampler" 2> /dev/null; sampler=''
    for gpu in 0 1; do
        awk -F', *' -v gpu="$gpu" -v OFS='\t' -v s="$name" -v v="$visible" -v l="$limit" -v rc="$rc" -v t="$((SECONDS - start))" \
            '$2 == gpu { if (first == "") first = $3; if ($3 > peak) peak = $3 } END { print s, v, l, rc, t, gpu, first, peak }' \
            "$csv" >> "$OUT/peaks.tsv"
    done
    tail -n 2 "$OUT/peaks.tsv"
}

setting() {
    case $1 in
        default-256)  measure "$1" 0,1 none -p hello -n 256 ;;
        ts73-512)     measure "$1" 0,1 none -p hello -n 512 -ts 7,3 ;;
        ts37-1536)    measure "$1" 0,1 none -p "$LONG" -n 1536 -ts 3,7 ;;
        one-2048)     measure "$1" 0   none -p hello -n 2048 ;;
        ncmoe10-256)  measure "$1" 0,1 none -p hello -n 256 --n-cpu-moe 10 ;;
        # the emulated 16 GB cards: the write-up's choice with a long prompt, and one that must fail on the second card
        16g-ts73-1536) measure "$1" 0,1 16311,16311 -p "$LONG" -n 1536 -ts 7,3 ;;
        16g-one-moe)  measure "$1" 0   16311 -p hello -n 256 --n-cpu-moe 24 ;;
        16g-ts11-32768) measure "$1" 0,1 16311,16311 -p hello -n 32768 -ts 1,1 ;;
        *) echo "calibrate: no setting $1" >&2; return 2 ;;
    esac
}
names=("$@")
[ $# -gt 0 ] || names=(default-256 ts37-1536 ts73-512 one-2048 ncmoe10-256)
if [ $# -eq 0 ] && [ -n "${SHIM:-}" ]; then names+=(16g-ts73-1536 16g-one-moe 16g-ts11-32768); fi
for name in "${names[@]}"; do setting "$name"; done
echo "calibrate: $((SECONDS - began)) s"
