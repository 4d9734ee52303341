"""Data sets: images and a label for every pixel."""

from tinydilate.data.labelled import LabelledImages as LabelledImages
from tinydilate.data.labelled import joined as joined
from tinydilate.data.opening import open_dataset as open_dataset
