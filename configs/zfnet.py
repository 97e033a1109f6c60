"""ZFNet, Clarifai's published network, as trained on ImageNet (Zeiler & Fergus 2013, section 3).

    python -m inception_jax.main --config=configs/imagenet.py:zfnet
    python -m inception_jax.main --config=configs/imagenet.py:zfnet512

Result: not trained here yet. Published for one network: top-1 error 38.3 %, top-5 16.4 %.
"""

from ml_collections import ConfigDict

from configs import googlenet


def get_config(name: str = "zfnet") -> ConfigDict:
    """The recipe of the paper, section 3, and AlexNet's where it is silent.

    Args:
      name: config.model.name: zfnet, or zfnet512, whose own recipe is not known.
    """
    config = googlenet.get_config()
    config.model.name = name

    config.batch_size = 128  # section 3
    config.epochs = 70.0  # section 3
    config.optim.momentum_form = "caffe"  # AlexNet's code, on which theirs is built
    config.optim.weight_decay = 5e-4  # not told; AlexNet's
    config.optim.decay_factors = ((".*", 1.0),)  # AlexNet's
    config.optim.rate_factors = ((".*", 1.0),)  # AlexNet's
    config.optim.max_filter_rms = 0.1  # "crucial, especially in the first layer"
    config.schedule.rate = 0.01  # section 3
    # Lowered by hand when the validation error stood still, how often is not told: as AlexNet's.
    config.schedule.factor = 0.1
    config.schedule.every_epochs = 17.5
    config.average.name = "none"

    googlenet.without_distortions(config)
    config.data.image_size = 224  # section 3
    config.data.crop = "square_corners"  # section 3: of the central square of 256
    config.data.train_resize = (256, 256)  # section 3
    config.data.eval_resize = 256
    return config
