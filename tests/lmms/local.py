"""A task folder for lmms-eval: held-out scenes, and the same questions as one of LLaVA's question files."""

import json
from pathlib import Path

from PIL import Image

from experiments.scenes import FAMILIES, make_scene

TASK = "local_scenes"
YAML = f"""task: {TASK}
dataset_path: json
dataset_kwargs:
  data_files:
    test: questions.jsonl
test_split: test
output_type: generate_until
doc_to_visual: !function local_task.look
doc_to_text: text
doc_to_target: answer
generation_kwargs:
  max_new_tokens: 8
  image_aspect_ratio: original
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
    ignore_case: true
    ignore_punctuation: true
"""
CODE = """from pathlib import Path

from PIL import Image


def look(doc):
    return [Image.open(Path(__file__).parent / doc["image"]).convert("RGB")]
"""


def make_task(folder: Path, scenes: int) -> Path:
    """Three questions about each of so many scenes."""
    folder.mkdir(parents=True)
    rows = []
    for number in range(scenes):
        scene = make_scene("test", number, 0, questions=len(FAMILIES))
        name = f"{number}.png"
        Image.fromarray(scene.image).save(folder / name)
        rows += [
            {"question_id": 3 * number + i, "image": name, "text": question.text, "answer": question.answer}
            for i, question in enumerate(scene.questions)
        ]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "local_task.py").write_text(CODE)
    (folder / f"{TASK}.yaml").write_text(YAML)
    return folder
