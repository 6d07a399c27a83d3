"""Draws docs/demo.png from a finished demo: what victims looked like, what was released, what came of it.

python tests/bench/demo_picture.py runs/demo docs/demo.png
"""

import sys
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import pyplot as plt

from xinv.files import read_json
from xinv.report.rows import explanation_title

matplotlib.use("Agg")
INVERTER = "flatten_unet"


def main(run: Path, out: Path) -> None:
    """Rows of ten victims each: the original, every explanation with its reconstruction, the prediction alone."""
    scores = read_json(run / "scores.json")
    (stage,) = [
        path.parent
        for path in run.parent.glob("stages/scores-*/scores.json")
        if path.read_text() == (run / "scores.json").read_text()
    ]
    with np.load(stage / "pictures.npz", allow_pickle=False) as pictures:
        rows = [("original (private)", "black", pictures["original"][..., 0], "gray", (0, 255))]
        for row in scores["rows"]:
            if row["kind"] == "attack" and row["release"]:
                (method,) = row["release"]
                map_NHW = pictures[f"map:{method}"][:, 0]
                largest = np.abs(map_NHW).max((1, 2), keepdims=True)
                signed = (map_NHW < 0).any()
                colours, bounds = ("RdBu_r", (-1, 1)) if signed else ("Blues", (0, 1))
                rows.append((f"released: {explanation_title(method)}", "#1f4e79", map_NHW / largest, colours, bounds))
                seen = pictures[f"reconstruction:{INVERTER}:{method}"][..., 0]
                rows.append(("reconstructed", "black", seen, "gray", (0, 255)))
        alone = pictures["reconstruction:prediction_only"][..., 0]
        rows.append(("from the prediction\nalone", "black", alone, "gray", (0, 255)))
    figure, grid = plt.subplots(len(rows), len(rows[0][2]), figsize=(9.02, 6.93), dpi=100)
    for line, (title, ink, image_NHW, colours, (low, high)) in zip(grid, rows, strict=True):
        line[0].set_ylabel(title, rotation=0, ha="right", va="center", color=ink, fontsize=9.5)
        for axes, image_HW in zip(line, image_NHW, strict=True):
            axes.imshow(image_HW, cmap=colours, vmin=low, vmax=high)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_frame_on(False)
    figure.subplots_adjust(left=0.19, right=0.995, top=0.99, bottom=0.01, wspace=0.06, hspace=0.26)
    figure.savefig(out, metadata={"Software": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
