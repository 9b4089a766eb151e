"""Reads a served model on annotated data; docs/cli.md ("Evaluating") describes the protocols."""

from fewseg.evaluation.marks import AnnotationRule, annotation_rule
from fewseg.evaluation.protocols import Episode, every_query_once, random_episodes, read_model
from fewseg.evaluation.sources import (
    AnnotatedFolder,
    CocoFolder,
    Source,
    VocFolder,
    class_pixels,
)
from fewseg.evaluation.tally import Scores, Tally

__all__ = [
    "AnnotatedFolder",
    "AnnotationRule",
    "CocoFolder",
    "Episode",
    "Scores",
    "Source",
    "Tally",
    "VocFolder",
    "annotation_rule",
    "class_pixels",
    "every_query_once",
    "random_episodes",
    "read_model",
]
