"""The data sets that need no more than their name, and what is known of them before they are read."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a data set before it is read.

    Args:
        title: as its authors write it.
        channels, height, width: of an image, in pixels.
        classes: how many there are.
        class_names: one a class, in label order; empty where they are too many to list, and are read with the files.
        images: in all; ``None`` where that is up to the file.
        train_images, test_images: of the official split, training and validation together; ``None`` where there is
            none. A fixed, stratified fifth of all images is the test set then.
        licence: and where the data come from, one line.
        needs_files: nothing is embedded.
        downloaded: the files are fetched where they are missing.
        folder: where the files lie under the data folder, for IDX files also the name of torchvision's class.
    """

    title: str
    channels: int
    height: int
    width: int
    classes: int
    class_names: tuple[str, ...]
    images: int | None
    train_images: int | None
    test_images: int | None
    licence: str
    needs_files: bool
    downloaded: bool
    folder: str = ""


_UCI = "UCI optical digits as in scikit-learn, CC BY 4.0, https://archive.ics.uci.edu/dataset/80"
_ZALANDO = "Zalando Research, MIT, https://github.com/zalandoresearch/fashion-mnist"
_LECUN = "LeCun, Cortes and Burges, CC BY-SA 3.0, http://yann.lecun.com/exdb/mnist"
_CODH = "CODH, CC BY-SA 4.0, https://github.com/rois-codh/kmnist"
_FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
_KANA = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
_DIGITS = tuple("0123456789")


def _mnist_like(title: str, folder: str, class_names: tuple[str, ...], licence: str) -> DatasetInfo:
    return DatasetInfo(title, 1, 28, 28, 10, class_names, 70_000, 60_000, 10_000, licence, True, True, folder)


DATASETS: dict[str, DatasetInfo] = {
    "digits": DatasetInfo("Digits", 1, 28, 28, 10, _DIGITS, 1_797, 1_437, 360, _UCI, False, False),
    "fashion-mnist": _mnist_like("Fashion-MNIST", "FashionMNIST", _FASHION, _ZALANDO),
    "mnist": _mnist_like("MNIST", "MNIST", _DIGITS, _LECUN),
    "kmnist": _mnist_like("Kuzushiji-MNIST", "KMNIST", _KANA, _CODH),
    # Numbers: the README at that address as of 31 May 2024; until then it said 140,426 images.
    "kuzushiji-kanji": DatasetInfo(
        "Kuzushiji-Kanji", 1, 64, 64, 3_832, (), 140_424, None, None, _CODH, True, True, "kkanji2"
    ),
    "mnist-mat": DatasetInfo("MNIST.mat", 1, 28, 28, 10, _DIGITS, None, None, None, _LECUN, True, False),
}
