#!/bin/bash
#SBATCH --job-name=sweep-1
#SBATCH --nodes=1
#SBATCH --cpus-per-task=1
#SBATCH --time=00:20:00
#SBATCH --output=job-%j.log
#SBATCH --no-requeue

cd '/home/u/my work' || exit 98
python3 sweep.py
