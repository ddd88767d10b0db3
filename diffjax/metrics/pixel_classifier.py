"""Class accuracy of samples, by a classifier trained on real images."""

import numpy as np
from jaxtyping import Int, UInt8

from diffjax.metrics.resampling import Estimate, proportion_with_error


class PixelClassifier:
    """A support vector machine on pixels (radial kernel), fitted to real images.

    Attributes:
      held_out: accuracy on real images outside the training set. Samples like real images have this accuracy; a higher
        one means samples that are easier to classify, not better ones.
    """

    def __init__(self, train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]):
        """Fits to `train` and evaluates on `test`, both (images uint8 [N, H, W, C], labels int [N])."""
        # Takes seconds to import.
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
        from sklearn.svm import SVC

        self._classifier = make_pipeline(StandardScaler(with_std=False), SVC(C=10.0))
        self._classifier.fit(_flat(train[0]), train[1])
        self.held_out = self.accuracy(*test)

    def accuracy(self, images: UInt8[np.ndarray, "N H W C"], labels: Int[np.ndarray, " N"]) -> Estimate:
        """Returns the proportion of images classified as their label, in [0, 1]."""
        return proportion_with_error(self._classifier.predict(_flat(images)) == labels)


def _flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1) / 255.0
