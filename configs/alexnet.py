"""AlexNet as the SuperVision team trained it on ImageNet (Krizhevsky, Sutskever & Hinton 2012).

    python -m inception_jax.main --config=configs/imagenet.py:alexnet
    python -m inception_jax.main --config=configs/imagenet.py:alexnet_single_tower

Result: not trained here yet. Published for one network and ten crops: top-1 error 40.7 %, top-5
18.2 % (Table 2); 57.1 % and 80.2 % accuracy, one crop (BVLC/caffe, models/bvlc_alexnet).

Sources: paper, the one above; reference, BVLC/caffe, models/bvlc_alexnet, where the response
normalisation has k = 1 and alpha = 1e-4 (model.lrn_k, model.lrn_alpha), the biases of 1 are 0.1 and
the rate falls every 100,000 iterations of 256 images.
"""

from ml_collections import ConfigDict

from configs import googlenet


def get_config(variant: str = "grouped") -> ConfigDict:
    """The recipe of the paper.

    Args:
      variant: config.model.variant.
    """
    config = googlenet.get_config()
    config.model.name = "alexnet"
    config.model.variant = variant

    config.batch_size = 128  # section 5
    config.epochs = 90.0  # section 5
    config.optim.momentum_form = "caffe"  # section 5: the rate is inside the buffer
    config.optim.weight_decay = 5e-4  # section 5
    config.optim.decay_factors = ((".*", 1.0),)  # section 5: of w, and it tells no biases apart
    config.optim.rate_factors = ((".*", 1.0),)  # section 5: equal for all layers
    config.schedule.rate = 0.01  # section 5
    config.schedule.factor = 0.1  # section 5
    # Three times before the end, when the validation error stood still (section 5): evenly here.
    config.schedule.every_epochs = 22.5
    config.average.name = "none"

    # The paper's 224 pixels do not give its maps of 55; 227 do, as in the reference.
    googlenet.without_distortions(config)
    config.data.image_size = 224 if variant == "single_tower" else 227
    config.data.crop = "square"  # section 2, the central square, and section 4.1, patches of it
    config.data.train_resize = (256, 256)  # section 2
    config.data.lighting = 0.1  # section 4.1
    config.data.eval_resize = 256  # section 2
    return config
