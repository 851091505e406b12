#!/usr/bin/env bash
# The recorded comparisons, the most informative first, on Fashion-MNIST's original files in the folder that is given.
# Each command resumes where its records stop; run the script in as many processes as there are cores.
# A comparison has one grid, so every command has a folder of its own, NAME-NUMBER; the records are then collected in NAME.
#
#   bash benchmarks/comparisons.sh /usr/share/datasets/fashion-mnist
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=1

source=$1
number=0

run() {
  local name=$1 results=benchmarks/results
  number=$((number + 1))
  asymcl-compare --source "$source" --classifier-loss cross_entropy,logit_adjusted --out $results --name "$name-$number" "${@:2}"
  mkdir -p $results/"$name"/records
  cp $results/"$name-$number"/records/*.json $results/"$name"/records/
}

# learning rates, by Adam and by SGD
methods=CE,CE-adjusted,CL,FCL,ACL,AFCL,extra
run tuning --epochs 8 --proportions 90:10 --methods $methods --eta 120 --lr 0.001,0.003,0.01 --seeds 100,101
run tuning --epochs 8 --proportions 90:10 --methods $methods --eta 120 --optimizer sgd --lr 0.01,0.03,0.1,0.3,1 --seeds 100,101

# the grid of eta and gamma, and some of its points with the other averaging
for proportions in 90:10 98:2; do
  run grid --epochs 8 --proportions $proportions --methods AFCL --eta 0,10,60,120,300 --gamma 0,1,2,4,7,10 --seeds 10,
  run grid --epochs 8 --proportions $proportions --averaging batch --methods CL,ACL --eta 10 --seeds 10,
  run grid --epochs 8 --proportions $proportions --averaging batch --methods FCL,AFCL --eta 120 --gamma 2 --seeds 10,
done

# the scenarios, each method at the settings chosen from the above
for proportions in 98:2 90:10 70:30 95:5 60:40 80:20; do
  run scenarios --epochs 8 --proportions $proportions --methods CL,CE-adjusted,ACL --lr 0.001 --eta 10 --seeds 5
  run scenarios --epochs 8 --proportions $proportions --methods AFCL --lr 0.001 --eta 120 --gamma 2 --seeds 5
  run scenarios --epochs 8 --proportions $proportions --methods CE,FCL,extra --lr 0.003 --gamma 10 --seeds 5
done

# untuned defaults
run scenarios --epochs 8 --proportions 60:40,70:30,80:20,90:10,95:5,98:2 --methods CE,CL,FCL,ACL,AFCL --seeds 3

# a larger encoder on fewer images
run resnet18 --encoder resnet18 --proportions 90:10 --train-total 2000 --epochs 4 --lr 0.001 --seeds 3 \
    --methods CE,CE-adjusted,CL,FCL,ACL,AFCL

# the three regimes at the library's learning rates, with three heads; primary contrasts, written down before the runs: ROC AUC
# with the head `logistic` at each proportion, fine-tuned CE - frozen, fine-tuned CE - CE from random weights, fine-tuned CL -
# fine-tuned CE, and fine-tuned ACL - fine-tuned CL: 12 tests, floor of Holm's p with ten seeds 12 * 2**-9 = 0.023
for proportions in 98:2 90:10 99.5:0.5; do
  run regimes --proportions $proportions --methods frozen,CE,CL,ACL --weights fashion_mnist_eight,none --eta 120 --seeds 10 \
    --classifier-loss cross_entropy,logit_adjusted,logistic
done
