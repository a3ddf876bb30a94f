"""Images, their split, and the rule that makes them binary.

The likelihood is Bernoulli, so every pixel must be 0 or 1. *How* a grey image becomes binary
defines the data set: `threshold` sets x = 1 where the intensity is at least half, once and for
all; `stochastic` draws x ~ Bernoulli(intensity), afresh each time an image is used in training,
and once, from a fixed stream, for validation and test; `fixed` takes images that are binary as
they come. Their likelihoods differ by as much as ten nats and are never compared.
"""

# The imports fill the registry, in the order in which the data sets are listed.
# isort: off
from flowvae.data.dataset import DATASETS, Dataset, Fixed, Grey, Rule, data_dir, load_data
from flowvae.data.pixels import check_pixels, draw_binary
from flowvae.data.bundled_digits import digits
from flowvae.data.mnist_family import (
    MNIST_SHA256,
    downloads,
    emnist_letters,
    fashion_mnist,
    kmnist,
    mnist,
)
from flowvae.data.binarised_mnist import mnist_fixed
from flowvae.data.matlab_sets import caltech101_silhouettes, omniglot
from flowvae.data.user_file import file
# isort: on

__all__ = [
    "DATASETS",
    "MNIST_SHA256",
    "Dataset",
    "Fixed",
    "Grey",
    "Rule",
    "caltech101_silhouettes",
    "check_pixels",
    "data_dir",
    "digits",
    "downloads",
    "draw_binary",
    "emnist_letters",
    "fashion_mnist",
    "file",
    "kmnist",
    "load_data",
    "mnist",
    "mnist_fixed",
    "omniglot",
]
