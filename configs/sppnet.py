"""SPP-net on ImageNet, trained at 224 and 180 pixels in turn (He et al. 2014, arXiv:1406.4729).

    python -m inception_jax.main --config=configs/imagenet.py:sppnet              # over ZF-5
    python -m inception_jax.main --config=configs/imagenet.py:sppnet_overfeat7

Result: not trained here yet. Published for one network over Overfeat-7, many views: top-5 error
9.14 %.

Sources: paper, the one above; reference, the authors' code, ShaoqingRen/SPP_net.
"""

from ml_collections import ConfigDict

from configs import googlenet


def get_config(base: str = "zf5") -> ConfigDict:
    """The recipe of the paper, section 3.1.

    Args:
      base: config.model.base.
    """
    config = googlenet.get_config()
    config.model.name = "sppnet"
    config.model.base = base

    config.batch_size = 128  # reference: Zeiler_conv5.prototxt
    config.epochs = 70.0  # not told; ZFNet's
    config.optim.momentum_form = "caffe"  # built on Caffe
    config.optim.weight_decay = 5e-4  # not told; AlexNet's
    config.optim.rate_factors = ((".*/bias", 2.0), (".*", 1.0))  # reference: blobs_lr
    config.optim.decay_factors = ((".*/kernel", 1.0), (".*", 0.0))  # Caffe's usual ones
    config.schedule.rate = 0.01  # paper, section 3.1
    config.schedule.factor = 0.1  # paper, section 3.1
    config.schedule.every_epochs = 24.0  # twice, when the error stood still: evenly here
    config.average.name = "none"

    googlenet.without_distortions(config)
    config.data.image_size = 224
    config.data.train_sizes = (224, 180)  # section 2.3: an epoch each
    config.eval.sizes = (180,)
    config.data.crop = "image_corners"  # of the whole image, unlike AlexNet's
    config.data.train_resize = (256, 256)  # paper, section 3.1
    config.data.lighting = 0.1  # "color altering", AlexNet's
    config.data.eval_resize = 256
    return config
