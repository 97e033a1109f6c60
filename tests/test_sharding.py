"""Where a state lies: what shares it on a mesh, told from shapes alone."""

import jax
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from configs import imagenet
from inception_jax import models, sharding, step
from inception_jax.errors import UserError
from inception_jax.names import name_of


def variables(name):
    config = imagenet.get_config(name)
    model = models.build(config.model, 1000)
    return jax.eval_shape(lambda: step.init_variables(model, config.data.image_size, 0))


def place(name, slices=1, data=1, model=1, fully_sharded=False):
    config = imagenet.get_config(name).mesh
    config.fully_sharded = fully_sharded
    mesh = AbstractMesh((slices, data, model), sharding.AXES)
    tree = variables(name)
    return tree, sharding.of_state(tree, mesh, config)


def held(tree, shardings):
    """The share of all numbers that one device holds."""
    leaves = list(zip(jax.tree.leaves(tree), jax.tree.leaves(shardings), strict=True))
    sizes = [(x.size, jax.numpy.prod(jax.numpy.array(s.shard_shape(x.shape)))) for x, s in leaves]
    return float(sum(own for _, own in sizes) / sum(size for size, _ in sizes))


@pytest.mark.parametrize("name", ["googlenet", "alexnet", "vgg16", "sppnet"])
@pytest.mark.parametrize(("slices", "data"), [(1, 8), (2, 4)])
def test_a_fully_sharded_network_lies_in_equal_parts(slices, data, name):
    assert held(*place(name, slices, data, fully_sharded=True)) == pytest.approx(1 / data, rel=1e-3)
    assert held(*place(name, slices, data)) == 1


def test_the_largest_layer_is_shared_by_a_whole_pod():
    tree, where = place("vgg16", data=256, fully_sharded=True)
    assert where["params"]["fc6"]["kernel"].shard_shape((25088, 4096)) == (98, 4096)
    assert held(tree, where) < 1 / 150  # some axes of small layers do not divide


def test_columns_then_rows_of_fully_connected_layers_are_split_over_model():
    _, where = place("vgg16", data=2, model=4)
    specs = {layer: (s["kernel"].spec, s["bias"].spec) for layer, s in where["params"].items()}
    none = PartitionSpec(None)
    assert specs["fc6"] == (PartitionSpec(None, "model"), PartitionSpec("model"))
    assert specs["fc7"] == specs["fc8"] == (PartitionSpec("model", None), none)
    assert all(not any(kernel) for layer, (kernel, _) in specs.items() if layer[:2] != "fc")


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("googlenet", {"loss1/fc", "loss2/fc"} | {f"loss{n}/classifier" for n in (1, 2, 3)}),
        ("alexnet", {"fc6", "fc7", "fc8"}),
        ("sppnet", {"fc6", "fc7", "fc8"}),
    ],
)
def test_every_fully_connected_layer_is_split(name, layers):
    _, where = place(name, model=2)
    leaves = jax.tree_util.tree_flatten_with_path(where["params"])[0]
    split = {name_of(path[:-1]) for path, found in leaves if any(found.spec)}
    assert split == layers


def test_both_share_a_layer():
    _, where = place("vgg16", data=4, model=2, fully_sharded=True)
    assert where["params"]["fc6"]["kernel"].shard_shape((25088, 4096)) == (6272, 2048)


def test_the_optimisers_state_and_averages_lie_beside_their_parameters():
    config = imagenet.get_config("vgg16").mesh
    config.fully_sharded = True
    mesh = AbstractMesh((1, 4, 2), sharding.AXES)
    params = variables("vgg16")["params"]
    state = {"opt_state": ({"trace": params}, {"count": jax.ShapeDtypeStruct((), int)})}
    state |= {"params": params, "average": {"mean": {"params": params}}}
    where = sharding.of_state(state, mesh, config)
    assert where["opt_state"][0]["trace"] == where["params"]
    assert where["average"]["mean"]["params"] == where["params"]
    assert where["opt_state"][1]["count"].spec == PartitionSpec()


def test_a_line_tells_what_each_device_holds():
    tree = {"fc6": {"kernel": jax.ShapeDtypeStruct((1000, 250), "float32")}}
    config = imagenet.get_config().mesh
    config.fully_sharded = True
    mesh = AbstractMesh((2, 4, 1), sharding.AXES)
    where = sharding.of_state(tree, mesh, config)["fc6"]["kernel"]
    state = [jax.ShapeDtypeStruct((1000, 250), "float32", sharding=where)]
    assert sharding.told(state, mesh) == (
        "8 devices, slice 2 x data 4 x model 1; parameters and all that is kept with them:"
        " 1.0 MB, 0.2 MB on each"
    )


class Device:
    """As TPUs and GPUs look from afar; nothing is computed on it."""

    platform, device_kind = "cpu", "cpu"

    def __init__(self, number, process, **more):
        self.id, self.process_index = number, process
        vars(self).update(more)


def mesh_of(devices, **fields):
    config = imagenet.get_config().mesh
    config.update(fields)
    mesh = sharding.make_mesh(config, devices)
    return dict(mesh.shape), [[[d.id for d in row] for row in s] for s in mesh.devices]


def test_slices_are_the_outermost_axis_whatever_the_order_of_devices():
    devices = [Device(n, n // 2, slice_index=(n // 2) % 2) for n in range(8)]
    shape, ids = mesh_of(devices)
    assert shape == {"slice": 2, "data": 4, "model": 1}
    assert ids == [[[0], [1], [4], [5]], [[2], [3], [6], [7]]]
    assert mesh_of(devices, model=2)[1] == [[[0, 1], [4, 5]], [[2, 3], [6, 7]]]
    assert mesh_of(devices, model=-1, data=1)[1] == [[[0, 1, 4, 5]], [[2, 3, 6, 7]]]


@pytest.mark.parametrize("more", [{}, {"slice_index": None}, {"slice_index": 0}])
def test_devices_of_one_slice_can_be_grouped_by_hand(more):
    devices = [Device(n, 0, **more) for n in range(4)]
    assert mesh_of(devices)[0] == {"slice": 1, "data": 4, "model": 1}
    assert mesh_of(devices, slices=2)[1] == [[[0], [1]], [[2], [3]]]


@pytest.mark.parametrize(
    "fields", [{"data": 3}, {"model": 3}, {"slices": 3}, {"data": 8}, {"data": 2, "model": 4}]
)
def test_a_mesh_that_does_not_take_all_devices_is_told(fields):
    with pytest.raises(UserError) as raised:
        mesh_of([Device(n, 0) for n in range(4)], **fields)
    told, _, rule = str(raised.value).partition(": ")
    assert "cannot lay out 4 devices" in told
    known = all(size != -1 for size in ({"data": -1, "model": 1, "slices": -1} | fields).values())
    assert rule == f"the product has to {'be' if known else 'divide'} their number"


def test_what_does_not_divide_is_told():
    with pytest.raises(UserError, match=r"config.mesh.model=3 does not divide the 4096 outputs of"):
        place("vgg16", model=3)
