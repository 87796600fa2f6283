#!/usr/bin/env bash
# Measures pre-training steps and labelling on a GPU, in at most 12 minutes on an H200. Each part has its own time
# limit, so that one that fails does not cost the others. Results, logs and summary.txt are in the folder.
#
#     benchmarks/gpu.sh runs/gpu
#     benchmarks/gpu.sh runs/gpu --dry     # every part on a CPU at tiny sizes
#     PARTS="base_256 labelling" benchmarks/gpu.sh runs/gpu
set -uo pipefail
folder=${1:?"the folder for the results"}
dry=${2:-}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-python}
mkdir -p "$folder"
: > "$folder/summary.txt"

if [ "$dry" = --dry ]; then
    common=(--device cpu --dtype bfloat16 --image_size 32 --classes 5 --matrix_size 256 --compile_backend eager)
    base=tiny large=tiny small_batch=2 large_batch=3 rounds=1 limit_times=10
    labelling=(--tiny --images 4 --batch_sizes 2 --device cpu)
    pretraining=(--use_cpu true --bf16 false --torch_compile_backend eager --max_steps 2)
else
    common=(--device cuda --dtype bfloat16)
    base=base large=large small_batch=256 large_batch=1024 rounds=5 limit_times=1
    labelling=(--images 256 --batch_sizes 8 32 --threads 12 --device cuda)
    pretraining=(--torch_compile_mode reduce-overhead --max_steps 40)
fi

# part NAME SECONDS COMMAND...
part() {
    local name=$1 seconds=$(($2 * limit_times)) started=$SECONDS
    shift 2
    [[ -z ${PARTS:-} || " $PARTS " == *" $name "* ]] || return 0
    timeout --kill-after 5 "$seconds" "$python" "$@" > "$folder/$name.log" 2>&1
    local code=$?
    echo "$name: exit code $code after $((SECONDS - started)) s of at most $seconds" | tee -a "$folder/summary.txt"
}

# step NAME SECONDS SIZE BATCH OPTIONS...
step() {
    local name=$1 seconds=$2 size=$3 batch=$4
    shift 4
    part "$name" "$seconds" "$here/pretraining_step.py" --size "$size" --batch_size "$batch" --rounds "$rounds" \
        --prediction_ratios 0.25 "${common[@]}" "$@" --output "$folder/$name.json"
}

step base_256 50 $base $small_batch --prediction_ratios 1.0 0.25
step base_256_compiled 80 $base $small_batch --compile
step base_256_graphs 70 $base $small_batch --compile --compile_mode reduce-overhead
step base_1024 40 $base $large_batch
step base_1024_graphs 70 $base $large_batch --compile --compile_mode reduce-overhead
step large_256 40 $large $small_batch
step large_256_graphs 90 $large $small_batch --compile --compile_mode reduce-overhead
step large_1024_graphs 80 $large $large_batch --compile --compile_mode reduce-overhead
step base_256_profile 30 $base $small_batch --profile
step base_256_counts 30 $base $small_batch --counts
part labelling 50 "$here/labelling_model.py" "${labelling[@]}" --output "$folder/labelling.json"
PYTHONPATH=$here${PYTHONPATH:+:$PYTHONPATH}
export PYTHONPATH
part rows 20 -c 'import sys, datasets, memory
datasets.Dataset.from_list(memory.make_rows(128)).to_parquet(sys.argv[1])' "$folder/rows.parquet"
part pretrain 50 -m c2fmae_hf pretrain --recipe demo --dataset_name "$folder/rows.parquet" --max_eval_samples 8 \
    --output_dir "$folder/pretrain" --num_drawn 0 --gradient_accumulation_steps 2 --save_strategy no "${pretraining[@]}"
