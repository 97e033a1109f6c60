"""VGG on ImageNet (Simonyan & Zisserman 2014, arXiv:1409.1556, section 3.1).

    python -m inception_jax.main --config=configs/imagenet.py:vgg16    # or vgg11, vgg13, vgg19

Result: not trained here yet. Published for 16 layers and dense evaluation: top-5 error 8.1 %. By
others, one crop: top-1 71.6 %, top-5 90.4 % (16 layers), 72.4 and 90.9 % (19).
"""

from ml_collections import ConfigDict

from configs import googlenet


def get_config(depth: str = "16") -> ConfigDict:
    """The recipe of the paper, section 3.1.

    Args:
      depth: layers: 11, 13, 16 or 19.
    """
    config = googlenet.get_config()
    config.model.name = f"vgg{depth}"

    config.batch_size = 256  # section 3.1, as all below unless told
    config.epochs = 74.0
    config.optim.momentum_form = "caffe"  # built on Caffe
    config.optim.weight_decay = 5e-4
    # Caffe's usual factors; the paper does not tell biases apart.
    config.optim.decay_factors = ((".*/kernel", 1.0), (".*", 0.0))
    config.optim.rate_factors = ((".*/bias", 2.0), (".*", 1.0))
    config.schedule.rate = 0.01
    config.schedule.factor = 0.1
    config.schedule.every_epochs = 18.5  # three times, when accuracy stood still: evenly here
    config.average.name = "none"

    googlenet.without_distortions(config)
    config.data.image_size = 224
    config.data.crop = "image"
    config.data.train_resize = (256, 512)  # multi-scale training
    config.data.lighting = 0.1  # "random RGB colour shift", AlexNet's
    config.data.eval_resize = 384  # section 4.1: the mean of the training scales
    return config
