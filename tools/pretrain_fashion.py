"""Pretrain an encoder on the eight classes of Fashion-MNIST that an experiment leaves out.

    python tools/pretrain_fashion.py SOURCE_FOLDER [--without CLASS,CLASS] [--encoder small] [--out FILE]

Cross-entropy on all classes but the two of the experiment, six epochs, one random view of each image, one-cycle schedule.
The file is a safetensors file of the encoder's weights. Its metadata give the encoder, the mean and standard deviation of
the pixels, the classes and the settings, which are also printed. The two classes of the experiment are never loaded.
"""

import argparse
import json
import sys
from pathlib import Path

from fastai.callback.schedule import Learner
from fastai.metrics import accuracy
from fastai.torch_core import set_seed
from torch import nn
from torchvision.datasets import FashionMNIST

from asymcl.data import fashion_mnist
from asymcl.models import encoder_width, resnet_encoder, small_encoder
from asymcl.pretrained import describe_weights, save_weights
from asymcl.train.two_stage import RandomViews
from asymcl.views import random_views

ENCODERS = {"small": small_encoder, "resnet18": lambda: resnet_encoder(18, channels=1)}
DEFAULT_OUT = Path(__file__).parents[1] / "asymcl" / "weights" / "fashion_mnist_eight.safetensors"


def pretrain(source, classes, encoder_name, epochs, lr, seed):
    "Encoder, data and validation accuracy after training with cross-entropy"
    set_seed(seed, reproducible=True)
    equal = (1 / len(classes),) * len(classes)
    data = fashion_mnist(classes, equal, source, seed=seed)
    dls = data.dls(128, device="cpu")
    encoder = ENCODERS[encoder_name]()
    width = encoder_width(encoder, dls.valid.one_batch()[0])
    model = nn.Sequential(encoder, nn.Linear(width, len(classes)))
    one_view = RandomViews(lambda images: random_views(images, views=1), repeat_labels=True)
    learn = Learner(dls, model, loss_func=nn.CrossEntropyLoss(), metrics=accuracy, cbs=[one_view])
    with learn.no_bar():
        learn.fit_one_cycle(epochs, lr)
    return encoder.eval(), data, learn.recorder.values[-1][-1]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="folder with the four original files")
    parser.add_argument(
        "--without", default="T-shirt/top,Shirt", help="the two classes of the experiment"
    )
    parser.add_argument("--encoder", choices=ENCODERS, default="small", help="encoder to train")
    parser.add_argument("--epochs", type=int, default=6, help="number of epochs")
    parser.add_argument("--lr", type=float, default=3e-3, help="highest learning rate")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, views and order")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="file to write")
    options = parser.parse_args()
    left_out = options.without.split(",")
    if not set(left_out) <= set(FashionMNIST.classes):
        parser.error(f"--without must name classes of Fashion-MNIST, got {options.without!r}")
    classes = tuple(name for name in FashionMNIST.classes if name not in left_out)
    encoder, data, valid_accuracy = pretrain(
        options.source, classes, options.encoder, options.epochs, options.lr, options.seed
    )
    mean, std = data.channel_stats()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    save_weights(
        encoder,
        options.out,
        trained_on=f"Fashion-MNIST (MIT licence, Zalando SE) without {' and '.join(left_out)}",
        classes=classes,
        method="cross-entropy",
        epochs=options.epochs,
        lr=options.lr,
        seed=options.seed,
        training_images=len(data.splits["train"]),
        validation_accuracy=round(valid_accuracy, 4),
        mean=mean.tolist(),
        std=std.tolist(),
    )
    print(json.dumps(describe_weights(options.out), indent=1))
    print(f"{options.out}: {options.out.stat().st_size:,} bytes", file=sys.stderr)


if __name__ == "__main__":
    main()
