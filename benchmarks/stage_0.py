"""Measure stage 0: frozen features of an encoder trained on unlabelled images, of bundled weights and of random weights.

python benchmarks/stage_0.py [--source FASHION_MNIST_FOLDER] [--weights FOLDER] [--out FILE]

Stage 0 trains on all 10,000 training images of T-shirts and shirts without their labels. The script then fits the head
`logistic_head` on the frozen features of the labelled training images of each proportion, and scores it on validation and
test images. The number of epochs is the one with the highest mean validation ROC AUC at 98:2 over seeds 100 and 101, which
the test does not use. Weights that exist in the folder are not trained again.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from fastai.torch_core import set_seed
from record import add_options, record, save

from asymcl.data import fashion_mnist
from asymcl.metrics import evaluate_predictions
from asymcl.models import encode, small_encoder
from asymcl.pretrained import describe_weights, load_weights, save_weights
from asymcl.train.heads import logistic_head
from asymcl.train.self_supervised import pretrain
from asymcl.views import normalized

CLASSES = ("T-shirt/top", "Shirt")
PROPORTIONS = {"90:10": (0.9, 0.1), "98:2": (0.98, 0.02), "99.5:0.5": (0.995, 0.005)}
SEARCH_SEEDS = (100, 101)
SEARCH_EPOCHS = (6, 12, 24)


def weights_file(folder, seed, epochs):
    "Path of the weights of one training"
    return folder / f"seed_{seed}_epochs_{epochs}.safetensors"


def load(options, proportions, seed):
    "Images of one proportion and seed"
    total = 400 if options.toy else None
    return fashion_mnist(CLASSES, proportions, options.source, seed=seed, train_total=total)


def train_one(options, seed, epochs):
    "Train an encoder without labels, and write its weights"
    data = load(options, (0.5, 0.5), seed)
    mean, std = data.channel_stats()
    set_seed(seed, reproducible=True)
    encoder = small_encoder()
    start = time.perf_counter()
    pretrain(data, encoder, 1 if options.toy else epochs)
    save_weights(
        encoder,
        weights_file(options.weights, seed, epochs),
        trained_on="Fashion-MNIST, T-shirts and shirts, labels not used",
        method="NT-Xent",
        epochs=epochs,
        seed=seed,
        training_images=len(data.splits["train"]),
        mean=mean.tolist(),
        std=std.tolist(),
        seconds=round(time.perf_counter() - start, 1),
    )


def scores(encoder, mean, std, data):
    "Validation and test scores of a logistic regression on frozen features, in per cent"
    features, labels = {}, {}
    for split, rows in data.splits.items():
        features[split] = encode(encoder, normalized(data.images[rows], mean, std))
        labels[split] = data.labels[rows]
    head = logistic_head(features["train"], labels["train"])
    result = {}
    for split in ("valid", "test"):
        with torch.no_grad():
            probabilities = head(features[split]).softmax(1)
        metrics = evaluate_predictions(probabilities, labels[split], data.classes)
        result[split] = {
            "roc auc": 100 * metrics["roc_auc"],
            "balanced accuracy": 100 * metrics["unweighted_accuracy"],
        }
    return result


def random_weights(seed):
    "Encoder that is not trained"
    set_seed(seed, reproducible=True)
    return small_encoder()


def trained(path):
    "Encoder, mean and standard deviation of the pixels of a file of weights"
    encoder = small_encoder()
    load_weights(encoder, path)
    about = describe_weights(path)
    return encoder, torch.tensor(about["mean"]), torch.tensor(about["std"])


def stage_0(options, seed, epochs):
    "Encoder of stage 0, mean and standard deviation of the pixels; trained if there is no file"
    path = weights_file(options.weights, seed, epochs)
    if not path.exists():
        train_one(options, seed, epochs)
    return trained(path)


def search(options):
    "Scores at 98:2 of each number of epochs on the seeds of the search, and the best number"
    rows = []
    for epochs in SEARCH_EPOCHS:
        for seed in SEARCH_SEEDS:
            data = load(options, PROPORTIONS["98:2"], seed)
            valid = scores(*stage_0(options, seed, epochs), data)["valid"]
            rows.append(dict(part="search", epochs=epochs, seed=seed, valid=valid))
    return rows, max(SEARCH_EPOCHS, key=lambda epochs: mean_auc(rows, epochs))


def mean_auc(rows, epochs):
    "Mean validation ROC AUC of one number of epochs"
    return statistics.mean(row["valid"]["roc auc"] for row in rows if row["epochs"] == epochs)


def test(options, epochs):
    "Scores of every seed, proportion and kind of weights"
    rows = []
    for seed in options.seeds:
        stage_0_weights = stage_0(options, seed, epochs)
        for proportions, shares in PROPORTIONS.items():
            data = load(options, shares, seed)
            kinds = {
                "random": (random_weights(seed), *data.channel_stats()),
                "fashion_mnist_eight": trained("fashion_mnist_eight"),
                "stage 0": stage_0_weights,
            }
            for name, weights in kinds.items():
                row = dict(part="test", weights=name, proportions=proportions, seed=seed)
                rows.append(row | scores(*weights, data))
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", default="sample", help="folder of the four original files")
    parser.add_argument("--weights", type=Path, help="folder of the trained weights")
    parser.add_argument("--seeds", type=int, default=10, help="number of seeds of the test")
    add_options(parser)
    options = parser.parse_args()
    if options.toy:
        options.seeds = 1
    options.seeds = range(options.seeds)
    with tempfile.TemporaryDirectory() as folder:
        options.weights = options.weights or Path(folder)
        options.weights.mkdir(parents=True, exist_ok=True)
        rows, epochs = search(options)
        rows += test(options, epochs)
        facts = dict(encoder="small", head="logistic", source=Path(options.source).name)
        save(record(rows, epochs=epochs, **facts), options.out)


if __name__ == "__main__":
    main()
