import hashlib
import io
import os
import shutil
import stat
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from prunelab.data import folders
from prunelab.data.dataset import area_average


def png(pixels, mode=None, kind="PNG"):
    """The bytes of an image with these pixels."""
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(pixels, dtype=np.uint8)).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def grey(value, size=4):
    return png(np.full((size, size), value))


FILES = {
    "train/cat/2.png": grey(20),
    "train/cat/10.png": grey(10),
    "train/dog/1.png": grey(30),
    "test/dog/1.png": grey(40),
    "test/cat/1.png": grey(50),
}


def write_tree(folder, contents):
    for path, content in contents.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


def write_archive(path, contents, *, edit=lambda member: member):
    """An archive of the kind its name says; `edit` changes a tar member before it is added."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in contents.items():
                archive.writestr(name, content)
        return path
    with tarfile.open(path, "w:xz" if path.suffix == ".xz" else "w:gz") as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(edit(member), io.BytesIO(content))
    return path


def write_source(folder, kind, contents):
    return write_tree(folder / "set", contents) if kind == "/" else write_archive(folder / f"set{kind}", contents)


every_kind = pytest.mark.parametrize("kind", ["/", *folders.ARCHIVE_SUFFIXES])
every_archive = pytest.mark.parametrize("kind", folders.ARCHIVE_SUFFIXES)


@every_kind
@pytest.mark.parametrize("enclosing", ["", "set/", "./", "./pets-v2/"])
def test_every_kind_of_source_gives_the_same_images(tmp_path, kind, enclosing):
    contents = {enclosing + path: FILES[path] for path in sorted(FILES, key=hash)}  # in no order
    images = folders.read(write_source(tmp_path, kind, contents))
    assert images.train_images[:, 0, 0, 0].tolist() == [10, 20, 30]  # by path: cat/10, cat/2, dog/1
    assert images.train_labels.tolist() == [0, 0, 1]
    assert images.test_images[:, 0, 0, 0].tolist() == [50, 40]
    assert images.test_labels.tolist() == [0, 1]
    assert images.class_names == ("cat", "dog")
    assert images.train_images.shape == (3, 4, 4, 1) and images.train_images.dtype == torch.uint8
    assert images.train_labels.dtype == torch.int64


def test_val_stands_in_for_a_missing_test(tmp_path):
    contents = {path.replace("test/", "val/"): content for path, content in FILES.items()}
    assert len(folders.read(write_tree(tmp_path / "a", contents)).test_labels) == 2
    contents["test/cat/1.png"] = grey(99)
    assert folders.read(write_tree(tmp_path / "b", contents)).test_images[:, 0, 0, 0].tolist() == [99]


def test_val_stands_in_for_a_test_without_labels_as_tiny_imagenets_is(tmp_path):
    contents = {path.replace("test/", "val/"): content for path, content in FILES.items()}
    contents |= {f"test/images/test_{i}.png": grey(99) for i in range(2)}
    images = folders.read(write_tree(tmp_path / "a", contents))
    assert images.test_images[:, 0, 0, 0].tolist() == [50, 40] and images.class_names == ("cat", "dog")
    unsorted = {path.replace("val/cat/", "val/images/"): content for path, content in contents.items()}
    unsorted = {path.replace("val/dog/1", "val/images/2"): content for path, content in unsorted.items()}
    with pytest.raises(
        ValueError, match=r"no image in train/: images; an image must lie in .* val_annotations\.txt says"
    ):
        folders.read(write_tree(tmp_path / "b", unsorted))


def test_test_images_in_no_folder_have_no_labels_either(tmp_path):
    contents = {path.replace("test/", "val/"): content for path, content in FILES.items()} | {"test/1.png": grey(99)}
    assert folders.read(write_tree(tmp_path / "a", contents)).test_images[:, 0, 0, 0].tolist() == [50, 40]
    del contents["val/cat/1.png"], contents["val/dog/1.png"]
    for path in ("test/1.png", "val/ILSVRC2012_val_00000001.png"):  # ImageNet's, as it is downloaded
        flat = {each: content for each, content in contents.items() if "train" in each} | {path: grey(99)}
        with pytest.raises(ValueError, match=f"{path} lies in no class folder; 1 such images must each be put into a"):
            folders.read(write_tree(tmp_path / path.partition("/")[0], flat))


def test_folders_inside_a_class_folder_belong_to_the_class(tmp_path):
    images = folders.read(write_tree(tmp_path, FILES | {"train/dog/images/deep/1.png": grey(31)}))
    assert images.train_labels.tolist() == [0, 0, 1, 1]


@every_kind
def test_what_is_no_image_is_skipped(tmp_path, kind):
    litter = ["classes.tsv", "README", "cover.png", "train/.DS_Store", "train/cat/notes.txt", "test/cat/._1.png"]
    litter += ["train/.hidden/1.png", "extra/cat/1.png"]
    contents = {f"set/{path}": content for path, content in (FILES | dict.fromkeys(litter, b"?")).items()}
    contents["__MACOSX/set/train/cat/._10.png"] = b"?"
    images = folders.read(write_source(tmp_path, kind, contents))
    assert len(images.train_labels) == 3 and len(images.test_labels) == 2


def test_pixels_arrive_as_they_were_stored(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 5, 3))
    images = folders.read(write_tree(tmp_path, {"train/a/1.png": png(pixels), "test/a/1.png": png(pixels)}))
    assert np.array_equal(images.train_images[0].numpy(), pixels)


@pytest.mark.parametrize("mode, channels", [("1", 1), ("L", 1), ("LA", 1), ("RGB", 3), ("RGBA", 3), ("P", 3)])
def test_one_coloured_image_makes_all_coloured(tmp_path, mode, channels):
    contents = FILES | {"test/cat/1.png": png(np.full((4, 4), 255), mode)}
    images = folders.read(write_tree(tmp_path, contents))
    assert images.train_images.shape[3] == images.test_images.shape[3] == channels
    assert images.train_images[0].unique().tolist() == [10]  # grey in all channels
    assert images.test_images[0].unique().tolist() == [255]


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_images_for_print_become_coloured(tmp_path, kind):
    inks = Image.new("CMYK", (8, 8), (0, 255, 255, 0))  # magenta and yellow, which make red
    buffer = io.BytesIO()
    inks.save(buffer, kind)
    images = folders.read(write_tree(tmp_path, dict.fromkeys(("train/a/1.jpg", "test/a/1.jpg"), buffer.getvalue())))
    assert images.train_images.shape == (1, 8, 8, 3)
    assert (images.train_images.int() - torch.tensor([255, 0, 0])).abs().max() <= 2


@pytest.mark.parametrize("transparency", [None, 0])
def test_a_palettes_colours_are_read_and_not_its_indices(tmp_path, transparency):
    indexed, buffer = Image.fromarray(np.array([[0, 1], [1, 2]], dtype=np.uint8), "P"), io.BytesIO()
    indexed.putpalette([255, 0, 0, 0, 255, 0, 7, 8, 9])
    indexed.save(buffer, "PNG", **({} if transparency is None else {"transparency": transparency}))
    images = folders.read(write_tree(tmp_path, dict.fromkeys(("train/a/1.png", "test/a/1.png"), buffer.getvalue())))
    first = [255, 0, 0] if transparency is None else [255, 255, 255]  # on white, as a page shows it
    assert images.train_images.tolist() == [[[first, [0, 255, 0]], [[0, 255, 0], [7, 8, 9]]]]


@pytest.mark.parametrize(
    "kind, suffix",
    [
        *(("JPEG", suffix) for suffix in ("jpg", "JPEG", "jfif", "jpe")),
        *(("PNG", "PNG"), ("BMP", "bmp"), ("DIB", "dib"), ("GIF", "Gif"), ("WEBP", "webp"), ("PPM", "ppm")),
        *(("TIFF", "TIF"), ("JPEG2000", "jp2"), ("AVIF", "avif"), ("MPO", "mpo"), ("QOI", "qoi")),
        *(("BMP", "png"), ("PNG", "jpg")),  # named wrongly
    ],
)
def test_images_of_every_format_and_suffix_are_read(tmp_path, kind, suffix):
    if f".{suffix.lower()}" not in folders.IMAGE_SUFFIXES:
        pytest.skip(f"this PIL reads no {kind}")
    content = png(np.full((8, 8, 3), 128), kind=kind)
    images = folders.read(write_tree(tmp_path, {f"train/a/1.{suffix}": content, f"test/a/1.{suffix}": content}))
    assert (images.train_images.int() - 128).abs().max() <= 2


# Sizes


def test_images_of_several_sizes_need_an_image_size(tmp_path):
    folder = write_tree(tmp_path, FILES | {"train/cat/10.png": grey(10, size=6)})
    with pytest.raises(ValueError, match=r"one size \(4x4, 6x6\); set image_size"):
        folders.read(folder)
    assert folders.read(folder, image_size=4).train_images.shape == (3, 4, 4, 1)


def test_oblong_images_need_an_image_size_and_keep_their_middle(tmp_path):
    # The middle 2x2 of this one is 10 20 / 50 70, with mean 37.5; numpy and this project round half to even.
    wide = png([[255, 10, 20, 255], [255, 50, 70, 255]])
    tall = png([[0], [7], [0]])
    folder = write_tree(tmp_path, {"train/a/1.png": wide, "test/a/1.png": tall})
    with pytest.raises(ValueError, match=r"4x2, 1x3.*set image_size"):
        folders.read(folder)
    images = folders.read(folder, image_size=1)
    assert images.train_images.flatten().tolist() == [38] and images.test_images.flatten().tolist() == [7]


def test_images_of_a_single_pixel_are_images(tmp_path):
    folder = write_tree(tmp_path, {"train/a/1.png": grey(7, size=1), "test/a/1.png": grey(8, size=1)})
    assert folders.read(folder).train_images.tolist() == [[[[7]]]]
    with pytest.raises(ValueError, match="image_size 2 would enlarge an image of 1x1 pixels"):
        folders.read(folder, image_size=2)


def test_no_image_is_enlarged(tmp_path):
    folder = write_tree(tmp_path, FILES | {"train/cat/10.png": grey(10, size=3)})
    with pytest.raises(ValueError, match=r"1 images.*train/cat/10\.png \(image_size 4 would enlarge .* 3x3"):
        folders.read(folder, image_size=4)


def test_area_average_counts_cut_pixels_by_their_share():
    image = np.array([[0, 90, 240]] * 3, dtype=np.uint8)[..., None]
    # Each new pixel covers one and a half old ones: (0 + 90 / 2) / 1.5 and (90 / 2 + 240) / 1.5.
    assert area_average(image, 2)[..., 0].tolist() == [[30, 190], [30, 190]]
    assert area_average(image, 1).tolist() == [[[110]]]
    assert area_average(image, 3) is image


@pytest.mark.parametrize("side, size", [(32, 16), (32, 12), (28, 16), (7, 5), (9, 1)])
def test_area_average_agrees_with_a_slow_reference(side, size):
    image = np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8)
    # Every old pixel becomes size x size equal ones, every new pixel is then the mean of side x side of these.
    fine = image.repeat(size, axis=0).repeat(size, axis=1).astype(float)
    expected = fine.reshape(size, side, size, side, 3).mean(axis=(1, 3))
    assert np.abs(area_average(image, size) - expected).max() <= 0.5 + 1e-4


# Hostile and damaged archives

PLAIN = tarfile.REGTYPE


@pytest.mark.parametrize("kind", [".tar.xz", ".tgz"])
@pytest.mark.parametrize(
    "name, member_type, message",
    [
        ("../evil.png", PLAIN, "outside"),
        ("train/cat/../../../evil.png", PLAIN, "outside"),
        ("/tmp/evil.png", PLAIN, "outside"),
        ("..\\evil.png", PLAIN, "outside"),
        ("C:\\evil.png", PLAIN, "outside"),
        ("../evil.txt", PLAIN, "outside"),
        ("../evil", tarfile.DIRTYPE, "outside"),
        ("train/cat/evil.png", tarfile.SYMTYPE, "neither"),
        ("train/cat/evil.png", tarfile.LNKTYPE, "neither"),
        ("train/cat/evil", tarfile.CHRTYPE, "neither"),
        ("train/cat/evil", tarfile.BLKTYPE, "neither"),
        ("train/cat/evil", tarfile.FIFOTYPE, "neither"),
    ],
)
def test_hostile_tar_members_are_refused_by_name(tmp_path, kind, name, member_type, message):
    def edit(member):
        if "evil" in member.name:
            member.type, member.linkname = member_type, "/etc/passwd"
        return member

    archive = write_archive(tmp_path / f"set{kind}", {name: b""} | FILES, edit=edit)
    before = set(Path(tmp_path.parent).rglob("*"))
    with pytest.raises(ValueError, match=message) as caught:
        folders.read(archive)
    assert str(archive) in str(caught.value) and repr(name) in str(caught.value)
    assert set(Path(tmp_path.parent).rglob("*")) == before and not Path("/tmp/evil.png").exists()


@pytest.mark.parametrize("name", ["../evil.png", "/evil.png", "train/cat/../../../evil.txt", "C:/evil.png"])
def test_zip_members_that_point_outside_are_refused_by_name(tmp_path, name):
    archive = write_archive(tmp_path / "set.zip", FILES | {name: b""})
    with pytest.raises(ValueError, match=rf"set\.zip: member '{name}' points outside"):
        folders.read(archive)


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_zip_links_and_devices_are_refused_by_name(tmp_path, kind):
    archive = write_archive(tmp_path / "set.zip", FILES)
    with zipfile.ZipFile(archive, "a") as file:
        member = zipfile.ZipInfo("train/cat/evil.png")
        member.external_attr = (kind | 0o777) << 16
        file.writestr(member, "/etc/passwd")
    with pytest.raises(ValueError, match=r"set\.zip: member 'train/cat/evil\.png' is neither"):
        folders.read(archive)


def test_a_zip_with_a_password_is_refused(tmp_path):
    archive = write_archive(tmp_path / "set.zip", FILES)
    content = bytearray(archive.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1  # the flag in the central directory
    archive.write_bytes(content)
    with pytest.raises(ValueError, match="needs a password"):
        folders.read(archive)


@every_archive
def test_a_truncated_archive_is_refused_wherever_it_ends(tmp_path, kind):
    archive = write_archive(tmp_path / f"set{kind}", FILES)
    content = archive.read_bytes()
    for length in [0, 1, 10, *range(20, len(content) - 4, 37), *range(len(content) - 4, len(content))]:
        archive.write_bytes(content[:length])
        with pytest.raises(ValueError, match="truncated or damaged"):
            folders.read(archive)


@every_archive
def test_a_flipped_byte_never_changes_an_image_unnoticed(tmp_path, kind):
    archive = write_archive(tmp_path / f"set{kind}", FILES)
    intact, content = folders.read(archive), archive.read_bytes()
    end = content.index(b"PK\x01\x02") if kind == ".zip" else len(content)  # a zip's directory has no checksum
    n_noticed, positions = 0, range(0, end, 7)
    for position in positions:
        flipped = bytearray(content)
        flipped[position] ^= 0x55
        archive.write_bytes(flipped)
        try:
            images = folders.read(archive)
        except ValueError:
            n_noticed += 1
        else:  # a date or an unused field
            assert torch.equal(images.train_images, intact.train_images)
            assert torch.equal(images.test_images, intact.test_images)
    assert n_noticed > len(positions) / 2


@every_archive
def test_a_byte_flipped_far_into_an_archive_is_noticed(tmp_path, kind):
    noise = np.random.default_rng(0).integers(0, 4, (128, 128))
    contents = FILES | {f"train/cat/{i}.bmp": png(noise * i % 256, kind="BMP") for i in range(40)}
    content = write_archive(tmp_path / f"set{kind}", contents).read_bytes()
    end = content.index(b"PK\x01\x02") if kind == ".zip" else len(content)
    for position in range(end // 3, end, end // 7):
        flipped = bytearray(content)
        flipped[position : position + 4] = b"\xff\x00\xff\x00"
        (tmp_path / f"set{kind}").write_bytes(flipped)
        with pytest.raises(ValueError, match=r"set\."):
            folders.read(tmp_path / f"set{kind}")


@every_archive
def test_an_archive_of_another_kind_than_its_name_is_refused(tmp_path, kind):
    other = write_archive(tmp_path / ("other.zip" if kind != ".zip" else "other.tgz"), FILES)
    archive = tmp_path / f"set{kind}"
    shutil.copy(other, archive)
    with pytest.raises(ValueError, match="truncated or damaged"):
        folders.read(archive)


@every_archive
@pytest.mark.parametrize("name", ["README", "train/cat/bomb.png"])
def test_an_archive_that_unfolds_a_thousandfold_is_refused(tmp_path, monkeypatch, kind, name):
    archive = write_archive(tmp_path / f"set{kind}", {name: bytes(3_000_000)} | FILES)
    monkeypatch.setattr(folders, "ALWAYS_ALLOWED", 1_000_000)
    with pytest.raises(ValueError, match=r"unfolds to more than 1,000,000 bytes"):
        folders.read(archive)
    monkeypatch.setattr(folders, "ALWAYS_ALLOWED", 64_000_000)
    monkeypatch.setattr(folders, "MAX_BYTES", 2_000_000)
    with pytest.raises(ValueError, match=r"unfolds to more than 2,000,000 bytes"):
        folders.read(archive)


def test_a_tar_header_that_unfolds_a_thousandfold_is_refused(tmp_path, monkeypatch):
    archive = tmp_path / "set.tar.xz"
    with tarfile.open(archive, "w:xz", format=tarfile.PAX_FORMAT) as tar:
        member = tarfile.TarInfo("train/cat/1.png")
        member.pax_headers = {"comment": "x" * 3_000_000}
        tar.addfile(member)
    monkeypatch.setattr(folders, "ALWAYS_ALLOWED", 1_000_000)
    with pytest.raises(ValueError, match="unfolds to more than"):
        folders.read(archive)


def test_a_sparse_tar_member_is_refused(tmp_path):
    archive = tmp_path / "set.tar.xz"
    with tarfile.open(archive, "w:xz", format=tarfile.PAX_FORMAT) as tar:
        member = tarfile.TarInfo("train/cat/evil.png")
        member.pax_headers = {"GNU.sparse.map": "0,0", "GNU.sparse.size": str(1 << 40)}
        tar.addfile(member)
    with pytest.raises(ValueError, match="neither"):
        folders.read(archive)


def test_an_image_of_absurdly_many_pixels_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "MAX_PIXELS", 15)
    with pytest.raises(ValueError, match=r"5 images .*more than 15 pixels"):
        folders.read(write_tree(tmp_path, FILES))


def test_images_that_would_fill_the_memory_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "MAX_BYTES", 16 * 4)
    with pytest.raises(ValueError, match=r"more than 64 bytes at .*; set image_size"):
        folders.read(write_tree(tmp_path, FILES))
    assert len(folders.read(tmp_path, image_size=3).train_labels) == 3


# Images that cannot be used, and other layouts


@every_kind
def test_unreadable_images_are_counted_and_the_first_ones_named(tmp_path, kind):
    bad = {f"train/cat/bad{i}.png": content for i, content in enumerate((b"", b"text", grey(1)[:40], b"GIF89a"))}
    bad |= {"train/cat/bad4.png": png(np.zeros((4, 4, 3)), kind="PCX"), "train/cat/zzz.png": FILES["test/cat/1.png"]}
    with pytest.raises(ValueError, match="5 images cannot be used") as caught:
        folders.read(write_source(tmp_path, kind, FILES | bad))
    assert [f"bad{i}.png" in str(caught.value) for i in range(5)] == [True, True, True, False, False]
    assert "set" in str(caught.value)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_images_of_more_than_eight_bits_are_refused(tmp_path, dtype):
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), dtype=dtype)).save(buffer, "TIFF")
    with pytest.raises(ValueError, match=r"deep\.tif \(more than 8 bits a channel; convert it to 8\)"):
        folders.read(write_tree(tmp_path, FILES | {"train/cat/deep.tif": buffer.getvalue()}))


@pytest.mark.parametrize(
    "contents, message",
    [
        ({}, "0 training and 0 test images; it needs train/"),
        ({"train/a/1.png": grey(1)}, "1 training and 0 test images"),
        ({"test/a/1.png": grey(1)}, "0 training and 1 test images"),
        ({"a/1.png": grey(1), "b/1.png": grey(1)}, "0 training and 0 test"),
        ({"training/a/1.png": grey(1), "testing/a/1.png": grey(1)}, "0 training and 0 test"),
        (FILES | {"test/bird/1.png": grey(1)}, "in its test set that have no image in train/: bird"),
        (FILES | {"train/1.png": grey(1)}, "train/1.png lies in no class folder"),
        ({f"{top}/{path}": grey(1) for top in "ab" for path in FILES}, "several folders hold a train/.*: a/, b/"),
    ],
)
def test_other_layouts_are_explained(tmp_path, contents, message):
    (tmp_path / "set").mkdir()
    with pytest.raises(ValueError, match=message) as caught:
        folders.read(write_source(tmp_path, "/", contents))
    assert str(tmp_path / "set") in str(caught.value)


@every_kind
@pytest.mark.parametrize("enclosing", ["", "set/"])
@pytest.mark.parametrize(
    "held, found",
    [
        ({"notes.txt": b"", "x.svg": b""}, "holds 2 other files, such as {}train/bird/notes.txt"),
        ({".1.png": grey(1)}, "is empty, but for hidden files; remove it"),
        ({}, "is empty, but for hidden files; remove it"),
    ],
)
def test_a_class_without_an_image_is_named(tmp_path, kind, enclosing, held, found):
    contents = {enclosing + path: content for path, content in FILES.items()}
    contents |= {f"{enclosing}train/bird/{name}": content for name, content in held.items()}
    if kind == "/":
        source = write_source(tmp_path, kind, contents)
        (source / enclosing / "train" / "bird").mkdir(exist_ok=True)
    else:  # an archive made of a folder has its folders

        def edit(member):
            member.type = tarfile.DIRTYPE if member.name.endswith("/") else member.type
            return member

        source = write_archive(tmp_path / f"set{kind}", {f"{enclosing}train/bird/": b""} | contents, edit=edit)
    message = "class 'bird' has no image that can be read: its folder in train/ " + found.format(enclosing)
    with pytest.raises(ValueError, match=message):
        folders.read(source)
    if kind == "/":
        with pytest.raises(ValueError, match=message):
            folders.list_images(source)
        write_tree(source, {f"{enclosing}train/bird/1.jfif": png(np.full((2, 2, 3), 9), kind="JPEG")})
        assert folders.list_images(source).class_names == ("bird", "cat", "dog")


def test_what_cannot_be_read_to_an_end_is_named_and_not_waited_for(tmp_path):
    folder = write_tree(tmp_path, FILES)
    pipe = folder / "train" / "cat" / "pipe.png"
    os.mkfifo(pipe)
    with pytest.raises(ValueError, match=r"pipe\.png is no plain file but a pipe"):
        folders.read(folder)
    pipe.unlink()
    pipe.symlink_to(folder / "nowhere.png")
    with pytest.raises(ValueError, match=r"pipe\.png: a link that leads nowhere"):
        folders.sha256(folder)
    pipe.unlink()
    pipe.symlink_to("/dev/zero")
    with pytest.raises(ValueError, match=r"pipe\.png is no plain file"):
        folders.list_images(folder)
    pipe.unlink()
    os.rename(folder / "train" / "cat" / "2.png", os.fsencode(folder / "train" / "cat") + b"/\xff.png")
    with pytest.raises(ValueError, match="its name is no UTF-8; rename it"):
        folders.read(folder)


@pytest.mark.parametrize("packing", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_members_that_are_neither_stored_nor_deflated_are_refused(tmp_path, packing):
    with zipfile.ZipFile(tmp_path / "x.zip", "w", packing) as archive:
        for path, content in FILES.items():
            archive.writestr(path, content)
    with pytest.raises(ValueError, match=r"'train/cat/\d\.png' is neither stored nor deflated; pack it anew"):
        folders.read(tmp_path / "x.zip")


def test_a_class_may_have_no_image_to_test_on(tmp_path):
    images = folders.read(write_tree(tmp_path, {path: FILES[path] for path in FILES if path != "test/cat/1.png"}))
    assert images.class_names == ("cat", "dog") and images.test_labels.tolist() == [1]


def test_an_image_that_occurs_twice_in_an_archive_is_refused(tmp_path):
    archive = tmp_path / "set.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        for name in ("train/a/1.png", "test/a/1.png", "./train/a/1.png"):
            member = tarfile.TarInfo(name)
            member.size = len(grey(1))
            tar.addfile(member, io.BytesIO(grey(1)))
    with pytest.raises(ValueError, match=r"train/a/1\.png occurs twice"):
        folders.read(archive)


def test_links_in_a_folder_are_followed_but_not_in_circles(tmp_path):
    folder = write_tree(tmp_path / "set", FILES)
    shutil.move(folder / "train", tmp_path / "elsewhere")
    (folder / "train").symlink_to(tmp_path / "elsewhere")
    assert len(folders.read(folder).train_labels) == 3
    (folder / "train" / "cat" / "up").symlink_to(folder / "train")
    with pytest.raises(ValueError, match="too deep"):
        folders.read(folder)


# Hashes


@every_archive
def test_the_hash_of_an_archive_is_that_of_its_file(tmp_path, kind):
    archive = write_archive(tmp_path / f"set{kind}", FILES)
    assert folders.sha256(archive) == hashlib.sha256(archive.read_bytes()).hexdigest()


def test_the_hash_of_a_folder_follows_its_images_and_nothing_else(tmp_path):
    first = folders.sha256(write_tree(tmp_path / "a", FILES))
    reverse = dict(reversed(FILES.items()))
    assert folders.sha256(write_tree(tmp_path / "b", reverse | {"README": b"words"})) == first
    os.utime(tmp_path / "a" / "train/cat/2.png", (0, 0))
    assert folders.sha256(tmp_path / "a") == first

    (tmp_path / "a" / "train/cat/2.png").rename(tmp_path / "a" / "train/dog/2.png")
    renamed = folders.sha256(tmp_path / "a")
    (tmp_path / "b" / "train/cat/2.png").write_bytes(grey(21))
    changed = folders.sha256(tmp_path / "b")
    assert len({first, renamed, changed}) == 3
