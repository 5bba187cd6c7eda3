"""bpe - byte-pair encoding as GPT-2 does it: bytes written as printable characters, words cut by its pattern, the most frequent pair merged
first (ties: the lesser pair). The pattern here knows ASCII letters only, as the corpus has no others; elsewhere it agrees with GPT-2's."""
import re
from collections import Counter, defaultdict

SPLIT = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+")


def byte_characters():
    """GPT-2's table: printable bytes stand for themselves, the others for characters from 256 on."""
    printable = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    table = {b: chr(b) for b in printable}
    for b in range(256):
        if b not in table:
            table[b] = chr(256 + len(table) - len(printable))
    return table


BYTES = byte_characters()


def spell(word):
    return tuple(BYTES[b] for b in word.encode("utf-8"))


def train(texts, size, special):
    """(tokens, merges): tokens are the 256 bytes, what merges make, then the special ones; `size` of them."""
    words = Counter()
    for text in texts:
        for part in re.split("(" + "|".join(map(re.escape, special)) + ")", text):
            if part not in special:
                words.update(SPLIT.findall(part))
    spelled = [[list(spell(w)), n] for w, n in sorted(words.items())]
    counts, where = Counter(), defaultdict(set)
    for i, (s, n) in enumerate(spelled):
        for pair in zip(s, s[1:]):
            counts[pair] += n
            where[pair].add(i)
    tokens, merges = [BYTES[b] for b in range(256)], []
    while len(tokens) + len(special) < size:
        best = min(counts.items(), key=lambda c: (-c[1], c[0]), default=(None, 0))
        if best[1] < 2:
            raise ValueError(f"only {len(tokens) + len(special)} tokens can be made of this text, {size} are wanted")
        (a, b), joined = best[0], "".join(best[0])
        merges.append((a, b))
        tokens.append(joined)
        for i in sorted(where[best[0]]):
            s, n = spelled[i]
            for pair in zip(s, s[1:]):
                counts[pair] -= n
                if counts[pair] <= 0:
                    del counts[pair]
                where[pair].discard(i)
            out, k = [], 0
            while k < len(s):
                if k + 1 < len(s) and s[k] == a and s[k + 1] == b:
                    out.append(joined)
                    k += 2
                else:
                    out.append(s[k])
                    k += 1
            spelled[i][0] = s = out
            for pair in zip(s, s[1:]):
                counts[pair] += n
                where[pair].add(i)
    return tokens + list(special), merges


class Encoder:
    def __init__(self, tokens, merges, special):
        self.ids = {t: i for i, t in enumerate(tokens)}
        self.rank = {m: i for i, m in enumerate(merges)}
        self.special = special
        self.cut = re.compile("(" + "|".join(map(re.escape, special)) + ")")
        self.known = {}

    def word(self, word):
        ids = self.known.get(word)
        if ids is None:
            s = list(spell(word))
            while len(s) > 1:
                rank, k = min((self.rank.get(p, 1 << 30), k) for k, p in enumerate(zip(s, s[1:])))
                if rank == 1 << 30:
                    break
                s[k:k + 2] = [s[k] + s[k + 1]]
            ids = self.known[word] = [self.ids[t] for t in s]
        return ids

    def encode(self, text):
        out = []
        for part in self.cut.split(text):
            if part in self.special:
                out.append(self.ids[part])
            else:
                for word in SPLIT.findall(part):
                    out += self.word(word)
        return out
