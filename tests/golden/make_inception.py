"""Writes inception.npz: features and a distance by pytorch-fid, for test_fid.py.

In an environment with pytorch-fid 0.3.0, torchvision, scipy and safetensors:

    python tests/golden/make_inception.py ~/.cache/emo-cli/eval/inception.safetensors

pytorch-fid's own file of weights is another form of the same: here they get its names.
"""

import sys
from pathlib import Path

import numpy as np
import pytorch_fid.inception as reference
import torch
from PIL import Image
from pytorch_fid.fid_score import calculate_frechet_distance
from safetensors.torch import load_file

HERE = Path(__file__).resolve().parent

STEM = {
    "conv": "Conv2d_1a_3x3",
    "conv_1": "Conv2d_2a_3x3",
    "conv_2": "Conv2d_2b_3x3",
    "conv_3": "Conv2d_3b_1x1",
    "conv_4": "Conv2d_4a_3x3",
}
KINDS = {
    "A": "conv branch1x1, tower.conv branch5x5_1, tower.conv_1 branch5x5_2, "
    "tower_1.conv branch3x3dbl_1, tower_1.conv_1 branch3x3dbl_2, tower_1.conv_2 branch3x3dbl_3, "
    "tower_2.conv branch_pool",
    "B": "conv branch3x3, tower.conv branch3x3dbl_1, tower.conv_1 branch3x3dbl_2, "
    "tower.conv_2 branch3x3dbl_3",
    "C": "conv branch1x1, tower.conv branch7x7_1, tower.conv_1 branch7x7_2, "
    "tower.conv_2 branch7x7_3, tower_1.conv branch7x7dbl_1, tower_1.conv_1 branch7x7dbl_2, "
    "tower_1.conv_2 branch7x7dbl_3, tower_1.conv_3 branch7x7dbl_4, "
    "tower_1.conv_4 branch7x7dbl_5, tower_2.conv branch_pool",
    "D": "tower.conv branch3x3_1, tower.conv_1 branch3x3_2, tower_1.conv branch7x7x3_1, "
    "tower_1.conv_1 branch7x7x3_2, tower_1.conv_2 branch7x7x3_3, tower_1.conv_3 branch7x7x3_4",
    "E": "conv branch1x1, tower_conv branch3x3_1, tower_mixed_conv branch3x3_2a, "
    "tower_mixed_conv_1 branch3x3_2b, tower_1_conv branch3x3dbl_1, "
    "tower_1_conv_1 branch3x3dbl_2, tower_1_mixed_conv branch3x3dbl_3a, "
    "tower_1_mixed_conv_1 branch3x3dbl_3b, tower_2_conv branch_pool",
}
BLOCKS = "5b A, 5c A, 5d A, 6a B, 6b C, 6c C, 6d C, 6e C, 7a D, 7b E, 7c E"
LEAVES = {"beta": "bias", "mean": "running_mean", "var": "running_var"}


def names() -> dict[str, str]:
    """From the file's names to pytorch-fid's."""
    found = dict(STEM)
    for index, block in enumerate(BLOCKS.split(", ")):
        place, kind = block.split()
        for pair in KINDS[kind].split(", "):
            ours, theirs = pair.split()
            found[f"mixed_{index}.{ours}" if index else f"mixed.{ours}"] = f"Mixed_{place}.{theirs}"
    return found


def weights(path: str) -> dict[str, torch.Tensor]:
    table = names()
    found = {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
    for name, value in load_file(path).items():
        module, leaf = name.removeprefix("net.layers.").rsplit(".", 1)
        if leaf == "weight":
            found[f"{table[module]}.conv.weight"] = value
            found[f"{table[module]}.bn.weight"] = torch.ones(len(value))
        else:
            found[f"{table[module]}.bn.{LEAVES[leaf]}"] = value
    return found


def pictures() -> list[np.ndarray]:
    """Two sets of 12 crops of the portrait, the second of coarser pixels, and three large ones."""
    portrait = np.asarray(Image.open(HERE.parents[1] / "examples" / "portrait.jpg").convert("RGB"))
    crops = [portrait[y : y + 150, x : x + 150] for y in (0, 120, 240) for x in (0, 110, 220, 330)]
    coarse = [crop[::3, ::3] for crop in crops]
    return [*crops, *coarse, portrait, portrait[100:356, 120:476], portrait[:, ::-1][::2, ::2]]


def main() -> None:
    values = weights(sys.argv[1])
    reference.load_state_dict_from_url = lambda *args, **kwargs: values
    network = reference.InceptionV3([3]).eval()
    features = []
    with torch.inference_mode():
        for picture in pictures():
            batch = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float() / 255
            features.append(network(batch)[0].flatten().numpy())
    sets = [np.array(features[:12], np.float64), np.array(features[12:24], np.float64)]
    moments = [moment for rows in sets for moment in (rows.mean(0), np.cov(rows, rowvar=False))]
    distance = calculate_frechet_distance(*moments)
    np.savez(HERE / "inception.npz", features=np.array(features[24:]), fid=distance)


if __name__ == "__main__":
    main()
