"""Scenes made of real pieces, with questions: signs to read, shapes to place, and shapes that are not there.

>>> scene = make_scene("test", index=0)
>>> scene.image.shape
(336, 336, 3)
>>> len(scene.questions)
3
"""

from experiments.data.scenes.assets import Split
from experiments.data.scenes.layout import SceneConfig, SceneObject
from experiments.data.scenes.questions import Question
from experiments.data.scenes.scene import LABEL_CLASSES, Labels, Scene, label_patches, make_scene
from experiments.data.scenes.vocabulary import COLOURS, FAMILIES, GRID, KINDS, PATCH, SHAPES, SIZE, WORDS

__all__ = [
    "COLOURS",
    "FAMILIES",
    "GRID",
    "KINDS",
    "LABEL_CLASSES",
    "PATCH",
    "SHAPES",
    "SIZE",
    "WORDS",
    "Labels",
    "Question",
    "Scene",
    "SceneConfig",
    "SceneObject",
    "Split",
    "label_patches",
    "make_scene",
]
