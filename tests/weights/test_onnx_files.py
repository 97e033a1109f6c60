"""ONNX files as exporters write them, and as they should not be."""

import functools

import graphs
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from test_onnx import CLOSE, difference, ours, photos

from inception_jax.errors import UserError
from inception_jax.weights import importer, mapping, onnx_file, topology


@functools.cache
def serialised(name):
    return graphs.load(name).SerializeToString()


def fresh(name="googlenet"):
    return onnx.ModelProto.FromString(serialised(name))


def converted(model, name="googlenet"):
    """Returns what was found, and the variables for RGB."""
    found = topology.find(onnx_file.Graph(model), name)
    expected = mapping.shapes(found.config.model, found.num_classes, found.image_size)
    assert mapping.problems(found, expected) == []
    rgb = mapping.PREPROCESSING["torchvision"]
    return found, mapping.convert(found, expected, rgb)


def logits(model, name="googlenet", size=224):
    """Of ours and of onnxruntime, for images that neither prepares."""
    found, variables = converted(model, name)
    found.config.data.mean, found.config.data.std = (0.0,) * 3, (1.0,) * 3
    images = photos(2, size, size)
    last = graphs.layers(model)[-1]
    (expected,) = graphs.run(model, images, [last])
    got = ours(found.config, variables, images)
    return found, got["loss3/classifier" if name == "googlenet" else "fc8"], expected


def nodes(model, kind):
    return [node for node in model.graph.node if node.op_type == kind]


def as_inputs(model):
    """As before IR version 4, where every initializer is an input, too."""
    for each in model.graph.initializer:
        if each.name not in {value.name for value in model.graph.input}:
            value = helper.make_tensor_value_info(each.name, each.data_type, each.dims)
            model.graph.input.append(value)


def as_no_inputs(model):
    names = {each.name for each in model.graph.initializer}
    kept = [value for value in model.graph.input if value.name not in names]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    model.ir_version = 8


def as_constants(model):
    """As PyTorch's exporter wrote small tensors, and others all of them."""
    made = [
        helper.make_node("Constant", [], [each.name], value=each)
        for each in model.graph.initializer
    ]
    graphs.keep(model.graph, [*made, *model.graph.node])
    graphs.drop(model.graph, [node.output[0] for node in made])


def shuffled(model):
    """Weights in another order, under names that say nothing."""
    tensors = list(model.graph.initializer)
    as_no_inputs(model)
    names = {each.name: f"t{(7 * i) % len(tensors)}" for i, each in enumerate(tensors)}
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = names.get(name, name)
    for each in tensors:
        each.name = names[each.name]
    graphs.drop(model.graph, [])
    ordered = sorted(model.graph.initializer, key=lambda each: each.name)
    del model.graph.initializer[:]
    model.graph.initializer.extend(ordered)


def transposed(model):
    """The classifier's weights as IO."""
    gemm = nodes(model, "Gemm")[0]
    reshape = next(n for n in model.graph.node if n.output[0] == gemm.input[1])
    graphs.set_tensor(model, reshape.input[1], lambda _: np.array([1024, 1000]))
    graphs.set_tensor(
        model, reshape.input[0], lambda a: np.ascontiguousarray(a.reshape(1000, 1024).T)
    )
    del gemm.attribute[:]


@pytest.mark.parametrize("form", [as_inputs, as_no_inputs, as_constants, shuffled, transposed])
def test_weights_are_found_wherever_they_stand(form):
    _, expected = converted(fresh())
    model = fresh()
    form(model)
    onnx.checker.check_model(model)
    _, got = converted(model)
    for a, b in zip(*(mapping.flatten_dict(x).values() for x in (got, expected)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_ceil_mode_is_read_as_well_as_pads():
    """Then it is the published network, also where windows hang over the edge, as at 224."""
    model = fresh()
    model.opset_import[0].version = 10
    for node in nodes(model, "MaxPool"):
        if node.attribute[0].name and helper.get_node_attr_value(node, "strides") == [2, 2]:
            node.attribute.append(helper.make_attribute("ceil_mode", 1))
    (mean,) = nodes(model, "AveragePool")
    set_attribute(mean, pads=[0, 0, 0, 0])
    found, got, expected = logits(model)
    assert found.config.model.floor_pools is None
    assert difference(got, expected) < CLOSE

    padded = fresh()  # as the exporter of Caffe2 wrote ceil mode
    for node in nodes(padded, "MaxPool"):
        if helper.get_node_attr_value(node, "strides") == [2, 2]:
            set_attribute(node, pads=[0, 0, 1, 1])
    set_attribute(nodes(padded, "AveragePool")[0], pads=[0, 0, 0, 0])
    found, got, _ = logits(padded)
    assert found.config.model.floor_pools is None
    assert difference(got, expected) < CLOSE


def test_a_convolution_without_bias_has_zeros():
    model = fresh()
    conv = next(n for n in nodes(model, "Conv") if n.input[2] == "inception_4b/3x3_b_0")
    del conv.input[2]
    graphs.drop(model.graph, ["inception_4b/3x3_b_0"])
    _, got, expected = logits(model)
    assert difference(got, expected) < CLOSE


def test_batch_norm_after_biased_convolutions_is_read():
    """As the Model Zoo's vgg19-bn; compared before the fully connected layers, which it lacks."""
    model = onnx.load(graphs.LIGHT / "light_vgg19.onnx")
    filled = {each.name: each for each in fresh("vgg19").graph.initializer}
    convolutions = nodes(model, "Conv")
    of_convolutions = {name for node in convolutions for name in node.input[1:]}
    rng = np.random.default_rng(1)
    made, found_nodes = [], []
    for node in model.graph.node:
        if node.output[0] in of_convolutions:
            continue
        made.append(node)
        if node.op_type != "Conv":
            continue
        end = node.output[0]
        node.output[0] = f"{end}_raw"
        channels = filled[node.input[1]].dims[0]
        statistics = [
            rng.uniform(0.5, 2, channels),
            rng.normal(size=channels),
            rng.normal(size=channels),
            rng.uniform(0.5, 2, channels),
        ]
        names = [f"{end}_{i}" for i in range(4)]
        made.append(helper.make_node("BatchNormalization", [f"{end}_raw", *names], [end]))
        made[-1].attribute.append(helper.make_attribute("epsilon", 0.01))
        found_nodes.append(made[-1])
        for name, values in zip(names, statistics, strict=True):
            tensor = numpy_helper.from_array(values.astype(np.float32), name)
            model.graph.initializer.append(tensor)
    shapes = {f"{name}__SHAPE" for name in of_convolutions}
    graphs.drop(model.graph, of_convolutions | shapes)
    model.graph.initializer.extend(filled[name] for name in of_convolutions)
    graphs.keep(model.graph, made)
    as_no_inputs(model)
    shape = model.graph.input[0].type.tensor_type.shape.dim
    for axis, dimension in zip("BHW", (shape[0], *shape[2:]), strict=True):
        dimension.dim_param = axis
    found, variables = converted(model, "vgg19")
    assert found.config.model.batch_norm and found.config.model.batch_norm_epsilon == 0.01
    found.config.data.mean = (0.0,) * 3
    images = photos(2, 48, 64)
    # what comes of batch norm is seen in the next convolution
    expected = graphs.run(model, images, convolutions)
    got = ours(found.config, variables, images)
    names = sorted(layer for layer in got if layer.startswith("conv"))
    assert len(names) == len(convolutions) == 16
    bias = np.array([0.0])
    for name, node, theirs in zip(names, convolutions, expected, strict=True):
        bias = numpy_helper.to_array(filled[node.input[2]])
        assert difference(got[name] + bias, theirs) < CLOSE, name  # ours is in the mean
    assert np.abs(bias).max() > 0.1


def set_attribute(node, **values):
    kept = [each for each in node.attribute if each.name not in values]
    del node.attribute[:]
    node.attribute.extend(kept)
    node.attribute.extend(helper.make_attribute(*each) for each in values.items())


def renamed(name, prefix):
    return prefix + name.replace("_w_0", "_weight").replace("_b_0", "_bias")


def test_mxnets_vgg_and_unknown_exporters(tmp_path):
    """MXNet flattens before every fully connected layer, ends without Softmax and takes RGB."""
    model = onnx.load(graphs.LIGHT / "light_vgg19.onnx")
    model.producer_name = ""
    (reshape,) = nodes(model, "Reshape")
    graphs.drop(model.graph, [reshape.input[1]])
    made = []
    for node in model.graph.node:
        if node.op_type in ("Softmax", "Reshape"):
            continue
        if node.op_type == "Gemm":
            if node.input[0] == reshape.output[0]:
                node.input[0] = reshape.input[0]
            made.append(helper.make_node("Flatten", [node.input[0]], [f"{node.input[0]}_flat"]))
            node.input[0] = f"{node.input[0]}_flat"
        made.append(node)
    graphs.keep(model.graph, made)
    model.graph.output[0].name = made[-1].output[0]
    old_names = {n for node in model.graph.node for n in node.input if n.endswith(("_w_0", "_b_0"))}
    for prefix, expected in (("vgg0_conv0_", "torchvision"), ("features_", None)):
        named = onnx.ModelProto.FromString(model.SerializeToString())
        for node in named.graph.node:
            for names in (node.input, node.output):
                for i, name in enumerate(names):
                    names[i] = renamed(name, prefix) if name in old_names else name
        for each in named.graph.initializer:
            each.name = renamed(each.name, prefix) if each.name in old_names else each.name
        found, _ = converted(named, "vgg19")
        assert found.preprocessing == expected
    onnx.save(named, tmp_path / "a.onnx")
    with pytest.raises(UserError, match="set --preprocessing to caffe, vgg,"):
        importer.convert_file(tmp_path / "a.onnx", "vgg19", tmp_path / "out", None)
    assert not (tmp_path / "out").exists()


def refused(tmp_path, model, name="googlenet", **saving):
    """Returns the message; nothing may be written."""
    onnx.save_model(model, tmp_path / "a.onnx", **saving)
    return refused_file(tmp_path, "a.onnx", name)


def refused_file(tmp_path, file, name="googlenet"):
    with pytest.raises(UserError) as caught:
        importer.convert_file(tmp_path / file, name, tmp_path / "out", None)
    assert not (tmp_path / "out").exists()
    return str(caught.value)


def test_all_tensors_that_do_not_fit_are_told_at_once(tmp_path):
    model = fresh()
    graphs.drop(model.graph, ["inception_3a/1x1_w_0", "inception_4b/3x3_b_0"])
    graphs.set_tensor(model, "inception_5b/3x3_w_0", lambda a: a[:, :100])
    graphs.set_tensor(model, "loss3/classifier_w_0", lambda a: a[..., :1000])
    graphs.set_tensor(model, "inception_5a/3x3_w_0", lambda a: a * np.nan)
    graphs.set_tensor(model, "inception_5a/1x1_b_0", lambda a: np.arange(len(a)))
    extra = np.zeros((2, 3), np.float32)
    model.graph.initializer.append(numpy_helper.from_array(extra, "more"))
    set_attribute(nodes(model, "LRN")[1], size=3)
    set_attribute(nodes(model, "Conv")[0], strides=[1, 1], pads=[3, 3, 2, 2])
    text = refused(tmp_path, model)
    assert sorted(line.strip() for line in text.splitlines()[1:]) == [
        "conv1/7x7_s2 has pads [3, 3, 2, 2], not [3, 3, 3, 3]",
        "conv1/7x7_s2 has strides [1, 1], not [2, 2]",
        "conv2/norm2 has size 3 and beta 0.75, not 5 and 0.75",
        "extra: more",
        "missing: inception_3a/1x1_w_0 (64x192x1x1)",
        "missing: inception_4b/3x3_b_0 (224)",
        "not finite: inception_5a/3x3_w_0",
        "shape of inception_5b/3x3_w_0: 384x100x3x3, not 384x192x3x3",
        "shape of loss3/classifier_w_0: 1x1x1000x1000, not 1000x1024",
        "type of inception_5a/1x1_b_0: int64, not floating point",
    ]


def append_layer(model):
    """A second output beside the logits, with weights."""
    extra = helper.make_node("Gemm", ["r141", "more_w", "more_b"], ["more"], transB=1)
    model.graph.node.append(extra)
    for name, shape in (("more_w", (4, 1024)), ("more_b", (4,))):
        tensor = numpy_helper.from_array(np.zeros(shape, np.float32), name)
        model.graph.initializer.append(tensor)


def reorder_branches(model):
    concat = nodes(model, "Concat")[3]
    concat.input[0], concat.input[1] = concat.input[1], concat.input[0]


def feed_another_map(model):
    """One branch of 4a starts before the pooling."""
    conv = next(n for n in nodes(model, "Conv") if n.input[1] == "inception_4a/1x1_w_0")
    conv.input[0] = "r37"


def subtract_first(model):
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = "prepared" if name == "data_0" else name
    first = helper.make_node("Neg", ["data_0"], ["prepared"])
    graphs.keep(model.graph, [first, *model.graph.node])


def test_the_size_of_images_is_the_graphs():
    """224 in the Model Zoo's AlexNet, whose paper's maps need 227."""
    graph = onnx_file.read(graphs.LIGHT / "light_bvlc_alexnet.onnx")
    assert topology.find(graph, "alexnet").image_size == 224


def fix_size(model):
    for value in model.graph.input:
        if value.name == "data_0":
            height, width = value.type.tensor_type.shape.dim[2:]
            height.dim_value, width.dim_value = 224, 256


@pytest.mark.parametrize(
    "change, parts",
    [
        (append_layer, ["further layers: Gemm", "extra: more_b", "extra: more_w"]),
        (reorder_branches, ["inception_4b/1x1 has kernel_shape [3, 3], not [1, 1]"]),
        (feed_another_map, ["the branches of inception_4a begin at different maps: r37, r38"]),
        (subtract_first, ["before conv1/7x7_s2 it has Neg (prepared), not the image"]),
        (fix_size, ["images are 224x256, not square"]),
        (
            lambda m: set_attribute(nodes(m, "MaxPool")[0], pads=[1, 1, 1, 1]),
            ["pool1 pads [1, 1, 1, 1]"],
        ),
        (
            lambda m: set_attribute(nodes(m, "LRN")[0], alpha=0.01),
            ["lrn_alpha is [0.0001, 0.01], not the same in all layers"],
        ),
        (
            lambda m: set_attribute(nodes(m, "AveragePool")[0], kernel_shape=[5, 5]),
            ["the mean is of 5 pixels a side, not of all 6 of the map"],
        ),
        (
            lambda m: set_attribute(nodes(m, "AveragePool")[0], count_include_pad=1),
            ["pool5 counts its padding"],
        ),
        (lambda m: set_attribute(nodes(m, "Gemm")[0], alpha=2.0), ["has alpha 2.0, not 1.0"]),
        (
            lambda m: set_attribute(nodes(m, "Conv")[2], dilations=[2, 2]),
            ["conv2/3x3 has dilations [2, 2], not [1, 1]"],
        ),
        (
            lambda m: set_attribute(nodes(m, "Conv")[2], auto_pad="SAME_UPPER"),
            ["conv2/3x3 has auto_pad"],
        ),
    ],
)
def test_a_graph_that_computes_something_else_is_refused(change, parts, tmp_path):
    model = fresh()
    change(model)
    text = refused(tmp_path, model)
    assert text.startswith(f"{tmp_path / 'a.onnx'} is not googlenet:\n")
    assert all(part in text for part in parts), text


@pytest.mark.parametrize(
    "light, asked, hint",
    [
        ("inception_v1", "vgg16", "; it fits --model=googlenet:"),
        ("vgg19", "vgg16", "; it fits --model=vgg19:"),
        ("zfnet512", "zfnet", "; it fits --model=zfnet512:"),
        ("bvlc_alexnet", "zfnet512", "; it fits --model=alexnet:"),
        ("squeezenet", "googlenet", ":"),
        ("resnet50", "vgg19", ":"),
        ("inception_v2", "googlenet", ":"),
    ],
)
def test_another_architecture_is_refused_and_named_where_it_is_known(light, asked, hint, tmp_path):
    path = graphs.LIGHT / f"light_{light}.onnx"
    with pytest.raises(UserError) as caught:
        importer.convert_file(path, asked, tmp_path / "out", None)
    first, *lines = str(caught.value).splitlines()
    assert first == f"{path} is not {asked}{hint}"
    assert lines[0].startswith(("  another architecture: before ", "  conv", "  pool"))
    assert not (tmp_path / "out").exists()


def test_data_beside_the_file_are_read_and_nothing_outside_its_folder(tmp_path):
    folder = tmp_path / "in"
    (folder / "data").mkdir(parents=True)
    options = {"save_as_external_data": True, "size_threshold": 4096}
    onnx.save_model(fresh(), folder / "a.onnx", location="data/w.bin", **options)
    importer.convert_file(folder / "a.onnx", "googlenet", tmp_path / "whole", None)
    assert (tmp_path / "whole" / "checkpoints" / "0").is_dir()

    def moved(location):
        model = onnx.load(folder / "a.onnx", load_external_data=False)
        for each in model.graph.initializer:
            for entry in each.external_data:
                entry.value = location if entry.key == "location" else entry.value
        onnx.save(model, folder / "b.onnx")
        with pytest.raises(UserError) as caught:
            importer.convert_file(folder / "b.onnx", "googlenet", tmp_path / "out", None)
        assert not (tmp_path / "out").exists()
        return str(caught.value)

    outside = tmp_path / "w.bin"
    outside.write_bytes((folder / "data" / "w.bin").read_bytes())
    (folder / "link.bin").symlink_to(outside)
    for location in ("../w.bin", str(outside), "data/../../w.bin", "link.bin"):
        text = moved(location)
        assert f"in {location!r}, outside its own folder, which is not read" in text
    assert "in 'none.bin', which is not there: put it beside the file" in moved("none.bin")
    (folder / "short.bin").write_bytes(outside.read_bytes()[:-100])
    assert "damaged or cut short" in moved("short.bin")


def test_damaged_graphs_end_in_a_message_whatever_the_damage(tmp_path):
    """And before a shape that nothing has takes all memory."""
    whole = (graphs.LIGHT / "light_zfnet512.onnx").read_bytes()
    rng = np.random.default_rng(0)
    refusals = 0
    for _ in range(150):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), rng.integers(1, 4)):
            damaged[place] ^= 1 << rng.integers(8)
        (tmp_path / "a.onnx").write_bytes(damaged)
        try:
            graph = onnx_file.read(tmp_path / "a.onnx")
            found = topology.find(graph, "zfnet512") if graph else None
        except UserError as error:
            assert "\n" not in str(error)
            refusals += 1
        else:
            refusals += found is None or bool(found.problems)
    assert refusals > 75

    model = onnx.load(graphs.LIGHT / "light_zfnet512.onnx")
    graphs.set_tensor(model, "gpu_0/fc6_w_0__SHAPE", lambda shape: shape * 1000)
    text = refused(tmp_path, model, "zfnet512")
    assert "shape of gpu_0/fc6_w_0__SHAPE: 2, not 4096x18432" in text


def test_files_that_are_none_or_cut_short_are_told(tmp_path):
    whole = serialised("googlenet")
    for length in (len(whole) // 7, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.onnx").write_bytes(whole[:length])
        assert "cut short: download it again" in refused_file(tmp_path, "cut.onnx")
    (tmp_path / "cut").write_bytes(whole[: len(whole) // 2])
    contents = {
        "cut": whole[: len(whole) // 2],
        "empty": b"",
        "text": b"# weights\n" * 100,
        "png": b"\x89PNG\r\n\x1a\n" + bytes(100),
        "hdf5": b"\x89HDF\r\n\x1a\n" + bytes(100),
        "zeros": bytes(1000),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        assert "is none of ONNX, a PyTorch state dict (.pth)" in refused_file(tmp_path, name)
    assert refused_file(tmp_path, "nothing").startswith(f"cannot read {tmp_path / 'nothing'}: No")
    (tmp_path / "folder").mkdir()
    assert "Is a directory" in refused_file(tmp_path, "folder")
