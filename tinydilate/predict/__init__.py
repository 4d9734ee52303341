"""Labelling images with a trained network: one label for every pixel.

* `checkpoints`: networks in files, with all that is needed to use them;
* `parts`: where a front end ends, and where its cells lie in the image;
* `whole`: images of any size in bounded memory, without seams (`memory` chooses the pieces);
* `original`: the same in tiles, as the code that was published with the paper does it;
* `pixels`: from the scores of cells to probabilities of pixels;
* `labelling`: stacks of small images, and their score;
* `files`: image files, folders and animations.
"""

from tinydilate.predict.checkpoints import (
    NETWORKS,
    AnyTrained,
    DemoRecipe,
    PlannedRecipe,
    PublishedRecipe,
    Trained,
    TrainedPlanned,
    TrainedPublished,
    load_any,
    load_network,
    save_network,
)
from tinydilate.predict.files import (
    Options,
    Prediction,
    label_image,
    predict_file,
    predict_files,
)
from tinydilate.predict.labelling import beside, label_maps, score
from tinydilate.predict.original import as_original
from tinydilate.predict.parts import Parts, parts_of
from tinydilate.predict.whole import whole_image

__all__ = [
    "NETWORKS",
    "AnyTrained",
    "DemoRecipe",
    "Options",
    "Parts",
    "PlannedRecipe",
    "Prediction",
    "PublishedRecipe",
    "Trained",
    "TrainedPlanned",
    "TrainedPublished",
    "as_original",
    "beside",
    "label_image",
    "label_maps",
    "load_any",
    "load_network",
    "parts_of",
    "predict_file",
    "predict_files",
    "save_network",
    "score",
    "whole_image",
]
