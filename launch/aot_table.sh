#!/usr/bin/env bash
# The table of docs/results/aot.md: one report per program and slice in docs/results/aot, then all of
# them as Markdown. Reports that exist are kept, so that the script continues where it stopped;
# delete one to compile it again (minutes each).
#   bash launch/aot_table.sh                     all
#   bash launch/aot_table.sh d30_v5p-4x4x8       the named ones
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/python.sh
mkdir -p docs/results/aot/sample_by_batch

report() { # NAME CONFIG TOPOLOGY [OPTIONS]
  local name="$1_${3//:/-}" file
  file="docs/results/aot/$name.json"
  if [ ${#only[@]} -gt 0 ] && [[ " ${only[*]} " != *" $name "* ]]; then return; fi
  [ -e "$file" ] && return
  echo "var-jax aot --config $2 --topology $3 ${*:4} --json $file"
  python -m var_jax aot --config "$2" --topology "$3" "${@:4}" --json "$file" || [ $? -eq 1 ] # 1: it does not fit, and the report says so
}

only=("$@")
bf16=--config.transformer.gradient_dtype=bfloat16 # gradients are summed over chips in it
# Reduce-scatters along one ring of chips stay what they are: d30's bound is 1.7 points above that of
# `auto`, which takes 2 replicas.
report d30 configs/imagenet256.py:d30 v6e:16x16 $bf16 --config.mesh.data=256 --config.mesh.replicas=16
# 350 epochs at batch 2048; the other batches and schedules are the configs' own, which are the published ones.
report d64 configs/imagenet256.py:d64 v5p:8x8x16 --config.batch_size=2048 --config.steps=218949 $bf16
# The same slice and batch at a quarter of the depth: compile time does not follow it.
report d16 configs/imagenet256.py:d16 v5p:8x8x16 --config.batch_size=2048 $bf16
# Eight images per chip, then fewer, and weights of half the bytes.
sample="configs/imagenet256.py:d30 v5e:4x4 --step sample --config.transformer.param_dtype"
report d30-sample $sample=bfloat16
report sample_by_batch/d30-sample_bfloat16_16 $sample=bfloat16 --images 16
report sample_by_batch/d30-sample_int8_16 $sample=int8 --images 16
report sample_by_batch/d30-sample_int8_128 $sample=int8 --images 128
# Unrolled convolutions: 26 CPU-minutes with the compiler's own options, the others take two or three. Without
# space-to-batch images stay whole, of which the page says more.
whole=--config.mesh.compiler_options=xla_tpu_run_space_to_batch=false,xla_tpu_run_space_to_batch_on_new_platforms=false
report tokenizer configs/imagenet256.py:tokenizer v5e:16x16 $whole
report tokenizer configs/imagenet256.py:tokenizer v5e:4x4 --config.batch_size=48 $whole # three per chip too
for slice in v5p:4x4x8 v5e:16x16 v6e:16x16; do
  for depth in 30 24 16 20; do report d$depth configs/imagenet256.py:d$depth $slice $bf16; done
  report d36 configs/imagenet512.py:d36 $slice $bf16
done
report d16 configs/imagenet256.py:d16 tpu7x:4x4x4 $bf16 # 64 chips of two devices each
report dit-xl-2 configs/imagenet256_rivals.py:dit_xl_2 v5p:4x4x8
report llamagen-xxl configs/imagenet256_rivals.py:llamagen_xxl v5p:4x4x8
python -c 'from var_jax.perf import aot_lines as table; print(table.markdown("docs/results/aot"))'
