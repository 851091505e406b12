#!/usr/bin/env bash
# The recorded comparisons, the most informative first, on Fashion-MNIST's original files in the folder that is given.
# Each command resumes where its records stop; run the script in as many processes as there are cores.
# A comparison has one grid, so every command has its own folder, NAME-NUMBER; the records are then collected in NAME.
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
  asymcl-compare --source "$source" --out $results --name "$name-$number" "${@:2}"
  mkdir -p $results/"$name"/records
  cp $results/"$name-$number"/records/*.json $results/"$name"/records/
}

# weights of the classes that are not in a task
pretrain() {
  test -e weights/"$1".safetensors || python tools/pretrain_fashion.py "$source" --without "$2" --encoder "$3" \
    --out weights/"$1".safetensors >benchmarks/results/weights/"$1".json
}
pretrain without_pullover_coat "Pullover,Coat" small
pretrain without_sneaker_boot "Sneaker,Ankle boot" small
pretrain resnet18_without_shirts "T-shirt/top,Shirt" resnet18

# the comparison that nbs/results/scenarios.ipynb describes: its tasks that are not in the record yet
python benchmarks/evidence.py --source "$source" --out benchmarks/results/evidence.json

# a ResNet-18 with pretrained weights, SGD and averaging over the batch, as near to the recipe of the authors as a processor allows
for proportions in 98:2 90:10; do
  run resnet18 --encoder resnet18 --weights weights/resnet18_without_shirts.safetensors --proportions $proportions \
    --methods frozen,CE,CL,AFCL --averaging batch --eta 120 --gamma 2 --optimizer sgd --lr 0.01 --precision bf16 --seeds 3 \
    --classifier-loss cross_entropy,logistic
done

# the three regimes at the library's learning rates, with three heads; primary contrasts, written down before the runs: ROC AUC
# with the head `logistic` at each proportion, fine-tuned CE - frozen, fine-tuned CE - CE from random weights, fine-tuned CL -
# fine-tuned CE, and fine-tuned ACL - fine-tuned CL: 12 tests, floor of Holm's p with ten seeds 12 * 2**-9 = 0.023
for proportions in 98:2 90:10 99.5:0.5; do
  run regimes --proportions $proportions --methods frozen,CE,CL,ACL --weights fashion_mnist_eight,none --eta 120 --seeds 10 \
    --classifier-loss cross_entropy,logit_adjusted,logistic
done
