#!/usr/bin/python3
"""train - makes the vocabulary, trains the model, and writes it as GGUF. Reproducible: everything follows from the seed (and, in the last bits of
its sums, from the processor's instructions). What was done lies in OUT/checkpoint.pt, and running it again goes on from there.

usage: train.py OUT [--seed shimmy] [--threads N]
writes OUT/shimmy-tiny.gguf (Q8_0; anew at every checkpoint), OUT/train.log, OUT/held-out.txt (the stories of the held-out text), OUT/questions.tsv
(kind, question, answer, and the word that decides: every fact in every phrasing that training never shows)"""
import argparse
import itertools
import math
import os
import random
import time

import numpy
import torch
from torch.nn import functional as F

import bpe
import corpus
import gguf
import model
import talks

ROWS = 4096  # tokens of a step
LENGTHS = ((850, 512), (1750, 256), (150, 1024))  # steps with sequences of so many tokens: attention over short ones is cheap, the last ones teach the whole context
COOL = 2250  # the step from which the learning rate falls to its end
HELD_OUT = 400  # documents
ABOUT = ("shimmy-tiny", "A very small model of shimmyd's own: short stories, simple questions, small sums. Trained on text made by its own script.", "MIT")
TEMPLATE = ("{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")


def stream(encoder, seed, end):
    """Tokens of document after document, each behind an end-of-text token, for ever."""
    for number in itertools.count():
        yield end
        yield from encoder.encode(corpus.document(seed, number))


def batches(tokens, length):
    """[ROWS / length][length + 1] each; a sequence begins where the one before it ended."""
    while True:
        rows = [list(itertools.islice(tokens, length + 1)) for _ in range(ROWS // length)]
        yield torch.tensor(rows)


def rate(step, steps):
    """The learning rate: up in 100 steps, along a half cosine of 3,500 steps, and from COOL on straight down to 3 % at the end."""
    top, warm, least = 3e-3, 100, 0.03
    if step < warm:
        return top * (step + 1) / warm
    along = top * (least + (1 - least) * 0.5 * (1 + math.cos(math.pi * (min(step, COOL) - warm) / (3500 - warm))))
    return along - (along - top * least) * max(0, step - COOL) / (steps - COOL)


def loss_of(net, rows):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = net(rows[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1).float(), rows[:, 1:].flatten())


def main():
    p = argparse.ArgumentParser(description="trains the small model and writes it as GGUF")
    p.add_argument("out")
    p.add_argument("--seed", default="shimmy")
    p.add_argument("--threads", type=int, default=os.cpu_count())
    a = p.parse_args()
    os.makedirs(a.out, exist_ok=True)
    torch.set_num_threads(a.threads)
    torch.manual_seed(random.Random(a.seed).getrandbits(32))
    torch.use_deterministic_algorithms(True)
    log = open(os.path.join(a.out, "train.log"), "a", buffering=1)
    begin = time.time()

    def say(text):
        print(text, flush=True)
        print(text, file=log)

    shape = model.Shape()
    tokens, merges = bpe.train(corpus.documents(f"{a.seed}/train", 20000), shape.vocab, corpus.SPECIAL)
    encoder = bpe.Encoder(tokens, merges, corpus.SPECIAL)
    end = encoder.ids[corpus.SPECIAL[0]]
    held_texts = list(corpus.documents(f"{a.seed}/held-out", HELD_OUT, held_out=True))
    with open(os.path.join(a.out, "held-out.txt"), "w") as f:
        f.write("\n\n".join(t for t in held_texts if not t.startswith(corpus.SPECIAL[1])) + "\n")
    with open(os.path.join(a.out, "questions.tsv"), "w") as f:
        f.writelines("\t".join(q) + "\n" for q in talks.held_out_facts())
    held = list(itertools.chain.from_iterable([end] + encoder.encode(t) for t in held_texts))
    held = torch.tensor(held[:len(held) // 513 * 513]).view(-1, 513)

    net = model.Llama(shape)
    decay = [p for p in net.parameters() if p.dim() == 2]
    plain = [p for p in net.parameters() if p.dim() != 2]
    optimiser = torch.optim.AdamW([{"params": decay, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}], lr=1e-3, betas=(0.9, 0.95))
    checkpoint = os.path.join(a.out, "checkpoint.pt")
    start, spent = 0, 0.0
    if os.path.exists(checkpoint):
        saved = torch.load(checkpoint)
        net.load_state_dict(saved["net"])
        optimiser.load_state_dict(saved["optimiser"])
        start, spent = saved["step"], saved["seconds"]
    say(f"{sum(p.numel() for p in net.parameters())} parameters, {shape.vocab} tokens, held-out text of {held.numel()} tokens; steps {start} to {sum(n for n, _ in LENGTHS)} of {ROWS} tokens")

    # A run that goes on skips what it has seen.
    lengths = list(itertools.chain.from_iterable([length] * n for n, length in LENGTHS))
    steps = len(lengths)
    source = stream(encoder, f"{a.seed}/train", end)
    sequences = {length: batches(source, length) for length in set(lengths)}
    for step, length in enumerate(lengths):
        rows = next(sequences[length])
        if step < start:
            continue
        for group in optimiser.param_groups:
            group["lr"] = rate(step, steps)
        loss = loss_of(net, rows)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        if (step + 1) % 50 == 0 or step + 1 == steps:
            with torch.no_grad():
                held_loss = numpy.mean([loss_of(net, held[i:i + 8]).item() for i in range(0, min(len(held), 32), 8)])
            say(f"step {step + 1}  loss {loss.item():.4f}  held-out {held_loss:.4f} (perplexity {math.exp(held_loss):.3f})  {spent + time.time() - begin:.0f} s")
            torch.save({"net": net.state_dict(), "optimiser": optimiser.state_dict(), "step": step + 1, "seconds": spent + time.time() - begin}, checkpoint + ".new")
            os.replace(checkpoint + ".new", checkpoint)
            gguf.write(os.path.join(a.out, "shimmy-tiny.gguf"), net, tokens, merges, corpus.SPECIAL, ABOUT, TEMPLATE)


if __name__ == "__main__":
    main()
