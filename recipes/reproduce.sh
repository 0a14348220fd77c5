#!/usr/bin/env bash
# The paper's main comparison (arXiv:2507.17075) at one size, from nothing to the table:
#   bash recipes/reproduce.sh SIZE GPUS [--dry]      SIZE is 7b, 14b or 32b; GPUS how many cards of 80 GB there are
# It plans, trains full fine-tuning on several cards and LoRA on one, samples, judges, solves and compares, in runs/paper_SIZE
# (another folder: OUT=DIR). The same command resumes a run. --dry prints the plan and the commands, and does no more.
# The end of the plan lists what this machine lacks: weights, gated prompts, questions, a judge.
set -euo pipefail

fail() {
  echo "reproduce.sh: $1" >&2
  exit 2
}

usage="bash recipes/reproduce.sh 7b|14b|32b GPUS [--dry]"
[ $# -ge 2 ] && [ $# -le 3 ] || fail "it takes a size and a number of GPUs: $usage"
size=$1 gpus=$2 dry=${3:-}
[[ $gpus =~ ^[1-9][0-9]*$ ]] || fail "the number of GPUs is $gpus: $usage"
[ -z "$dry" ] || [ "$dry" = --dry ] || fail "there is no option $dry: $usage"

# The fewest cards of 80 GB that hold full fine-tuning, as `lowtax run --dry-run` has them, and where the optimiser is then.
lora=() offload=none
case $size in
  7b) cards=2 ;;
  14b) cards=4 ;;
  32b) cards=2 offload=cpu lora=(--gradient-checkpointing) ;;
  *) fail "there is no size $size: $usage" ;;
esac
[ "$gpus" -ge "$cards" ] || fail "full fine-tuning of $size takes $cards cards of 80 GB, and there are $gpus (docs/guides/scaling.md)."
command -v lowtax >/dev/null || fail "lowtax is not installed: pip install 'lowtax[vllm,deepspeed,eval]'."

recipe=$(dirname "$0")/paper_$size.yaml
out=${OUT:-runs/paper_$size}

run() {
  echo "+ $*"
  [ -n "$dry" ] || "$@"
}

# ZeRO-3; the values that are "auto" lowtax fills from the recipe.
zero3() {
  cat <<JSON
{
  "train_batch_size": "auto",
  "train_micro_batch_size_per_gpu": "auto",
  "bf16": {"enabled": "auto"},
  "zero_optimization": {
    "stage": 3,
    "offload_optimizer": {"device": "$offload"},
    "overlap_comm": true,
    "contiguous_gradients": true,
    "stage3_gather_16bit_weights_on_model_save": true
  }
}
JSON
}

lowtax run "$recipe" --dry-run

export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
config=$out.zero3.json # beside the study, which is a folder of lowtax alone
if [ -n "$dry" ]; then
  echo "+ cat > $config" && zero3
else
  mkdir -p "$(dirname "$out")" && zero3 >"$config"
fi
run deepspeed --num_gpus "$cards" --no_local_rank --module lowtax train "$recipe" --out "$out" --arm full \
  --gradient-checkpointing --ds_config "$config"
run lowtax train "$recipe" --out "$out" --arm lora_r1_up_middle ${lora[@]+"${lora[@]}"}
run lowtax run "$recipe" --out "$out"
