import numpy as np
import pytest

from nnunet_kd.nnunet.labels import label_text, whole_labels


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rounding_errors_are_removed(dtype):
    labels = np.array([0, 0.9999999, 1.0000001, 2.9995, -1e-7], dtype)
    found = whole_labels(labels)
    assert found.tolist() == [0, 1, 1, 3, 0] and found.dtype == dtype


def test_other_values_are_unchanged():
    labels = np.array([0.95, 1.0023, 0.5, np.nan, np.inf, -np.inf], np.float32)
    np.testing.assert_array_equal(whole_labels(labels), labels)
    whole = np.array([0, 7, 300], np.uint16)
    assert whole_labels(whole) is whole


def test_label_text_shows_all_digits():
    values = (np.float32(3), np.uint8(3), np.float32(0.95), np.float32(1.0023), np.float64(0.99899), np.nan, np.inf)
    assert [*map(label_text, values)] == ["3", "3", "0.95", "1.0023", "0.99899", "nan", "inf"]
