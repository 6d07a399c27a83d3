"""What the classifiers of an audit are to tell apart: labels, people, or attributes that the target never predicts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xinv.config import AuditConfig, ClassifierPart, EvaluatorPart
from xinv.data.attributes import choose, gallery_records
from xinv.data.index import Index
from xinv.data.records import Record
from xinv.data.shards import people


def check_attributes(config: AuditConfig, records: Sequence[Record]) -> None:
    """InputError, before anything is made, for an evaluator of attributes that the images do not have."""
    for name, part in config.evaluators.items():
        if part.predicts == "attributes":
            images = f"images of data.source ({config.data.source.kind})"
            choose(records, part.attributes, f"evaluators.{name}.attributes", images)


def answers(part: ClassifierPart, images: Path) -> dict[str, Any]:
    """What a classifier of an image set is to tell apart, as fields of ClassifierSpec.

    InputError where the gallery shows an attribute that was asked for with one value alone.
    """
    predicts = part.predicts if isinstance(part, EvaluatorPart) else "label"
    if predicts == "identity":
        identities = people(images, ("gallery", "gallery_validation"))
        return {"classes": len(identities), "identities": identities}
    if predicts == "attributes":
        assert isinstance(part, EvaluatorPart)
        asked_by = "an evaluator that predicts attributes"
        found, left_out = choose(gallery_records(images), part.attributes, asked_by, "images of the gallery")
        classes = sum(len(attribute.values) for attribute in found)
        return {"classes": classes, "attributes": found, "left_out": left_out}
    return {"classes": len(Index.load(images).label_names)}
