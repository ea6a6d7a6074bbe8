"""All families of models: importing one makes it known to `VisionLanguageModel.family_of`, by its `model_type`."""

from models.engine.model import VisionLanguageModel
from models.families.llava import Llava
from models.families.llava_next import LlavaNext
from models.families.llava_onevision import LlavaOnevision
from models.families.qwen2_5_vl import Qwen25VL
from models.families.qwen3_vl import Qwen3VL

FAMILIES = (Llava, LlavaNext, LlavaOnevision, Qwen25VL, Qwen3VL)  # one row each
family_of = VisionLanguageModel.family_of
from_pretrained = VisionLanguageModel.from_pretrained
