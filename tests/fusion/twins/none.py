"""The baseline, which does nothing."""

from llava.fusion.configs.none import NoneConfig
from tests.fusion.twins.twin import Case, Twin

CASES = {"none": Case(NoneConfig(), Twin, neutral=NoneConfig())}
