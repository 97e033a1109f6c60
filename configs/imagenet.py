"""GoogLeNet on ImageNet (ILSVRC 2012), as published: 1,000 classes, 1.28 million images.

    python -m inception_jax.main --config=configs/imagenet.py         # the paper's recipe
    python -m inception_jax.main --config=configs/imagenet.py:poly    # the reference's quick one

The data set has to be downloaded by hand once; the first run says what and where to. Sources are
those of configs/googlenet.py, whose defaults these are.

Result: not trained here yet. Published for one network and one crop: top-5 error 10.07 % (paper,
Table 3); 68.7 % top-1 and 88.9 % top-5 accuracy (reference, quick solver, BVLC/caffe,
models/bvlc_googlenet/readme.md).
"""

from ml_collections import ConfigDict

from configs import googlenet
from inception_jax.errors import UserError


def get_config(variant: str = "paper") -> ConfigDict:
    """The recipe of the paper where it says one, and of the reference where it does not.

    Args:
      variant: "paper" (rate 4 % lower every 8 epochs, averaged parameters) or "poly" (the rate
        falls to 0 as a root, the last parameters as they are; in a quarter of the updates).
    """
    config = googlenet.get_config()
    config.optim.momentum_form = "caffe"  # reference: SGDSolver
    if variant == "paper":
        config.epochs = 250.0  # reference: solver.prototxt, 10 M iterations of 32 images
    elif variant == "poly":
        config.epochs = 60.0  # reference: quick_solver.prototxt, 2.4 M iterations of 32 images
        config.schedule.name = "poly"
        config.average.name = "none"
    else:
        raise UserError(f"configs/imagenet.py has no variant {variant!r}: it has paper and poly")
    return config
