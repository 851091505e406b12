"""Stage 1 of pretrained and of random weights over learning rates, scored on validation images only.

python benchmarks/fine_tuning.py [--source FOLDER] [--seeds 5] [--epochs 4] [--variants NAME ...] [--out FILE]

The small encoder starts from the bundled weights (eight other classes of Fashion-MNIST) or from random weights, and is trained
by AFCL on T-shirts and shirts at 98:2. A row is one training: the nearest-neighbour balanced accuracy of the embeddings after
stage 1, and the ROC AUC of a logit-adjusted linear head on the features (stage 2). `frozen` is the head without stage 1.
"""

import argparse

from fastai.torch_core import set_seed
from record import add_options, record, save

from asymcl.data import fashion_mnist
from asymcl.losses import AFCL
from asymcl.models import small_encoder
from asymcl.pretrained import load_weights
from asymcl.train import TwoStageLearner
from asymcl.train.fine_tuning import EvalBatchNorm, by_depth
from asymcl.train.metrics import KnnAccuracy

RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
VARIANTS = ("random", "pretrained", "rates by depth", "batch norm in evaluation mode")


def new_learner(data, variant, **options):
    "Learner of a variant"
    encoder = small_encoder()
    if variant == "random":
        pixel_stats = None
    else:
        load_weights(encoder, "fashion_mnist_eight")
        pixel_stats = encoder.pixel_stats
    if variant == "rates by depth":
        options["splitter"] = by_depth
    if variant == "batch norm in evaluation mode":
        options["cbs"] = EvalBatchNorm()
    dls = data.dls(pixel_stats=pixel_stats, device="cpu")
    loss = AFCL(eta=10, gamma=2)
    return TwoStageLearner(dls, encoder, loss, classifier_loss="logit_adjusted", **options)


def scores(learn):
    "Validation scores in per cent after stage 2"
    head = learn.new_classifier()
    with head.no_bar(), head.no_logging():
        learn.fit_classifier(10)
    return {"ROC AUC": 100 * learn.evaluate("valid")["roc_auc"]}


def train(data, variant, rate, epochs, seed):
    "Validation scores after both stages"
    set_seed(seed, reproducible=True)
    learn = new_learner(data, variant)
    stage_1 = learn.contrastive
    with stage_1.no_bar(), stage_1.no_logging():
        learn.fit_contrastive(
            epochs, slice(rate / 100, rate) if variant == "rates by depth" else rate
        )
    nearest = stage_1.recorder.values[-1][
        stage_1.recorder.metric_names[1:].index(KnnAccuracy().name)
    ]
    return {"kNN balanced accuracy": 100 * nearest} | scores(learn)


def frozen(data, seed):
    "Validation scores of the pretrained encoder without stage 1"
    set_seed(seed, reproducible=True)
    return scores(new_learner(data, "pretrained"))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser)
    parser.add_argument("--source", default="sample", help="folder with the four files, or sample")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds")
    parser.add_argument("--epochs", type=int, default=4, help="epochs of stage 1")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS, help="which")
    args = parser.parse_args()
    rates, seeds, epochs = (RATES, args.seeds, args.epochs) if not args.toy else ((1e-3,), 1, 1)
    rows = []
    for seed in range(seeds):
        data = fashion_mnist(
            proportions=(0.98, 0.02),
            source=args.source,
            seed=seed,
            train_total=300 if args.toy else None,
        )
        common = {"seed": seed}
        rows.append(common | {"variant": "frozen", "lr": None} | frozen(data, seed))
        for rate in rates:
            for variant in args.variants:
                result = train(data, variant, rate, epochs, seed)
                rows.append(common | {"variant": variant, "lr": rate} | result)
    sizes = {split: data.counts(split).tolist() for split in ("train", "valid")}
    content = record(
        rows,
        source="sample" if args.source == "sample" else "full Fashion-MNIST",
        images=sizes,
        epochs=epochs,
    )
    save(content, args.out)


if __name__ == "__main__":
    main()
