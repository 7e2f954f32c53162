#!/usr/bin/env python3
"""Makes tests/golden/tokenizer/: small tokenizers, and what the Hugging Face library makes of some two thousand texts with each.

    python3 -m venv /tmp/venv && /tmp/venv/bin/pip install tokenizers==0.23.3
    /tmp/venv/bin/python tests/golden/make_tokenizer.py

NAME.json is a tokenizer.json. texts.txt has the texts, one a line, with every byte outside of printable ASCII, and the backslash, as
\\xHH. Line n of NAME.vec belongs to line n of it: `F:ids`, F being the flags of our encode (SQ_TOK_ADD_SPECIAL = 1,
SQ_TOK_PARSE_SPECIAL = 2), the ids as differences to the one before in base 36; empty: not asked; `F:!`: the library panics.
decode.vec: `NAME S ids text`, S being 1 where special tokens are skipped, the text escaped as above and last.
"""
import json
import os
import random
import sys

import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "tokenizer")
assert tokenizers.__version__ == "0.23.3", tokenizers.__version__

GPT4 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+")
O200K = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
         r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
         r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"

WORDS = """the of and to in is that it was for on with as be at by this had not are but from or have an they which one you were her all
she there would their we him been has when who will no more if out so said what up its about into than them can only other time new some
could these two may first then do any like my now over such our man me even most made after also did many before must through back years
where much your way well down should because each just those people how too little state good very make world still own see men work long
here get both between life being under never day same another know while last might us great old year off come since against go came
right used take three tokenizer quantised model running language smoothing activation's we're they'll I've it'd don't I'm""".split()


def training_text(rng):
    lines = []
    for _ in range(3000):
        words = [rng.choice(WORDS) for _ in range(rng.randint(3, 14))]
        if rng.random() < 0.3:
            words.insert(rng.randrange(len(words)), str(rng.randint(0, 99999)))
        if rng.random() < 0.15:
            words.append(rng.choice(["naïve café", "größer", "привет мир", "日本語のテキスト", "中文字符", "한국어", "🙂🙂", "a\n\n  b"]))
        lines.append(" ".join(words).capitalize() + rng.choice([".", "!", "?", " ...", ";\n", "  "]))
    return lines


def trained(rng, size, pre, **model):
    t = Tokenizer(models.BPE(**model))
    t.pre_tokenizer = pre
    t.decoder = decoders.ByteLevel()
    t.train_from_iterator(training_text(rng), trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    return t


def template(t, name, last=None):
    ids = [(n, t.token_to_id(n)) for n in (name, last) if n]
    return processors.TemplateProcessing(single=f"{name} $A" + (f" {last}" if last else ""), pair="$A $B", special_tokens=ids)


def make_all():
    """name -> tokenizer.json as text"""
    rng = random.Random(7)
    made = {}

    # like GPT-2 and OPT: merges as strings, no flags
    t = trained(rng, 700, pre_tokenizers.ByteLevel(add_prefix_space=False))
    t.add_special_tokens(["<pad>", "</s>", "<|im start|>"])
    t.post_processor = template(t, "</s>")
    j = json.loads(t.to_str())
    j["model"]["merges"] = ["#version: 0.2"] + [" ".join(m) for m in j["model"]["merges"]]
    made["gpt2"] = j

    # prefix space, digits apart, added tokens with every flag
    t = trained(rng, 600, pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                                   pre_tokenizers.ByteLevel(add_prefix_space=True)]))
    t.add_special_tokens([AddedToken("<mask>", lstrip=True, normalized=False), AddedToken("<both>", lstrip=True, rstrip=True)])
    t.add_tokens([AddedToken("  ", normalized=False), AddedToken("   ", normalized=True), AddedToken("word", single_word=True),
                  AddedToken("<r>", rstrip=True, normalized=False), AddedToken("<one>", single_word=True, lstrip=True),
                  AddedToken("\u00e9t\u00e9", normalized=False), AddedToken("\n", lstrip=True, normalized=False), AddedToken("\u2581x")])
    t.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), template(t, "<both>", "<mask>")])
    made["flags"] = json.loads(t.to_str())

    # like Llama 3: a Split pattern, whole words past the merges
    t = trained(rng, 900, pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(GPT4), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]))
    j = json.loads(t.to_str())
    j["model"]["ignore_merges"] = True
    j["model"]["vocab"]["\u0120unmergeable"] = len(j["model"]["vocab"]) + 50  # reachable as a whole word only; leaves holes
    t = Tokenizer.from_str(json.dumps(j))
    t.add_special_tokens(["<|begin_of_text|>", "<|eot_id|>", "<|python_tag|>"])
    t.add_tokens(["<think>", "</think>"])
    t.post_processor = processors.Sequence([processors.ByteLevel(), template(t, "<|begin_of_text|>")])
    j = json.loads(t.to_str())
    made["llama3"] = j

    # an alphabet without merges, and further pipelines over it: what matters is where they split
    alphabet = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    split, byte_level = pre_tokenizers.Split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    prefix = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False)
    pipelines = {
        "o200k": [split(Regex(O200K), "isolated"), prefix],
        "bloom": [split(Regex(BLOOM), "isolated"), prefix],
        "falcon": [pre_tokenizers.ByteLevel(add_prefix_space=False), pre_tokenizers.Digits(individual_digits=False),
                   split(Regex("[0-9][0-9][0-9]"), "isolated")],
        "behaviors": [split(" ", "merged_with_next"), split(Regex(r"[\p{Lu}\p{Lt}]"), "merged_with_previous"),
                      split(Regex(r"\p{S}+"), "removed"), split(Regex(r"[^\W_]+"), "contiguous", invert=True), prefix],
        "deepseek": [split(Regex(r"\p{N}{1,3}"), "isolated"), split(Regex(r"[一-龥\u3040-ゟ゠-ヿ]+"), "isolated"),
                     split(Regex(r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
                                 r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"), "isolated"), prefix],
    }
    for name, steps in pipelines.items():
        t = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
        t.pre_tokenizer = pre_tokenizers.Sequence(steps)
        t.decoder = decoders.ByteLevel()
        # one merge that shows where pieces begin and end: none crosses a split; pairs of equal letters and of continuation bytes
        j = json.loads(t.to_str())
        chars = sorted(alphabet)
        pairs = [[a, b] for a in "aeltonsr1290ĠĊ,.!" for b in "aeltonsr1290ĠĊ,.!"]
        pairs += [[a, b] for a in chars if ord(a) > 0x7E for b in chars if ord(b) > 0x7E]
        rng.shuffle(pairs)
        vocab = j["model"]["vocab"]
        for a, b in pairs[:500]:
            vocab[a + b] = len(vocab)
        j["model"]["merges"] = pairs[:500]
        made[name] = j
    return {name: json.dumps(j, ensure_ascii=False, separators=(",", ":")) for name, j in made.items()}


SPECIAL = ["<pad>", "</s>", "<|im start|>", "<mask>", "<both>", "word", "<r>", "<one>", "\u00e9t\u00e9", "\u2581x", "<|begin_of_text|>",
           "<|eot_id|>", "<think>", "</think>", "  ", "    ", "<", ">", "unmergeable", " unmergeable"]
SPACES = [" ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", "\u00a0", "\u3000", "\u2028", "\x85", "\u180e", "\u200b", "\x1c"]
ODD = ["'s", "'S", "'\u017f", "'ll", "'LL", "'re", "'VE", "\u2019s", "''d", "\u212a", "123456", "12", "\u0661\u0662", "\u00bd", "\u00b2", "\u2163", "\U0001d7d8",
       "\U00011de1", "\U00016ff4", "\u01c5", "\u02b0", "e\u0301", "\u0301", "\U0001f469\u200d\U0001f469\u200d\U0001f467", "\U0001f1e9\U0001f1ea", "\u65e5\u672c", "\ud55c",
       "\u0915\u094d\u0937", "\x00", "\x7f", "\ufeff", "\ufffd", "\ue000", "\U0010ffff", "\U000323af", "\U0001cccd", "\ua7dc", "\U00010d4f", "{}", "[](", "/",
       "_", "\u2026", "\u3002", "$", "\u20ac", "\u00ad", "a" * 40, "A" * 17, "=" * 33, "0" * 10, "ab" * 20, "\u3042" * 9]


def random_text(rng, most):
    out = []
    for _ in range(rng.randint(1, most)):
        kind = rng.random()
        if kind < 0.35:
            w = rng.choice(WORDS)
            out.append(w if rng.random() < 0.8 else rng.choice([w.upper(), w.capitalize()]))
        elif kind < 0.55:
            out.append(rng.choice(SPACES))
        elif kind < 0.68:
            out.append(rng.choice(SPECIAL))
        elif kind < 0.82:
            out.append(rng.choice(ODD))
        elif kind < 0.9:
            out.append(chr(rng.randrange(0x21, 0x7F)) * rng.choice([1, 1, 1, 2, 3, 7]))
        else:
            top = rng.choice([0x100, 0x3000, 0x10000, 0x20000, 0x110000])
            c = rng.randrange(top)
            out.append(chr(c if not 0xD800 <= c < 0xE000 else 0x61))
        if rng.random() < 0.4:
            out.append(" ")
    return "".join(out)


def all_texts():
    rng = random.Random(11)
    texts = ["", " ", "Hello, world!", "a" * 300, " " * 130, "\n" * 65, "  \n \n\n  x", "\x00\x00"]
    texts += [w + s for w in SPECIAL for s in ("", " ", "x", " <mask>")] + ODD + SPACES
    texts += [chr(rng.randrange(0x1F000, 0x1FB00)) + "\u200d" + chr(rng.randrange(0x1F000, 0x1FB00)) for _ in range(40)]
    # a little of every block of 256 code points that is not empty or private
    for block in range(0, 0x324):
        if not 0xD8 <= block <= 0xF8:
            texts.append("".join("a" + chr(block * 256 + rng.randrange(256)) for _ in range(3)))
    while len(texts) < 2000:
        texts.append(random_text(rng, rng.choice([3, 6, 12])))
    return texts


class Reference:
    """The library, with flags as our encode has them; None where it panics."""

    def __init__(self, text):
        self.tok = Tokenizer.from_str(text)

    def encode(self, text, flags):
        self.tok.encode_special_tokens = not flags & 2
        try:
            return self.tok.encode(text, add_special_tokens=bool(flags & 1)).ids
        except BaseException as e:  # its panic is no Exception
            if "PanicException" not in type(e).__name__:
                raise
            return None


def escape(text):
    return "".join(chr(b) if 0x20 <= b < 0x7F and b != 0x5C else "\\x%02x" % b for b in text.encode())


def base36(n):
    digits, out = "0123456789abcdefghijklmnopqrstuvwxyz", ""
    sign, n = ("-", -n) if n < 0 else ("", n)
    while n or not out:
        out = digits[n % 36] + out
        n //= 36
    return sign + out


def write_ids(ids):
    if ids is None:
        return "!"
    return ",".join(base36(b - a) for a, b in zip([0] + ids[:-1], ids))


def main():
    os.makedirs(HERE, exist_ok=True)
    texts = all_texts()
    with open(f"{HERE}/texts.txt", "w") as f:
        f.writelines(escape(t) + "\n" for t in texts)
    made = make_all()
    for i, (name, text) in enumerate(made.items()):
        reference = Reference(text)
        with open(f"{HERE}/{name}.json", "w") as f:
            f.write(text + "\n")
        with open(f"{HERE}/{name}.vec", "w") as f:
            for k, t in enumerate(texts):
                # flags change nothing where there are no special tokens; those tokenizers take turns
                flags = (k + k // 4) % 4 if i < 3 else 0
                asked = i < 3 or k % 4 == i % 4
                f.write(f"{flags}:{write_ids(reference.encode(t, flags))}\n" if asked else "\n")
    with open(f"{HERE}/decode.vec", "w") as f:
        rng = random.Random(13)
        for name in ("gpt2", "flags", "llama3") * 80:
            tok = Reference(made[name]).tok
            known = sorted(tok.get_vocab().values())
            # bytes above 7E stand early in the vocabulary: runs of them are what makes broken characters
            ids = [rng.choice(known[95:256] if rng.random() < 0.7 else known) for _ in range(rng.randint(1, 9))]
            skip = rng.randrange(2)
            f.write(f"{name} {skip} {write_ids(ids)} {escape(tok.decode(ids, skip_special_tokens=bool(skip)))}\n")


if __name__ == "__main__":
    main()
