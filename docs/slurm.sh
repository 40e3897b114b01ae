#!/bin/bash
# Pretraining on all GPUs of several nodes under SLURM.
#
#   sbatch --nodes=3 docs/slurm.sh recipes/AudioSet/pretrain/train.py \
#       recipes/AudioSet/pretrain/hparams/ssast.yaml \
#       --training ssast_pretrain_base --data_folder /shared/AudioSet \
#       --librispeech_folder /shared/LibriSpeech \
#       --batch_size 1 --output_folder /shared/runs/base \
#       --precision bf16 --compile
#
# The nodes share the folders of data and output. A job that is cut off, by its
# time limit or by a node that fails, is put into the queue again and resumes
# from its last checkpoint.
#SBATCH --job-name=ssast
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append

set -euo pipefail
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
first=${hosts%%$'\n'*}
# One launcher a node; it starts a process for each GPU. The workers that read
# audio share the cores: num_workers of the YAML counts those of one process.
srun torchrun \
    --nnodes="$SLURM_NNODES" \
    --nproc_per_node="${SLURM_GPUS_ON_NODE:-8}" \
    --rdzv_id="$SLURM_JOB_ID" \
    --rdzv_backend=c10d \
    --rdzv_endpoint="$first:29500" \
    --max_restarts=0 \
    "$@"
