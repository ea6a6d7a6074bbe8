"""What LLaVA asks, set by set, written by hand in the form of its question files, for the samples of `reproduce`."""

WORD = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
PROMPTS = {
    "mme": f"Are there two bicycles in this image?\n{WORD}",
    "mmbench": "The picture shows a kitchen.\nWhich of these does the cup stand on?\nA. a chair\nB. a table\n" + LETTER,
    "pope": f"Is there a kite in the image?\n{WORD}",
    "scienceqa": "Context: The diagram shows two magnets.\nWill these magnets attract or repel each other?\n"
    f"A. attract\nB. repel\n{LETTER}",
    "vizwiz": "What does the label say? thank you\n"
    f"When the provided information is insufficient, respond with 'Unanswerable'.\n{WORD}",
    "textvqa": f"What is written on the van?\nReference OCR token: FRESH, Bread, DAILY\n{WORD}",
    "vqav2": f"How many boats are there?\n{WORD}",
    "mmvet": "What is the sum of the prices on the board?",
    "gqa": f"Is the bench to the left of the tree?\n{WORD}",
    "seed": f"How many people are in the picture?\nA. one\nB. two\nC. three\nD. none\n{LETTER}",
    "llava-w": "What is unusual about this street?",
}
AROUND = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. USER: <image>\n{prompt} ASSISTANT:"
)


def shown(text: str) -> str:
    """As a dry run prints it."""
    return "\n".join(f"    | {line}" for line in text.split("\n")) + "\n"
