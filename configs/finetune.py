"""Fine-tuning: weights that were trained elsewhere learn your images.

    python -m inception_jax.main --config=configs/finetune.py --config.init_from=weights/vgg16 \\
        --config.data.dir=images --workdir=runs/images
    python -m inception_jax.evaluate runs/images

The weights are a folder of imported ones or the workdir of a run; the network, the size of images
and their normalisation come with them. The images are files, a folder for each class:
images/train/CLASS/*, and images/val/CLASS/* to evaluate on. The first line tells what was taken,
the next ones which layers are new; an evaluation follows every 100 steps.

With --config.optim.freeze="(conv|inception).*" the convolutions of any network stay as they are,
which is quicker, and better where images are few.

Sources:
  flickr  BVLC/caffe, models/finetune_flickr_style: solver.prototxt, train_val.prototxt
"""

from ml_collections import ConfigDict

from configs import googlenet

CLASSIFIERS = "(loss[123]/classifier|fc8)"  # of every network


def get_config() -> ConfigDict:
    """Numbers for some thousand images; those without a source are our choice."""
    config = googlenet.get_config()
    config.init_from = None
    config.batch_size = 32
    config.epochs = 10.0  # the weights are nearly right already

    config.optim.weight_decay = 5e-4  # flickr
    config.optim.rate_factors = (  # flickr: lr_mult 10 and 20, as the classifier begins anew
        (f"{CLASSIFIERS}/kernel", 10.0),
        (f"{CLASSIFIERS}/bias", 20.0),
        (".*/bias", 2.0),
        (".*", 1.0),
    )
    config.schedule.rate = 1e-3  # flickr: a tenth of that of training from scratch
    config.schedule.name = "cosine"
    config.schedule.warmup_epochs = 0.5  # else the random classifier's gradients do harm below it
    config.average.name = "none"  # the rate falls to 0 anyway

    googlenet.without_distortions(config)
    config.data.name = "image_folder"
    config.data.dir = "images"
    config.data.eval_split = "val"
    config.data.crop_area = (0.25, 1.0)  # the paper's 0.08 is for a million images and 250 epochs

    config.eval.batch_size = 32  # takes no more memory than training
    config.eval.every_steps = 100
    config.checkpoint.every_steps = 100
    config.checkpoint.keep = 1  # besides the best; VGG's take a gigabyte each
    config.log_every_steps = 10
    return config
