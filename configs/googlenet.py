"""Every field that a run has, with the published value and its source.

Not a recipe of its own: configs/digits.py is the smallest one. Sources:
  paper      Szegedy et al. 2014, Going Deeper with Convolutions, arXiv:1409.4842
  reference  BVLC/caffe, models/bvlc_googlenet: train_val.prototxt, solver.prototxt,
             quick_solver.prototxt
"""

from ml_collections import ConfigDict, FieldReference, config_dict

# What can be chosen of one network or several, with the published value of the first.
MODEL_FIELDS = {
    "dropout": float,  # before each classifier, or after hidden layers; googlenet 0.4, others 0.5
    "batch_norm": bool,  # googlenet (instead of LRN), vgg: False
    "batch_norm_epsilon": float,  # googlenet, vgg: 1e-5
    "lrn": bool,  # googlenet, alexnet, zfnet, zfnet512: True
    "lrn_k": float,  # googlenet: 1.0; alexnet, zfnet, zfnet512: 2.0
    "lrn_alpha": float,  # divided by the size of 5; googlenet: 1e-4; alexnet, zfnet, zfnet512: 5e-4
    # poolings that leave out what hangs over the edge; googlenet: none of pool1,pool2,pool3,pool4
    "floor_pools": str,
    # of googlenet
    "module": str,  # reduced or naive
    "branches": str,  # 1x1,3x3,5x5,pool
    "projection": bool,  # after a module's pooling: in reduced modules
    "modules": str,  # 3a,3b,4a,4b,4c,4d,4e,5a,5b
    "kernel_5x5": int,  # 5
    "pool4_window": int,  # 3
    "auxiliary_heads": bool,  # True
    "auxiliary_bins": int,  # 0: 5x5 windows, 3 apart
    "auxiliary_dropout": float,  # 0.7
    "small_stem": bool,  # 3x3/1 instead of 7x7/2 and pooling, for small images: False
    "space_to_depth": bool,  # the 7x7/2 over blocks of 2x2 pixels, the same and faster: False
    # of alexnet
    "variant": str,  # grouped, ungrouped or single_tower
    # of sppnet
    "base": str,  # zf5 or overfeat7
    "pyramid": tuple,  # bins along a side of each level: (1, 2, 3, 6)
}
# Those that may differ between networks of the same weights.
FREE_FIELDS = ("dropout", "auxiliary_dropout", "space_to_depth")


def without_distortions(config: ConfigDict) -> None:
    """Leaves colours alone and resizes as well as can be, for other papers and other images."""
    config.data.interpolation = "antialiased"
    config.data.brightness = 0.0
    config.data.contrast = 0.0
    config.data.saturation = 0.0
    config.data.lighting = 0.0


def get_config() -> ConfigDict:
    """The defaults, locked: a recipe that misspells a field fails at that line."""
    config = ConfigDict()
    config.seed = 0  # of initialisation, order of examples, augmentation and dropout
    config.batch_size = 32  # images per step over all devices; reference: train_val.prototxt
    config.accumulation = 1  # parts that a batch is computed in, one after another
    config.epochs = 60.0  # reference: quick_solver.prototxt, 2.4 M iterations of 32 images
    # A folder of imported weights, or the workdir of a run, that training starts from. Its network
    # (all of config.model but dtype and FREE_FIELDS) and the preparation of its pixels (image_size,
    # eval_resize, mean, std of config.data) come with it, unless the command line says otherwise.
    # Classifiers are new where the number of classes is another. "": none; None: to be given
    config.init_from = FieldReference("")

    config.model = ConfigDict()
    config.model.name = "googlenet"  # alexnet, zfnet, zfnet512, vgg11 to vgg19, sppnet
    config.model.dtype = "float32"  # of computation: bfloat16, float32 or float64 (to verify)
    config.model.width = 1.0  # factor on every layer's channels; for small images
    # What is None is as the network's own paper has it: its class in inception_jax/models says how.
    # A field that the chosen network does not have has to stay None.
    for field, kind in MODEL_FIELDS.items():
        config.model[field] = config_dict.placeholder(kind)

    config.loss = ConfigDict()
    config.loss.auxiliary_weight = 0.3  # of each auxiliary head; paper, section 5
    config.loss.label_smoothing = 0.0  # share of each label spread over all classes

    config.optim = ConfigDict()
    config.optim.name = "sgd"  # sgd, rmsprop, lars, adamw or lamb
    config.optim.momentum = 0.9  # of sgd, rmsprop and lars; paper, section 6
    config.optim.nesterov = False  # of sgd, rmsprop and lars
    # optax: buffer = momentum * buffer + gradient; step = rate * buffer
    # caffe: buffer = momentum * buffer + rate * gradient; step = buffer (reference solver)
    config.optim.momentum_form = "optax"  # equal to caffe's while the rate is constant
    config.optim.weight_decay = 2e-4  # reference: solver.prototxt
    # The whole name of a parameter, as in inception_3a/5x5/kernel, is matched with each regular
    # expression in turn; the first that fits gives the factor. Reference: decay_mult and lr_mult
    # in train_val.prototxt, no decay of biases and twice the rate.
    config.optim.decay_factors = ((".*/kernel", 1.0), (".*", 0.0))
    config.optim.rate_factors = ((".*/bias", 2.0), (".*", 1.0))
    # Parameters whose whole name one of these regular expressions fits stay as they are, and the
    # statistics of a batch norm with them where all of its parameters do: ("conv.*",)
    config.optim.freeze = ()
    config.optim.clip_norm = 0.0  # of the gradient of all parameters together; 0: no clipping
    config.optim.max_filter_rms = 0.0  # of each convolution's filter, 0: any; Zeiler & Fergus 2013
    # Training steps in a row that are left out because their loss or the gradient's norm is not
    # finite; one more ends the run, as the first does with 0
    config.optim.skip_nonfinite = 0
    config.optim.betas = (0.9, 0.999)  # adamw, lamb; of rmsprop the second; Kingma & Ba 2015
    config.optim.epsilon = 1e-8  # adamw, lamb, rmsprop; Kingma & Ba 2015
    config.optim.trust_coefficient = 0.001  # lars; You et al. 2017

    config.schedule = ConfigDict()
    config.schedule.name = "step"  # step, poly or cosine
    config.schedule.rate = 0.01  # at the start or after the warm-up; reference: solver.prototxt
    config.schedule.factor = 0.96  # step: 4 % lower ...; paper, section 6
    config.schedule.every_epochs = 8.0  # ... every 8 epochs; paper, section 6
    config.schedule.power = 0.5  # poly: rate * (1 - t/T)^power; reference: quick_solver.prototxt
    config.schedule.warmup_epochs = 0.0  # linear from 0 to rate, before the schedule begins

    config.average = ConfigDict()  # of the parameters, for evaluation; paper, section 6
    config.average.name = "exponential"  # none, exponential or plain; the paper does not say which
    config.average.decay = 0.9999  # exponential; tensorflow/models, research/inception
    config.average.start_epochs = 0.0  # when it begins

    config.data = ConfigDict()
    # digits, fashion_mnist, image_folder, or any TFDS set with image and label
    config.data.name = "imagenet2012"
    # where TFDS sets, IDX files or an image folder's SPLIT/CLASS/* are; TFDS's default
    config.data.dir = "~/tensorflow_datasets"
    config.data.train_split = "train"
    config.data.eval_split = "validation"
    config.data.image_size = 224  # side in pixels; paper, section 5
    # Which patch of each training image, by the papers:
    # area: of random area and aspect, resized to image_size; paper, section 6
    # image: image_size pixels from anywhere in the image, whose shorter side was resized to
    #   train_resize; Simonyan & Zisserman 2014, section 3.1
    # square: the same from the central square; Krizhevsky et al. 2012, sections 2 and 4.1
    # warped: the same from the whole image, made square; reference: 256x256 images, readme.md
    # image_corners: a corner or the centre of the image; He et al. 2014, section 3.1
    # square_corners: a corner or the centre of the square; Zeiler & Fergus 2013, section 3
    config.data.crop = "area"
    config.data.crop_area = (0.08, 1.0)  # share of the image's area; paper, section 6
    config.data.crop_aspect = (3 / 4, 4 / 3)  # width / height; paper, section 6
    # pixels, from the first number to the second, evenly; Krizhevsky et al. 2012, section 2.
    # (256, 512): scale jittering; Simonyan & Zisserman 2014, section 3.1
    config.data.train_resize = (256, 256)
    # sides in pixels, in turn by epochs; none: image_size. (224, 180): He et al. 2014, section 2.3
    config.data.train_sizes = ()
    config.data.mirror = True  # half of the training images; paper, section 7 (test crops)
    # How a patch is resized: bilinear, area, nearest, cubic, or random, one of these four for each
    # image; paper, section 6. antialiased: bilinear over all that a pixel covers
    config.data.interpolation = "random"
    # Factors drawn from 1 - x to 1 + x, in random order; 0: none. Howard 2013, arXiv:1312.5402,
    # section 2, which the paper's section 6 names
    config.data.brightness = 0.5
    config.data.contrast = 0.5
    config.data.saturation = 0.5
    config.data.hue = 0.0  # turned by -x to x of the circle, 0 to 0.5; with the three above
    # deviation of the noise along ImageNet's principal colours; 0: none. Krizhevsky et al. 2012,
    # section 4.1, and Howard 2013
    config.data.lighting = 0.1
    # Operations in a row on each image, drawn from 14, and how strong, 0 to 10; Cubuk et al. 2019,
    # arXiv:1909.13719: 2 and 9
    config.data.randaugment_layers = 0
    config.data.randaugment_magnitude = 9.0
    config.data.erasing = (
        0.0  # probability of a noisy rectangle; 0.25: Zhong et al. 2017, section 4
    )
    # Of the beta distribution of the share that another image of the batch gets; 0: none. With both
    # each image takes either, evenly.
    config.data.mixup = 0.0  # 0.2: Zhang et al. 2017, arXiv:1710.09412, section 3.1
    config.data.cutmix = 0.0  # 1.0: Yun et al. 2019, arXiv:1905.04899, section 3.1
    config.data.eval_resize = 256  # shorter side before the central crop; reference: 256 images
    config.data.mean = (123.0, 117.0, 104.0)  # RGB; reference: train_val.prototxt, as BGR there
    config.data.std = (1.0, 1.0, 1.0)  # reference: no scaling
    # What to do with an image that cannot be read: error stops the run and names it, skip goes on
    # without it and tells at the end of each epoch
    config.data.unreadable = "error"
    # Where examples stay that were read once: nowhere, in ram, or in the folder named here
    config.data.cache = ""
    config.data.cache_resize = (
        0  # shorter side in pixels to which larger ones are reduced for it; 0: as read
    )

    config.eval = ConfigDict()
    config.eval.batch_size = (
        128  # images per step over all devices; the result does not depend on it
    )
    config.eval.sizes = ()  # sides in pixels at which every evaluation is repeated
    config.eval.every_steps = 4000  # and at the end; reference: solver.prototxt, test_interval

    config.checkpoint = ConfigDict()
    config.checkpoint.every_steps = 4000  # and after each evaluation, and at the end
    config.checkpoint.keep = 3  # newest ones, besides the one with the best top-1

    config.log_every_steps = 40  # reference: solver.prototxt, display
    # Steps of training to trace for XProf, into WORKDIR/profile: 20:25 for 20 to 24; "": none
    config.profile = ""
    # A folder where what is compiled stays for the next start, one for all hosts, and for as many
    # runs as there are; "": what JAX_COMPILATION_CACHE_DIR in the environment says
    config.compile_cache = ""

    config.mesh = ConfigDict()  # slices x data x model is the number of devices; all share a batch
    # groups between which the network is slow, as of TPUs in several slices or GPUs in several
    # hosts; -1: those that the devices are in
    config.mesh.slices = -1
    config.mesh.data = -1  # devices of a group that have every layer; -1: all that are left
    config.mesh.model = 1  # devices that share the fully connected layers; -1: all that are left
    # Whether each device of `data` keeps its share of parameters, averages and the optimiser's
    # state, instead of all of them; Rajbhandari et al. 2020, arXiv:1910.02054
    config.mesh.fully_sharded = False

    config.cluster = ConfigDict()  # several processes, one on each host
    config.cluster.start_timeout = 120.0  # seconds until those that have not come are given up
    config.cluster.dead_timeout = 60.0  # seconds until all have ended when one has died
    return config.lock()
