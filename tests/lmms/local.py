"""Task folders for lmms-eval: held-out scenes, the same questions as one of LLaVA's question files, and choices."""

import json
from pathlib import Path

from PIL import Image

from experiments.data.scenes import FAMILIES, make_scene

TASK, CHOICE = "local_scenes", "local_choice"
DATA = """dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
doc_to_visual: !function local_task.look
doc_to_text: text
doc_to_target: answer
"""
YAML = f"""task: {TASK}
{DATA.format(file="questions.jsonl")}
output_type: generate_until
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
CHOICE_YAML = f"""task: {CHOICE}
{DATA.format(file="choices.jsonl")}
output_type: multiple_choice
doc_to_choice: ["yes", "no"]
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""
CODE = """from pathlib import Path

from PIL import Image


def look(doc):
    return [Image.open(Path(__file__).parent / doc["image"]).convert("RGB")]
"""


def make_task(folder: Path, scenes: int) -> list[dict]:
    """Three questions about each of so many scenes, in the form of LLaVA's files; gives the rows."""
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
    choices = [row for row in rows if row["answer"] in ("yes", "no")]
    for file, content in (("questions.jsonl", rows), ("choices.jsonl", choices)):
        (folder / file).write_text("".join(json.dumps(row) + "\n" for row in content))
    (folder / "local_task.py").write_text(CODE)
    (folder / f"{TASK}.yaml").write_text(YAML)
    (folder / f"{CHOICE}.yaml").write_text(CHOICE_YAML)
    return rows
