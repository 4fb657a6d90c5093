"""Public sets of labelled images, and where they are: light to import."""

from collections.abc import Mapping

from stillhouse.domain import DataHome

FETCH = "stillhouse_vision.homes:fetch"
DATASETS: Mapping[str, DataHome] = {
    "cifar10": DataHome(
        summary="60,000 photos of 10 classes, 32 px",
        license="no formal licence; research use with credit to Krizhevsky 2009",
        page="https://www.cs.toronto.edu/~kriz/cifar.html",
        mib=163,
        home="https://www.cs.toronto.edu/~kriz/",
        fetch=FETCH,
    ),
    "cifar100": DataHome(
        summary="60,000 photos of 100 classes, 32 px",
        license="no formal licence; research use with credit to Krizhevsky 2009",
        page="https://www.cs.toronto.edu/~kriz/cifar.html",
        mib=162,
        home="https://www.cs.toronto.edu/~kriz/",
        fetch=FETCH,
    ),
    "fashion-mnist": DataHome(
        summary="70,000 grey images of clothes, 10 classes, 28 px",
        license="MIT",
        page="https://github.com/zalandoresearch/fashion-mnist",
        mib=30,
        home="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        fetch=FETCH,
    ),
    "mnist": DataHome(
        summary="70,000 handwritten digits, 28 px",
        license="CC BY-SA 3.0",
        page="https://huggingface.co/datasets/ylecun/mnist",
        mib=12,
        home="https://ossci-datasets.s3.amazonaws.com/mnist/",
        fetch=FETCH,
    ),
    "tiny-imagenet": DataHome(
        summary="110,000 photos of 200 classes, 64 px",
        license="ImageNet's terms of access, research only",
        page="https://image-net.org/download.php",
        mib=237,
    ),
}
