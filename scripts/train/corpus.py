"""corpus - the stream of documents the model learns from, and the held-out one. A document is a story, or a conversation in the chat format.

Documents are made from (seed, number), so any part of the stream can be made again; the held-out stream has a seed of its own and asks in
phrasings that training never shows."""
import random

import stories
import talks

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
SYSTEM = ["You are a helpful assistant.", "You are a friendly assistant.", "Answer briefly.", "You tell stories and answer questions.", "You are shimmy's own small model."]


def chat(messages):
    """As the model's template renders it."""
    return "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in messages)


# First all kinds of facts are asked alike; from this document on every fact is, as some kinds have four times as many as others.
EVENLY_FROM = 33000


def document(seed, number, held_out=False):
    rng = random.Random(f"{seed}/{number}")
    if rng.random() < 0.35:
        return stories.story(rng)[1]
    messages = [("system", rng.choice(SYSTEM))] if rng.random() < 0.25 else []
    for question, answer in talks.turns(rng, held_out, number >= EVENLY_FROM):
        messages += [("user", question), ("assistant", answer)]
    return chat(messages)


def documents(seed, count, first=0, held_out=False):
    return (document(seed, n, held_out) for n in range(first, first + count))


if __name__ == "__main__":
    import sys
    for text in documents(sys.argv[1] if len(sys.argv) > 1 else "train", 6):
        print(text, end="\n--\n")
