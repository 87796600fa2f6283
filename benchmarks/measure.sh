#!/usr/bin/env bash
# Make the records of benchmarks/results anew: all of them, or those that are named.
#
#     bash benchmarks/measure.sh PHOTOGRAPHS [NAME ...]
#     python benchmarks/tables.py
#
# PHOTOGRAPHS is a Parquet file of photographs with both maps and 81 semantic classes. Takes about an hour on one idle
# core; engines of labelling and streams need two. Records of a GPU, of estimates and of the study are made apart.
set -eu
cd "$(dirname "$0")/.."
photographs=$1
shift
selected=" $* "
labelled=runs/benchmarks/labelled

known=" "

measure() {
    local name=$1 script=$2
    shift 2
    known+="$name "
    if [[ $selected == "  " || $selected == *" $name "* ]]; then
        echo "== $name: $script.py $*"
        python "benchmarks/$script.py" "$@" --output "benchmarks/results/$name.json"
    fi
}

if [[ $selected == "  " || $selected == *" loading-"* ]]; then
    mkdir -p "$labelled"
    { echo background; seq -f "class %g" 80; } > "$labelled/names.txt"
    for stride in 2 4; do
        c2fmae label "$photographs" "$labelled/stride$stride" --labeller annotations --layout columns \
            --class_names "$labelled/names.txt" --label_stride $stride
    done
fi

ratios="1.0 0.25 0.125"
measure step-float32 pretraining_step --prediction_ratios $ratios --rounds 5
measure step-bfloat16 pretraining_step --dtype bfloat16 --prediction_ratios $ratios --rounds 5
measure step-memory pretraining_step --memory --prediction_ratios 1.0 0.25
measure step-operators pretraining_step --batch_size 2 --dtype bfloat16 --counts --compile --prediction_ratios 0.25
measure step-compiled pretraining_step --batch_size 8 --compile --prediction_ratios 0.25 --rounds 4
measure features encoder_inference --rounds 8
measure loading-256 data_pipeline --dataset_name "$labelled/stride2"
measure loading-256-stride4 data_pipeline --dataset_name "$labelled/stride4"
measure loading-500 data_pipeline --dataset_name "$labelled/stride2" --photograph_size 500 375
measure loading-4000 data_pipeline --dataset_name "$labelled/stride2" --photograph_size 4000 3000 --rows 32 --batch_size 32 --rounds 5
measure workers trainer_throughput --dataset_name "$photographs" --rounds 2 --steps 20
measure streams streams
measure growth growth --batch_sizes 32 128 --image_sizes 224 448 672 --classes 20 133 1000 --depths 1 4 --widths 192 512
measure start_up start_up
measure labelling-engines labelling --source "$photographs" --images 600 --rounds 1
measure labelling-growth labelling --source "$photographs" --images 250 500 1000 --engines "1 process" --rounds 1
measure memory-run memory --steps 2000
measure memory-peaks memory --peaks --sizes tiny small base large

for name in $selected; do
    if [[ $known != *" $name "* ]]; then
        echo "measure.sh: no record $name; expected some of:$known" >&2
        exit 2
    fi
done
