"""A folder of images: every format as Pillow sees it, and each mistake in it in one line."""

import io
import json
import os
import struct

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from configs import digits
from inception_jax.data import augment, datasets
from inception_jax.errors import UserError

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (13, 17, 4), np.uint8)
RGBA = Image.fromarray(NOISE)
RGB, GREY = RGBA.convert("RGB"), Image.fromarray(NOISE[..., 0])
BITS_16 = RNG.integers(0, 2**16, (13, 17), np.uint16)
XMP = '<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'


def encode(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def orientation(number):
    exif = Image.Exif()
    exif[0x0112] = number
    return exif


def late_exif(png):
    """Moves the eXIf chunk of a PNG behind its pixels, where the standard allows it as well."""
    at = png.index(b"eXIf") - 4
    end = at + 12 + struct.unpack_from(">I", png, at)[0]
    return png[:at] + png[end:-12] + png[at:end] + png[-12:]


def with_text(image, key, text):
    info = PngImagePlugin.PngInfo()
    info.add_itxt(key, text)
    return encode(image, "PNG", pnginfo=info)


def tiff(values, form, bits, order="<", samples=1):
    """A grey TIFF written by hand; form is 1 for unsigned numbers, 2 for signed, 3 for floats."""
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    height, width = values.shape
    fields = {256: width, 257: height, 258: bits, 259: 1, 262: 1, 273: 8, 278: height}
    fields |= {277: samples, 279: len(data), 339: form}
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, v) for tag, v in fields.items())
    start = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", 8 + len(data))
    return start + data + struct.pack(f"{order}H", len(fields)) + entries + bytes(4)


# Files that TensorFlow gets as they are.
PASSED = {
    "rgb.jpg": encode(RGB, "JPEG"),
    "grey.jpg": encode(GREY, "JPEG"),
    "progressive.jpg": encode(RGB, "JPEG", progressive=True),
    "upright.jpg": encode(RGB, "JPEG", exif=orientation(1)),
    "trailing_bytes.jpg": encode(RGB, "JPEG") + b"more",
    "several.jpg": encode(RGB, "MPO", save_all=True, append_images=[GREY.convert("RGB")]),
    "damaged_exif.jpg": encode(RGB, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0"),
    "rgb.png": encode(RGB, "PNG"),
    "alpha.png": encode(RGBA, "PNG"),
    "grey.png": encode(GREY, "PNG"),
    "grey_alpha.png": encode(RGBA.convert("LA"), "PNG"),
    "grey_transparent.png": encode(GREY, "PNG", transparency=int(NOISE[0, 0, 0])),
    "bit.png": encode(GREY.convert("1"), "PNG"),
    "palette.png": encode(RGB.quantize(50), "PNG"),
    "palette_2_bits.png": encode(RGB.quantize(4), "PNG", bits=2),
    "palette_alpha.png": encode(RGB.quantize(50), "PNG", transparency=bytes(range(50))),
    "upright.png": encode(RGB, "PNG", exif=orientation(1)),
}
CONVERTED = {
    "cmyk.jpg": encode(Image.fromarray(NOISE, "CMYK"), "JPEG", quality=100),
    "trailing_bytes.png": encode(RGB, "PNG") + b"more",
    "endless.png": encode(RGB, "PNG")[:-12],
    "palette.gif": encode(RGB.quantize(50), "GIF"),
    "moving.gif": encode(RGB, "GIF", save_all=True, append_images=[GREY.convert("RGB")]),
    "rgb.bmp": encode(RGB, "BMP"),
    "bit.bmp": encode(GREY.convert("1"), "BMP"),
    "lossy.webp": encode(RGB, "WEBP"),
    "lossless.webp": encode(RGBA, "WEBP", lossless=True),
    "rgb.tiff": encode(RGB, "TIFF"),
    "cmyk.tiff": encode(Image.fromarray(NOISE, "CMYK"), "TIFF"),
    "named_wrongly.jpg": encode(RGB, "WEBP"),
}
DEEP = {  # 16 bits, whose upper 8 count
    "deep.png": encode(Image.fromarray(BITS_16), "PNG"),
    "deep.tiff": encode(Image.fromarray(BITS_16), "TIFF"),
    "big_endian.tiff": tiff(BITS_16, 1, 16, ">"),
    "of_32.tiff": tiff(BITS_16.astype(np.uint32), 1, 32),
    "deep.pgm": b"P5 17 13 65535\n" + BITS_16.astype(">u2").tobytes(),
}
TURNED = {  # by EXIF's orientation: rows and columns of the image as it is to be seen
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: x[::-1].swapaxes(0, 1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: x[:, ::-1].swapaxes(0, 1),
}
PNG = b"\x89PNG"


def settings(folder, train_split="train", eval_split="val"):
    config = digits.get_config().data
    config.name, config.dir = "image_folder", str(folder)
    config.train_split, config.eval_split = train_split, eval_split
    return config


def fill(folder, files):
    """Writes {path: bytes}."""
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


def load(folder, **splits):
    return datasets.load(settings(folder, **splits))


def message(folder, **splits):
    with pytest.raises(UserError) as caught:
        load(folder, **splits)
    text = str(caught.value)
    assert "\n" not in text
    return text


ONE = encode(RGB, "PNG")
SMALL = {"train/cat/1.png": ONE, "train/dog/1.png": ONE, "val/cat/2.png": ONE}


@pytest.fixture
def small(tmp_path):
    """Three images in two classes."""
    return fill(tmp_path / "pets", SMALL)


def read_one(folder, name, data):
    """What a file gives: its bytes, and its pixels by the decoder of the pipeline."""
    fill(folder, {f"only/x/{name}": data})
    encoded, label = load(folder, train_split="only", eval_split="only").train.read(0)
    assert label == 0
    return encoded, augment.decode(encoded)


def by_pillow(data):
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("name", PASSED)
def test_what_both_decode_alike_stays_as_it_is(name, tmp_path):
    encoded, pixels = read_one(tmp_path, name, PASSED[name])
    assert encoded == PASSED[name]
    with pytest.MonkeyPatch.context() as patch:  # Pillow's word on what it ignores
        patch.setattr("warnings.warn", lambda *_: None)
        np.testing.assert_array_equal(pixels, by_pillow(PASSED[name]))


@pytest.mark.parametrize("name", CONVERTED)
def test_every_other_format_is_what_pillow_sees(name, tmp_path):
    encoded, pixels = read_one(tmp_path, name, CONVERTED[name])
    assert encoded.startswith(PNG)
    np.testing.assert_array_equal(pixels, by_pillow(CONVERTED[name]))


@pytest.mark.parametrize("name", DEEP)
def test_of_16_bits_the_upper_8_count(name, tmp_path):
    """Pillow's own conversion would make nearly all of them white."""
    _, pixels = read_one(tmp_path, name, DEEP[name])
    np.testing.assert_array_equal(pixels, np.repeat((BITS_16 // 256)[..., None], 3, -1))


@pytest.mark.parametrize("number", TURNED)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_photographs_stand_upright(kind, number, tmp_path):
    data = encode(RGB, kind, exif=orientation(number))
    _, pixels = read_one(tmp_path, "turned", data)
    as_stored = by_pillow(encode(RGB, kind))
    np.testing.assert_array_equal(pixels, TURNED[number](as_stored))


@pytest.mark.parametrize(
    "data",
    [
        late_exif(encode(RGB, "PNG", exif=orientation(6))),
        with_text(RGB, "XML:com.adobe.xmp", XMP),
        with_text(RGB, "Raw profile type exif", f"\nexif\n0\n{orientation(6).tobytes().hex()}\n"),
    ],
    ids=["behind the pixels", "XMP", "ImageMagick"],
)
def test_a_png_stands_upright_wherever_it_says_how(data, tmp_path):
    _, pixels = read_one(tmp_path, "turned.png", data)
    np.testing.assert_array_equal(pixels, TURNED[6](np.asarray(RGB)))


def test_labels_are_ranks_of_training_classes_and_files_are_sorted(tmp_path):
    """The same folder gives the same examples, in whatever order the disk lists it."""
    train = ("b-2/z.png", "b/10.png", "b/9.png", "b/deep/er/0.png", "c/A.PNG")
    val = ("b-2/2.png", "c/1.png", "c/3.png")
    hidden = ("train/.git/x.png", "train/b/.x.png", "train/b/.d/x.png", "train/.x", ".x", "notes")
    files = {f"{split}/{path}" for split, of in (("train", train), ("val", val)) for path in of}
    colours = {path: Image.new("RGB", (3, 2), (i, 0, 0)) for i, path in enumerate(sorted(files))}
    fill(tmp_path, {path: encode(image, "PNG") for path, image in colours.items()})
    fill(tmp_path, dict.fromkeys((*hidden, "train/labels.csv"), b"no image"))
    data = load(tmp_path)
    assert (data.num_classes, data.class_names) == (3, ("b", "b-2", "c"))
    rank = {"b": 0, "b-2": 1, "c": 2}
    for split, source, of in (("train", data.train, train), ("val", data.eval, val)):
        order = sorted(of, key=lambda path: (path.split("/")[0], path))
        assert len(source) == len(order)
        for index, path in enumerate(order):
            encoded, label = source.read(index)
            assert source.name(index) == str(tmp_path / split / path)
            assert label == rank[path.split("/")[0]]
            assert type(label) is int
            np.testing.assert_array_equal(by_pillow(encoded), colours[f"{split}/{path}"])


def test_links_are_followed(small, tmp_path):
    (tmp_path / "links" / "train").mkdir(parents=True)
    (tmp_path / "links" / "train" / "dog").symlink_to(small / "train" / "cat")
    (tmp_path / "links" / "val").symlink_to(small / "train")
    assert "cat" in message(tmp_path / "links")
    data = load(tmp_path / "links", eval_split="train")
    assert (data.class_names, len(data.train)) == (("dog",), 1)


def test_the_home_folder_is_found(small, monkeypatch):
    monkeypatch.setenv("HOME", str(small.parent))
    assert len(load(f"~/{small.name}").train) == 2


def test_classes_are_counted_without_opening_an_image(tmp_path):
    """The cost of a network needs neither whole images nor a validation split."""
    fill(tmp_path, {f"train/{i}/damaged.png": b"" for i in range(7)})
    assert datasets.count_classes(settings(tmp_path)) == 7


def test_a_folder_that_is_not_there_is_named(tmp_path):
    text = message(tmp_path / "nowhere")
    assert text.startswith(f"config.data.dir={tmp_path / 'nowhere'} is no folder")


@pytest.mark.parametrize("split", ["validation", "", "../pets/val", "train[:50%]"])
def test_a_split_that_is_not_there_lists_those_there_are(split, small):
    for which in ("train_split", "eval_split"):
        text = message(small, **{which: split})
        assert f"{small} has no folder {split!r} (it has train, val)" in text
        assert "config.data.eval_split" in text


def test_an_empty_folder_has_no_split(tmp_path):
    assert "has no folder 'train' (it has none)" in message(tmp_path)


def test_a_split_without_classes_says_where_images_belong(tmp_path):
    fill(tmp_path, {"train/README": b"", "val/README": b""})
    assert f"{tmp_path}/train has no class folders: put images into" in message(tmp_path)


@pytest.mark.parametrize("split", ["train", "val"])
def test_images_outside_of_classes_are_named(split, small):
    fill(small, {f"{split}/{i}.JPG": ONE for i in range(8)})
    text = message(small)
    told = "0.JPG, 1.JPG, 2.JPG, 3.JPG, 4.JPG and 3 more: move each into"
    assert f"{small / split} has images outside of class folders: {told}" in text


def test_a_class_that_training_lacks_is_named(small):
    fill(small, {"val/bird/1.png": ONE, "val/cow/1.png": ONE})
    text = message(small)
    assert f"{small}/val has classes that {small}/train lacks: bird, cow:" in text


@pytest.mark.parametrize("split", ["train", "val"])
def test_all_empty_classes_are_named(split, small):
    for name in "abcdefg":
        (small / "train" / name).mkdir()
        fill(small, {f"train/{name}/1.png": ONE} if split == "val" else {})
        (small / split / name).mkdir(exist_ok=True, parents=True)
    fill(small, {f"{split}/a/.hidden.png": ONE})
    assert f"{small / split} has classes without images: a, b, c, d, e, f, g:" in message(small)


UNREADABLE = {
    "text.jpg": (b"hello", "not an image"),
    "nothing.png": (b"", "zero bytes"),
    "cut.jpg": (encode(RGB, "JPEG")[:-2], "image file is truncated"),
    "cut_and_more.jpg": (encode(RGB, "JPEG")[:-200] + bytes(99), "image file is truncated"),
    "cut.png": (ONE[:-60], "image file is truncated"),
    "cut.tiff": (encode(RGB, "TIFF", compression="tiff_lzw")[:-200], "not an image"),
    "cut.webp": (encode(RGB, "WEBP")[:-20], ""),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_an_unreadable_image_is_named_with_the_reason(name, small):
    data, reason = UNREADABLE[name]
    fill(small, {f"val/dog/{name}": data})
    text = message(small)
    assert f"1 of 4 files cannot be read as images: {small}/val/dog/{name} ({reason}" in text


def test_many_unreadable_images_are_counted(small):
    fill(small, {f"{split}/cat/{i}.png": b"" for split in ("train", "val") for i in "abcd"})
    text = message(small)
    assert text.startswith("8 of 11 files cannot be read as images: ")
    assert text.count(".png (zero bytes)") == 5
    assert " and 3 more: replace" in text


def test_a_link_to_nothing_is_an_unreadable_image(small):
    (small / "train" / "cat" / "0.png").symlink_to("gone.png")
    assert f"{small}/train/cat/0.png (No such file or directory)" in message(small)


def test_an_image_too_large_for_pillow_is_named_and_a_large_one_is_read_in_silence(
    small, monkeypatch
):
    """Pillow warns of a decompression bomb first, and refuses twice as many pixels."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 13 * 17 - 1)
    assert load(small).train.read(0)[0] == ONE
    fill(small, {"train/cat/0.png": encode(RGB.resize((34, 26)), "PNG")})
    assert f"{small}/train/cat/0.png (more than 440 pixels)" in message(small)


def test_a_folder_without_permission_is_named(small, monkeypatch):
    """Simulated, since root may read everything."""
    scandir = os.scandir

    def refuse(folder):
        if folder == small / "train" / "cat":
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    assert message(small) == f"cannot read {small}/train/cat: Permission denied"


BEYOND = {
    "signed.tiff": (tiff(np.full((2, 3), -1, np.int16), 2, 16), "pixels have more than 16 bits"),
    "large.tiff": (tiff(np.full((2, 3), 2**16, np.uint32), 1, 32), "pixels have more than 16"),
    "float.tiff": (tiff(np.zeros((2, 3), np.float32), 3, 32), "pixels are floating-point"),
    "cut.bmp": (encode(RGB, "BMP")[:-9], "image file is truncated"),
}


@pytest.mark.parametrize("name", BEYOND)
def test_what_is_found_in_reading_says_what_it_is(name, small):
    fill(small, {f"train/cat/0.{name}": BEYOND[name][0]})
    with pytest.raises(ValueError, match=BEYOND[name][1]):
        load(small).train.read(0)


TINY = ("--config.data.name=image_folder", "--config.data.eval_split=val", "--config.epochs=2")


def test_the_main_job_trains_on_a_folder_and_names_the_image_that_it_cannot_decode(
    run_main, tmp_path
):
    """Nor may what Pillow warns of or logs about odd files reach the terminal."""
    folder, workdir = tmp_path / "pets", tmp_path / "run"
    names = ("ant", "bee", "cat")
    arguments = (*TINY, f"--config.data.dir={folder}", f"--workdir={workdir}")

    def fails():
        process = run_main(*arguments, check=False)
        assert process.returncode == 1
        assert process.stderr.count("\n") == 1, process.stderr
        return process.stderr

    for number, name in enumerate(names):
        shade = Image.new("RGB", (20, 24), (90 * number, 0, 0))
        fill(folder, {f"train/{name}/{i:02}.png": encode(shade, "PNG") for i in range(11)})
        fill(folder, {f"val/{name}/{i}.jpg": encode(shade, "JPEG") for i in range(3)})
    files = (PASSED | CONVERTED | DEEP).items()
    fill(folder, {f"train/bee/{name}": data for name, data in files})
    damaged = folder / "train" / "cat" / "05.png"
    whole = damaged.read_bytes()
    middle = whole.index(b"IDAT") + 9
    damaged.write_bytes(whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :])
    odd = folder / "val" / "cat" / "odd.tiff"
    odd.write_bytes(tiff(BITS_16, 1, 16, samples=99))
    assert f"{odd} (not an image)" in fails()

    odd.unlink()
    assert fails().startswith(f"error: {damaged} cannot be read: ")

    damaged.write_bytes(whole)
    process = run_main(*arguments)
    assert process.stderr == ""
    results = json.loads((workdir / "results.json").read_text())
    assert results["class_names"] == list(names)
    assert (results["step"], results["examples"]) == (-(-2 * (33 + len(files)) // 32), 9)

    (folder / "train" / "cat").rename(folder / "train" / "dog")
    (folder / "val" / "cat").rename(folder / "val" / "dog")
    assert "has class_names[2]=cat, the data dog: take another --workdir" in fails()
