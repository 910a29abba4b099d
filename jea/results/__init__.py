"""What a task finds in one input: numbers and names to go on with, a picture to look at, files to keep."""
from __future__ import annotations

from jea.results.clouds import CloudClass, CloudParts
from jea.results.pictures import ClassMap, Objects, TopClasses
from jea.results.result import Result
from jea.results.samples import Samples

__all__ = ["ClassMap", "CloudClass", "CloudParts", "Objects", "Result", "Samples", "TopClasses"]
