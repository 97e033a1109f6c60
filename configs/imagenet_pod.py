"""GoogLeNet with batch norm on ImageNet in large batches, for a pod: 256 chips of TPU v5e.

    python -m inception_jax.main --config=configs/imagenet_pod.py --workdir=DIR    # lars,8192
    python -m inception_jax.main --config=configs/imagenet_pod.py:lamb,32768 --workdir=DIR

The argument is lars, lamb or sgd and, after a comma, the batch: 4096, 8192, 16384 or 32768. Rates
and warm-ups are those that were published for ResNet-50, from which to begin: nobody has published
any for this network. Sources:
  Goyal    Goyal et al. 2017, arXiv:1706.02677: SGD
  You      You et al. 2020, arXiv:1904.00962, table of ImageNet and ResNet-50: LAMB
  tpu      tensorflow/tpu, models/official/resnet: LARS, as in MLPerf 0.6

On 256 chips of v5e (python -m inception_jax.plan --config=configs/imagenet_pod.py
--topology=v5e:16x16): 32 images a chip take 0.83 GiB of 15.75; a step at least 2.8 ms, bound by
memory traffic; at most 3.0 million images/s, MFU 51.7 %; the recipe at least 0.65 minutes, 2.8
chip-hours. Ceilings from a roofline; docs/pods.md has more.

Result: not trained here yet.
"""

from ml_collections import ConfigDict

from configs import googlenet
from inception_jax.errors import UserError

# By batch: the rate and the epochs of its warm-up.
LARS = {4096: (5.0, 5.0), 8192: (10.0, 5.0), 16384: (25.0, 5.0), 32768: (32.0, 14.0)}  # tpu
LAMB = {  # You: 4 / (2^x * 100) with x = 1.5, 1, 0.5, 0
    4096: (0.04 / 2**1.5, 2.5),
    8192: (0.04 / 2, 5.0),
    16384: (0.04 / 2**0.5, 10.0),
    32768: (0.04, 20.0),
}
SGD = {batch: (0.1 * batch / 256, 5.0) for batch in LARS}  # Goyal, who goes up to 8,192
RATES = {"lars": LARS, "lamb": LAMB, "sgd": SGD}


def get_config(variant: str = "lars") -> ConfigDict:
    """The recipe.

    Args:
      variant: NAME or NAME,BATCH.
    """
    name, _, batch = variant.partition(",")
    sizes = {str(size): size for size in LARS}
    if name not in RATES or ("," in variant and batch not in sizes):
        raise UserError(
            f"configs/imagenet_pod.py has no variant {variant!r}: it has {', '.join(RATES)}, each"
            f" alone or with one of the batches {', '.join(sizes)}, as in lars,8192"
        )
    config = googlenet.get_config()
    config.batch_size = sizes[batch or "8192"]  # on 256 chips 32 images each
    config.epochs = 90.0  # Goyal, You and tpu

    config.model.dtype = "bfloat16"
    config.model.batch_norm = True
    config.model.space_to_depth = True
    config.model.auxiliary_heads = False  # batch norm trains this depth without them

    config.loss.label_smoothing = 0.1  # tpu

    config.optim.name = name
    config.optim.weight_decay = 1e-2 if name == "lamb" else 1e-4  # lamb: our choice; Goyal, tpu
    config.optim.nesterov = name == "sgd"  # Goyal
    config.optim.rate_factors = ((".*", 1.0),)

    config.schedule.rate, config.schedule.warmup_epochs = RATES[name][config.batch_size]
    config.schedule.name = "cosine" if name == "sgd" else "poly"  # sgd: our choice
    config.schedule.power = 2.0 if name == "lars" else 1.0  # tpu; You
    config.average.name = "none"

    googlenet.without_distortions(config)
    config.data.interpolation = "bilinear"  # one way for all: the host has to feed a fast device
    config.data.mean = (123.675, 116.28, 103.53)  # of ImageNet, as torchvision has them
    config.data.std = (58.395, 57.12, 57.375)

    epoch = 1_281_167 // config.batch_size  # steps
    config.eval.batch_size = 8192
    config.eval.every_steps = 4 * epoch
    config.checkpoint.every_steps = epoch
    config.log_every_steps = 10
    return config
