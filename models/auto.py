"""All families of models: importing one makes it known to `VisionLanguageModel.family_of`, by its `model_type`."""

from models.engine.model import VisionLanguageModel
from models.families.llava import Llava
from models.families.llava_next import LlavaNext

FAMILIES = (Llava, LlavaNext)  # one row each
family_of = VisionLanguageModel.family_of
from_pretrained = VisionLanguageModel.from_pretrained
