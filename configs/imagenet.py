"""ImageNet (ILSVRC 2012), as published: 1,000 classes, 1.28 million images.

    python -m inception_jax.main --config=configs/imagenet.py        # GoogLeNet as in the paper
    python -m inception_jax.main --config=configs/imagenet.py:poly   # by the reference's quick way
    python -m inception_jax.main --config=configs/imagenet.py:NAME   # another network as in its own

NAME is alexnet, alexnet_single_tower, zfnet, zfnet512, vgg11, vgg13, vgg16, vgg19, sppnet,
sppnet_overfeat7, or a GoogLeNet that is not quite the paper's: wider, torchvision. The data set has
to be downloaded by hand once; the first run says what and where to. Sources of GoogLeNet's recipe
are those of configs/googlenet.py, whose defaults these are; the others have files of their own.

Result: not trained here yet. Published for one GoogLeNet and one crop: top-5 error 10.07 % (paper,
Table 3); 68.7 % top-1 and 88.9 % top-5 accuracy (reference, quick solver, BVLC/caffe,
models/bvlc_googlenet/readme.md).
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from configs import alexnet, googlenet, sppnet, vgg, zfnet
from inception_jax.errors import UserError


def paper() -> ConfigDict:
    """The recipe of the paper where it says one, and of the reference where it does not."""
    config = googlenet.get_config()
    config.optim.momentum_form = "caffe"  # reference: SGDSolver
    config.epochs = 250.0  # reference: solver.prototxt, 10 M iterations of 32 images
    return config


def poly() -> ConfigDict:
    """The reference's quick solver: the rate falls to 0 as a root, in a quarter of the updates.

    And its images, which readme.md says are neither relit nor of other scales or aspects.
    """
    config = paper()
    googlenet.without_distortions(config)
    config.data.crop = "warped"
    config.data.train_resize = (256, 256)
    config.epochs = 60.0  # reference: quick_solver.prototxt, 2.4 M iterations of 32 images
    config.schedule.name = "poly"
    config.average.name = "none"
    return config


def wider() -> ConfigDict:
    """The paper's seventh network, "one wider version" (section 7), which does not say how wide."""
    config = paper()
    config.model.width = 1.25  # our choice: 1.5 times the parameters and multiply-adds
    return config


def torchvision() -> ConfigDict:
    """torchvision's network of the same name, which is not the paper's, with the paper's recipe."""
    config = paper()
    config.model.batch_norm = True
    config.model.batch_norm_epsilon = 1e-3
    config.model.kernel_5x5 = 3
    config.model.pool4_window = 2
    config.model.auxiliary_bins = 4
    config.model.dropout = 0.2
    config.data.mean = (127.5, 127.5, 127.5)  # transform_input
    config.data.std = (127.5, 127.5, 127.5)
    return config


RECIPES: dict[str, Callable[[], ConfigDict]] = {
    "googlenet": paper,
    "poly": poly,
    "wider": wider,
    "torchvision": torchvision,
    "alexnet": alexnet.get_config,
    "alexnet_single_tower": lambda: alexnet.get_config("single_tower"),
    "zfnet": zfnet.get_config,
    "zfnet512": lambda: zfnet.get_config("zfnet512"),
    "vgg11": lambda: vgg.get_config("11"),
    "vgg13": lambda: vgg.get_config("13"),
    "vgg16": lambda: vgg.get_config("16"),
    "vgg19": lambda: vgg.get_config("19"),
    "sppnet": sppnet.get_config,
    "sppnet_overfeat7": lambda: sppnet.get_config("overfeat7"),
}


def get_config(name: str = "googlenet") -> ConfigDict:
    """The recipe of that name."""
    if name not in RECIPES:
        raise UserError(f"configs/imagenet.py has no variant {name!r}: it has {', '.join(RECIPES)}")
    return RECIPES[name]()
