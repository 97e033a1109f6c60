"""Training and inference equal those of PyTorch: its layers, gradients, optimisers.

Skipped where torch is absent: `make torch` installs it.
"""

import itertools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict

from configs import googlenet
from inception_jax import average, models, program, sharding
from inception_jax.models import layers

torch = pytest.importorskip("torch", reason="torch is not installed: see `make torch`")

import torch_googlenet as theirs  # noqa: E402  it imports torch

torch.set_num_threads(1)  # the networks are narrow, and XLA has threads of its own
QUICK = {"xla_backend_optimization_level": 0}  # less to compile; convolutions are calls anyway
STEPS = 20
EXAMPLES, BATCH = 5, 2  # so that an epoch ends within a step
RATE = 0.01

# What each case's fields are, where they are not the published ones. Each has several, since to
# compile a case takes longer than its steps.
STEP = {"schedule.name": "step", "schedule.every_epochs": 1.5, "schedule.warmup_epochs": 2.0}
EXPONENTIAL = {"average.name": "exponential", "average.decay": 0.9}
CASES = {
    "step after warm-up, sgd, exponential average": STEP | EXPONENTIAL,
    "poly, nesterov, plain average": {
        "schedule.name": "poly",
        "optim.nesterov": True,
        "average.name": "plain",
    },
    "cosine, sgd, clipping, late exponential average": EXPONENTIAL
    | {"schedule.name": "cosine", "optim.clip_norm": 20.0, "average.start_epochs": 2.0},
    "step after warm-up, caffe, label smoothing, late plain average": STEP
    | {
        "optim.momentum_form": "caffe",
        "loss.label_smoothing": 0.1,
        "average.name": "plain",
        "average.start_epochs": 2.0,
    },
    "poly, adamw": {"schedule.name": "poly", "schedule.rate": 0.001, "optim.name": "adamw"},
}


def published(**fields):
    """The shared defaults, in float64 and narrow, without what is random or averaged."""
    config = googlenet.get_config()
    googlenet.without_distortions(config)
    config.update_from_flattened_dict(
        {
            "batch_size": BATCH,
            "epochs": STEPS * BATCH / EXAMPLES,
            "model.width": 0.125,
            "model.dtype": "float64",
            "model.dropout": 0.0,
            "model.auxiliary_dropout": 0.0,
            "average.name": "none",
            "data.image_size": 97,  # three of the four ceil-mode poolings hang over the edge
            "data.mirror": False,
        }
        | fields
    )
    return config


def batches(config, classes):
    """Endless random batches, of which any two differ."""
    rng = np.random.default_rng(3)
    size, side = config.batch_size, config.data.image_size
    while True:
        yield {
            "image": rng.integers(256, size=(size, side, side, 3), dtype=np.uint8),
            "label": rng.integers(classes, size=size).astype(np.int32),
            "epoch": np.zeros(size, np.int32),
            "example": np.arange(size, dtype=np.int32),
        }


def start(config, classes=7, drawn=True):
    """Returns (compiled training step, first state, placed(batch), the network in torch).

    Args:
      drawn: whether parameters are from draw and the rest is zeros, which saves compiling the
        program's own start.
    """
    mesh = sharding.make_mesh(config.mesh)
    run = program.make(config, mesh, num_examples=EXAMPLES, num_classes=classes)
    if drawn:
        state = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), run.state)
        state.params = jax.tree.map(jnp.array, draw(run.state.params))
        state.average = average.start(state.variables) if state.average else {}
    else:
        state = run.init()
    side = config.data.image_size
    network = theirs.GoogLeNet(classes, (side, side), config.model.width)
    theirs.load(network.to(getattr(torch, config.model.dtype)), state.params)
    lowered = run.train_step.lower(run.state, run.train_batch[side])
    step = lowered.compile(compiler_options=QUICK)
    return step, state, lambda batch: sharding.place_batch(batch, mesh), network


def draw(shapes, seed=1):
    """Random parameters; biases, too, as those of classifiers begin at 0."""
    rng = np.random.default_rng(seed)

    def uniform(leaf):
        return rng.uniform(-1, 1, leaf.shape) * math.sqrt(3 / math.prod(leaf.shape[:-1]))

    return jax.tree.map(uniform, shapes)


def torch_images(images_BHWC, dtype):
    """Mean subtracted and channels first, from uint8."""
    images = torch.from_numpy(images_BHWC).to(dtype) - torch.tensor([123, 117, 104], dtype=dtype)
    return images.permute(0, 3, 1, 2)


def torch_gradients(network, batch, smoothing=0.0):
    """Returns the loss, and leaves its gradient in the network's parameters."""
    images = torch_images(batch["image"], next(network.parameters()).dtype)
    labels = torch.from_numpy(batch["label"]).long()
    main, auxiliary = network(images)
    loss = torch.nn.CrossEntropyLoss(label_smoothing=smoothing)
    total = loss(main, labels) + sum(0.3 * loss(logits, labels) for logits in auxiliary)
    network.zero_grad()
    total.backward()
    return total.item()


def parameter_groups(network):
    """Biases learn twice as fast and are not decayed."""
    kinds = {"weight": [], "bias": []}
    for name, parameter in network.named_parameters():
        kinds[name.split(".")[-1]].append(parameter)
    return [
        {"params": kinds["weight"], "factor": 1.0, "weight_decay": 2e-4},
        {"params": kinds["bias"], "factor": 2.0, "weight_decay": 0.0},
    ]


class CaffeSGD:
    """The reference solver: V = 0.9 V + rate * gradient; W = W - V."""

    def __init__(self, groups):
        self.param_groups = [
            group | {"buffers": [torch.zeros_like(p) for p in group["params"]]} for group in groups
        ]

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for parameter, buffer in zip(group["params"], group["buffers"], strict=True):
                gradient = parameter.grad + group["weight_decay"] * parameter
                buffer.mul_(0.9).add_(group["lr"] * gradient)
                parameter.sub_(buffer)


def torch_optimizer(config, network):
    groups = parameter_groups(network)
    if config.optim.name == "adamw":
        return torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8)
    if config.optim.momentum_form == "caffe":
        return CaffeSGD(groups)
    return torch.optim.SGD(groups, lr=0.0, momentum=0.9, nesterov=config.optim.nesterov)


def rate(config, number):
    """In closed form, of step `number`, counted from 0."""
    warmup = {2.0: 5, 0.0: 0}[config.schedule.warmup_epochs]  # steps in 2 epochs of 5 images by 2
    t, total = number - warmup, STEPS - warmup
    if t < 0:
        return RATE * number / warmup
    if config.schedule.name == "step":
        return RATE * 0.96 ** (Fraction(t * BATCH, EXAMPLES) // Fraction(3, 2))
    if config.schedule.name == "poly":
        return config.schedule.rate * math.sqrt(1 - t / total)
    return RATE * (1 + math.cos(math.pi * t / total)) / 2


def clip(network, most):
    """Scales the gradient to that norm at most, and returns its norm; torch's own adds 1e-6."""
    norm = math.sqrt(sum(p.grad.square().sum().item() for p in network.parameters()))
    if norm > most:
        for parameter in network.parameters():
            parameter.grad.mul_(most / norm)
    return norm


def flat(tree):
    return {name: np.asarray(leaf) for name, leaf in flatten_dict(tree, sep="/").items()}


def check(ours, reference, bound, what):
    """Asserts that no array differs by more than bound times its largest value."""
    assert ours.keys() == reference.keys()
    apart = {}
    for name, value in reference.items():
        assert ours[name].dtype == value.dtype and ours[name].shape == value.shape, name
        difference, largest = np.abs(ours[name] - value).max(), np.abs(value).max()
        apart[name] = difference / largest if difference else 0.0
    bad = sorted(((by, name) for name, by in apart.items() if not by <= bound), reverse=True)
    assert not bad, f"{what}: {len(bad)} of {len(apart)} arrays differ, the worst: {bad[:5]}"


def train(config, steps=STEPS):
    """Trains both sides; yields (number, state, parameters in torch, norm before clipping)."""
    step, state, placed, network = start(config)
    optimizer = torch_optimizer(config, network)
    for number, batch in enumerate(itertools.islice(batches(config, 7), steps)):
        state, metrics = step(state, placed(batch))
        loss = torch_gradients(network, batch, config.loss.label_smoothing)
        norm = clip(network, config.optim.clip_norm or math.inf)
        for group in optimizer.param_groups:
            group["lr"] = group["factor"] * rate(config, number)
        optimizer.step()
        np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-9, err_msg=f"step {number}")
        after = theirs.parameters(network)
        check(flat(state.params), after, 1e-9, f"parameters after step {number}")
        yield number, state, after, norm


def average_by_hand(config, history):
    """The weighted sum of all parameters since the average began."""
    ages = np.arange(len(history))[::-1]
    weights = 0.9**ages if config.average.name == "exponential" else np.ones(len(ages))
    return {
        name: sum(w * p[name] for w, p in zip(weights, history, strict=True)) / weights.sum()
        for name in history[0]
    }


@pytest.mark.parametrize("case", CASES)
def test_twenty_steps_give_the_losses_parameters_and_averages_of_torch(x64, case):
    config = published(**CASES[case])
    assert len({rate(config, number) for number in range(STEPS)}) >= 8  # it does not stand still
    begins = {2.0: 5, 0.0: 0}[config.average.start_epochs]  # steps in 2 epochs of 5 images by 2
    history, norms = [], []
    for number, state, after, norm in train(config):
        # until it begins, the average is the parameters themselves
        history = [*history, after] if number > begins else [after]
        if config.average.name != "none":
            ours = flat(state.evaluated["params"])
            check(ours, average_by_hand(config, history), 1e-9, f"average after step {number}")
        norms.append(norm)
    assert len(norms) == STEPS
    clipped = [norm > config.optim.clip_norm > 0 for norm in norms]
    assert any(clipped) == (config.optim.clip_norm > 0) and not all(clipped), norms


def test_a_batch_in_four_parts_gives_the_steps_of_torchs_whole_batch(x64):
    config = published(**{"batch_size": 32, "accumulation": 4, "epochs": STEPS * 32 / EXAMPLES})
    config.schedule.name = "poly"
    assert len(list(train(config, steps=3))) == 3


class Replaced(torch.autograd.Function):
    """Another value, through which the gradient passes as through none."""

    @staticmethod
    def forward(ctx, x, value):
        return value

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


def test_the_published_network_has_torchs_loss_and_gradients_in_float32(monkeypatch):
    """In full: 224 pixels, 1,000 classes. Without decay the first step's momentum is the gradient.

    Some ten of the millions of signs and maxima that ReLU and pooling take hang on float32's last
    digit, and each that differs moves gradients by up to 1 % (torch's float32 and float64 are as
    far apart). So each layer of torch's gets, after its output was compared, the value of ours
    from within the training step, and both sides differentiate the same pieces.
    """
    config = published(
        **{
            "batch_size": 2,
            "model.width": 1.0,
            "model.dtype": "float32",
            "data.image_size": 224,
            "optim.weight_decay": 0.0,
        }
    )
    values, lrn = {}, layers.lrn

    def keep(name, x):
        jax.debug.callback(lambda x: values.__setitem__(name, np.array(x)), x)
        return x

    def keep_outputs(call, args, kwargs, context):
        output = call(*args, **kwargs)
        linear = isinstance(context.module, nn.Conv | nn.Dense)
        return keep("/".join(context.module.path), output) if linear else output

    def keep_lrn(x_BHWC, **constants):
        return keep({64: "lrn1", 192: "lrn2"}[x_BHWC.shape[-1]], lrn(x_BHWC, **constants))

    monkeypatch.setattr(layers, "lrn", keep_lrn)
    with nn.intercept_methods(keep_outputs):
        step, state, placed, network = start(config, classes=1000, drawn=False)
    batch = next(batches(config, 1000))
    values.clear()  # of the initialisation
    state, metrics = step(state, placed(batch))
    jax.block_until_ready(state)
    jax.effects_barrier()
    np.testing.assert_allclose(metrics["loss"], torch_gradients(network, batch), rtol=1e-4)

    def compare_and_replace(name, output):
        channels_last = (0, 2, 3, 1) if output.ndim == 4 else (0, 1)
        ours, reference = values.pop(name), output.detach().permute(channels_last).numpy()
        check({name: ours}, {name: reference}, 1e-5, "outputs")
        back = (0, 3, 1, 2) if output.ndim == 4 else (0, 1)
        return Replaced.apply(output, torch.from_numpy(ours).permute(back))

    for ours_name, module in theirs.layers(network).items():
        module.register_forward_hook(
            lambda module, inputs, output, name=ours_name: compare_and_replace(name, output)
        )
    network.lrn.register_forward_hook(
        lambda module, inputs, output: compare_and_replace(
            {64: "lrn1", 192: "lrn2"}[output.shape[1]], output
        )
    )
    torch_gradients(network, batch)
    assert not values  # each layer was compared
    gradients = flat(optax.tree.get(state.opt_state, "trace"))
    assert sum(value.size for value in gradients.values()) == 13_378_280
    check(gradients, theirs.parameters(network, gradients=True), 1e-4, "gradients")


def logits(height, width, heads):
    """Returns ours and torch's, main then auxiliary, of two images and random parameters."""
    model = models.build(published(**{"model.auxiliary_heads": heads}).model, 7)
    rng = np.random.default_rng(height * width)
    images = rng.integers(256, size=(2, height, width, 3), dtype=np.uint8)
    normal_BHWC = images - np.array([123.0, 117.0, 104.0])
    key = jax.random.key(0)
    shapes = jax.eval_shape(lambda x: model.init(key, x, train=heads), normal_BHWC)
    params = draw(shapes["params"])
    apply = jax.jit(model.apply, static_argnames="train", compiler_options=QUICK)
    ours = apply({"params": params}, normal_BHWC, train=heads)
    network = theirs.GoogLeNet(7, (height, width), 0.125, heads).double()
    with torch.no_grad():
        main, auxiliary = theirs.load(network, params)(torch_images(images, torch.float64))
    pairs = (ours.main_BK, *ours.auxiliary), (main, *auxiliary)
    return [{str(n): np.asarray(x) for n, x in enumerate(side)} for side in pairs]


@pytest.mark.parametrize(
    ("height", "width"), [(97, 97), (113, 113), (127, 127), (225, 225), (97, 130), (131, 96)]
)
def test_all_three_classifiers_say_what_torchs_say_at_odd_sizes(x64, height, width):
    """Where ceil mode, conv1's padding or the order of a flattened map would show."""
    ours, reference = logits(height, width, heads=True)
    assert len(reference) == 3
    check(ours, reference, 1e-10, "logits")


@pytest.mark.parametrize(("height", "width"), [(33, 50), (65, 31)])
def test_evaluation_says_what_torchs_says_of_images_too_small_for_auxiliary_heads(
    x64, height, width
):
    ours, reference = logits(height, width, heads=False)
    assert len(reference) == 1
    check(ours, reference, 1e-10, "logits")


@pytest.mark.parametrize("reduce, name", [(jnp.max, "max"), (jnp.mean, "avg")])
def test_bins_are_those_of_adaptive_pooling(reduce, name, x64):
    """Values and gradients, of maps with even and odd sides."""
    rng = np.random.default_rng(0)
    sides = [(n, 18 - n, bins) for n in range(5, 14) for bins in range(1, 7)]
    cases = [(rows, columns, bins) for rows, columns, bins in sides if bins <= min(rows, columns)]
    xs = [rng.normal(size=(2, rows, columns, 3)) for rows, columns, _ in cases]
    dys = [rng.normal(size=(2, bins, bins, 3)) for *_, bins in cases]

    def pools(xs):
        every = zip(xs, cases, strict=True)
        return [layers.bin_pool(x, bins, reduce) for x, (*_, bins) in every]

    def both(xs, dys):
        ys, pull = jax.vjp(pools, xs)
        return ys, pull(dys)[0]

    adaptive = getattr(torch.nn.functional, f"adaptive_{name}_pool2d")
    ys, dxs = jax.jit(both, compiler_options=QUICK)(xs, dys)
    for x, dy, y, dx in zip(xs, dys, ys, dxs, strict=True):
        x_BCHW = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
        expected = adaptive(x_BCHW, dy.shape[1])
        expected.backward(torch.tensor(dy.transpose(0, 3, 1, 2)))
        for ours, tensor in ((y, expected.detach()), (dx, x_BCHW.grad)):
            torchs = tensor.numpy().transpose(0, 2, 3, 1)
            np.testing.assert_allclose(ours, torchs, rtol=1e-12, atol=1e-12)
