"""Text to tokens and back, as Hugging Face's `tokenizers` does it.

`cargo xtask test` sets everything up. The vocabularies are those of llama.cpp's sources,
in the folder that the environment variable MOEWE_LLAMA_CPP names; MOEWE_TOKENIZE is the
engine's example `tokenize`. What splits words stands here as the models' own
`tokenizer.json` files have it. Their normal forms of Unicode do not: a GGUF file says
nothing of them, and all text comes back as it was.
"""

import json
import os
import random
import subprocess
import unicodedata
import unittest
from pathlib import Path
from tempfile import TemporaryDirectory

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

import gguf

N_RANDOM = 10_000
# How many of the texts are enough where the vocabulary is another model's.
N_SPLIT = 3_000
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6

SPACES = r"\s+(?!\S)|\s+"
ENGLISH = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
CL100K = r"%s[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|" + SPACES
LLAMA3 = CL100K % (ENGLISH + "|", r"\p{N}{1,3}")
QWEN2 = CL100K % (ENGLISH + "|", r"\p{N}")
QWEN35 = (
    ENGLISH + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|" + SPACES
)
BAILING = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*"
    r"|\s*[\r\n]|" + SPACES
)
EXAONE_MOE = (
    ENGLISH + r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|" + SPACES
)
SEED = ENGLISH + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|" + SPACES


def o200k(contractions, number, newlines, not_han="", first=""):
    upper = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}" + not_han + "]"
    lower = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}" + not_han + "]"
    start = r"[^\r\n\p{L}\p{N}]?"
    return (
        f"{first}{start}{upper}*{lower}+{contractions}|{start}{upper}+{lower}*{contractions}"
        rf"|{number}| ?[^\s\p{{L}}\p{{N}}]+{newlines}|\s*[\r\n]+|{SPACES}"
    )


GPT4O = o200k(ENGLISH + "?", r"\p{N}{1,3}", r"[\r\n/]*")
TEKKEN = o200k("", r"\p{N}", r"[\r\n/]*")
KIMI = o200k(ENGLISH + "?", r"\p{N}{1,3}", r"[\r\n]*", r"&&[^\p{Han}]", r"[\p{Han}]+|")
DEEPSEEK3 = [
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^"""
    "\r\n"
    r"""\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+["""
    "\r\n"
    r"""]*|\s*["""
    "\r\n"
    "]+|" + SPACES,
]
DEEPSEEK_LLM = [
    "[\r\n]",
    r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ"
    "-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹ"
    "ℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-"
    "𞥃"
    "]+",
    r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
    r"\s+$",
    "[一-龥ࠀ-一가-퟿]+",
    r"\p{N}+",
]
DEEPSEEK_CODER = ["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}"]
AYA = [r"\d{1,3}(?=(?:\d{3})*\b)", GPT4O]


def split(*patterns):
    """Splits by one expression after another."""
    return [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]


GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
DIGITS = pre_tokenizers.Digits(individual_digits=True)

# By the name in the file: what splits, and whether words that are tokens are not merged.
SPLITTERS = {
    "gpt-2": [GPT2],
    "mpt": [GPT2],
    "olmo": [GPT2],
    "starcoder": [DIGITS, GPT2],
    "refact": [DIGITS, GPT2],
    "command-r": [DIGITS, GPT2],
    "smollm": [DIGITS, GPT2],
    "exaone": [DIGITS, GPT2],
    "falcon": [
        pre_tokenizers.Punctuation("contiguous"),
        GPT2,
        pre_tokenizers.Digits(individual_digits=False),
        *split("[0-9][0-9][0-9]"),
    ],
    "llama-bpe": split(LLAMA3),
    "glm4": split(LLAMA3),
    "chatglm-bpe": split(LLAMA3),
    "qwen2": split(QWEN2),
    "hunyuan": split(QWEN2),
    "qwen35": split(QWEN35),
    "bailingmoe": split(BAILING),
    "exaone-moe": split(EXAONE_MOE),
    "seed-coder": split(SEED),
    "gpt-4o": split(GPT4O),
    "minimax-m2": split(GPT4O),
    "tekken": split(TEKKEN),
    "kimi-k2": split(KIMI),
    "deepseek-v3": split(*DEEPSEEK3),
    "deepseek-llm": split(*DEEPSEEK_LLM),
    "deepseek-coder": split(*DEEPSEEK_CODER),
    "cohere2moe": split(*AYA),
}
WHOLE_WORDS = {"llama-bpe", "glm4", "tekken"}

# Vocabularies that cannot be compared: of BERT, and of files that do not say how words
# are split.
NOT_COMPARED = {"bert-bge", "nomic-bert-moe", "aquila", "gpt-neox"}

# Bytes that are written as ², ³, ¹, ¼, ½ and ¾.
DIGIT_BYTES = set(b"\xb2\xb3\xb9\xbc\xbd\xbe")


def skip(missing):
    """Nothing may be skipped where CI is true."""
    if os.environ.get("CI") == "true":
        raise FileNotFoundError(missing)
    raise unittest.SkipTest(missing)


def setUpModule():
    global vocabularies, program
    folder = Path(os.environ.get("MOEWE_LLAMA_CPP", "")) / "models"
    program = os.environ.get("MOEWE_TOKENIZE")
    vocabularies = {
        path.stem.removeprefix("ggml-vocab-"): path for path in folder.glob("ggml-vocab-*.gguf")
    }
    if not vocabularies or not program:
        skip("MOEWE_LLAMA_CPP or MOEWE_TOKENIZE is not set; `cargo xtask test` sets them")


def added(values, special):
    """Tokens that are found in a text before it is split."""
    kinds = {USER_DEFINED, CONTROL, UNKNOWN} if special else {USER_DEFINED}
    pairs = zip(values["tokenizer.ggml.tokens"], values["tokenizer.ggml.token_type"])
    # The end of a text is a control token, whatever a file says.
    tokens = [t for t, kind in pairs if kind in kinds and t and (special or t != "</s>")]
    # Phi-3's take the white space behind them.
    strips = values.get("general.name") == "Phi3"
    plain = {"<unk>", "<s>", "<|endoftext|>"}
    return [
        AddedToken(token, normalized=False, rstrip=strips and token not in plain)
        for token in tokens
    ]


def merges_of_scores(tokens, kinds, scores):
    """The merges that SentencePiece's scores stand for, the best first."""
    ids = {token: i for i, token in enumerate(tokens) if kinds[i] in {NORMAL, USER_DEFINED}}
    ranked = []
    for token, i in ids.items():
        for at in range(1, len(token)):
            if token[:at] in ids and token[at:] in ids:
                ranked.append((-scores[i], ids[token[:at]], ids[token[at:]], token[:at], token[at:]))
    ranked.sort()
    return [(left, right) for *_, left, right in ranked]


def reference(values, pre, special):
    """The tokenizer that a file describes."""
    tokens, kinds = values["tokenizer.ggml.tokens"], values["tokenizer.ggml.token_type"]
    vocabulary = {}
    for i, token in enumerate(tokens):
        vocabulary.setdefault(token, i)
    model = values["tokenizer.ggml.model"]
    if model == "gpt2":
        merges = [tuple(line.split(" ", 1)) for line in values["tokenizer.ggml.merges"]]
        bpe = BPE(vocabulary, merges, ignore_merges=pre in WHOLE_WORDS)
        tokenizer = Tokenizer(bpe)
        splitters = SPLITTERS[pre]
        if GPT2 not in splitters:
            splitters = [*splitters, BYTES]
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splitters)
        tokenizer.decoder = decoders.ByteLevel()
    else:
        prefix = model == "llama" and values.get("tokenizer.ggml.add_space_prefix", True)
        unknown = tokens[values.get("tokenizer.ggml.unknown_token_id", 0)]
        if model == "gemma4":
            lines = values["tokenizer.ggml.merges"]
            merges = [(line[:at], line[at + 1 :]) for line in lines for at in [line.index(" ", 1)]]
        else:
            merges = merges_of_scores(tokens, kinds, values["tokenizer.ggml.scores"])
        bpe = BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
        tokenizer = Tokenizer(bpe)
        spaces = [normalizers.Replace(" ", "▁")]
        prefix = [normalizers.Prepend("▁")] if prefix else []
        tokenizer.normalizer = normalizers.Sequence([*prefix, *spaces])
        strip = [decoders.Strip(" ", 1, 0)] if prefix else []
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
        )
    tokenizer.add_tokens(added(values, special))
    return tokenizer


def ours(path, texts):
    """For each text its tokens, those with control tokens read, and the way back."""
    lines = "".join(json.dumps(text) + "\n" for text in texts)
    command = [program, str(path)]
    output = subprocess.run(command, input=lines.encode(), check=True, stdout=subprocess.PIPE)
    return [json.loads(line) for line in output.stdout.splitlines()]


MIXED = [
    "",
    " ",
    "   ",
    "\t\t\n \r\n\r\n   x",
    "The quick brown fox doesn't jump; it'll RUN, THEY'RE HERE'S 'S 'd'D'LL",
    "for (int i = 0; i < n; ++i) {\n\t\tsum += a[i] * b[i];  // products\n    }\n\n\nreturn sum;",
    "def f(x: list[int]) -> None:\n    \"\"\"Docs.\"\"\"\n    print(f'{x!r:>10}')\n\n\nif __name__ == '__main__':\n    f([1, 2])",
    "<html>\n  <body class=\"a\">&nbsp;</body>\n</html>",
    "0 1 12 123 1234 12345 123456 1234567 1,234,567.89 0x1F 1e-10 3.14159 2024-11-24T12:34:56Z",
    "123a 1234_5 12345\u0301 1234\u00b2 \u0661\u0662\u0663\u0664 x1234567890",
    "你好，世界！今天天气怎么样？我们去北京大学。",
    "日本語のテキストとカタカナ、ひらがな。１２３４５",
    "한국어 텍스트입니다. 안녕하세요?",
    "Příliš žluťoučký kůň úpěl ďábelské ódy. Größe, ÆØÅ, ñandú, İstanbul, ΑΒΓ αβγς Привет",
    "नमस्ते दुनिया สวัสดีชาวโลก مرحبا بالعالم שלום עולם ខ្មែរ မြန်မာ",
    "👍🏽 👨‍👩‍👧‍👦 🇨🇭🇩🇪 ☃️ 🚀🚀🚀 (╯°□°)╯︵ ┻━┻ ᕕ( ᐛ )ᕗ",
    "e\u0301 n\u0303 a\u0308\u0301 \u0301x q\u0307\u0323 \u1100\u1161\u11a8 \u212b \u2126 \u0958",
    "\x00\x01\x07\x08\x0b\x0c\x1b[31m\x7f\x80\x85\x9f\xa0\xad\u200b\u200d\u2028\u2029\u202e\ufeff\ufffd",
    "it\u2019s \u201cquoted\u201d \u2026 \u2014 \u00ab\u00bb \u00a1\u00bf $5 \u20ac5 5% ^~`|+=<>",
    "'\u017f '\u017f\u017f HELLO'\u017fx 'ſt 'RE're'Re 've'VE",
    "aAaA AAAaaa camelCase HTTPServer iPhone ǅungla ʰello",
    "a" * 300 + " " + "ab" * 100 + "\n" * 40 + " " * 70 + "=" * 80,
    "https://example.com/a/b?c=d&e=%20#f user@example.com C:\\Temp\\x.txt ../shared/./x",
    "\U0010ffff\U000e0001\U0001f600\ud7ff\ue000 \u0378",
    "▁▁ ▁a a▁b Ġ Ċ <0x0A> <s> </s> <unk> <|endoftext|> <|im_start|>",
]


def random_texts():
    """Texts of characters from all of Unicode that is assigned, and from what splits words."""
    draw = random.Random(1)
    assigned = [
        c for c in map(chr, range(0x110000)) if unicodedata.category(c) not in {"Cn", "Cs", "Co"}
    ]
    common = [c for c in assigned if ord(c) < 0x3100]
    pieces = [" ", "  ", "\n", "\r\n", "\t", "'s", "'LL", "'", "a", "B", "the", " The", "1", "23", "456"]
    pieces += ["\u0301", "\u0308", "\u200d", "\ufe0f", "_", "-", "/", ".", "!", "é", "中", "文", "か"]
    pieces += ["\u00a0", "\u3000", "\u0085", "½", "²", "٣", "ß", "ſ", "İ", "\u1161", "가"]
    sources = [lambda: draw.choice(assigned), lambda: draw.choice(common), lambda: draw.choice(pieces)]
    texts = []
    for _ in range(N_RANDOM):
        kinds = draw.choice([[0], [1], [2], [2], [1, 2, 2], [0, 1, 2, 2]])
        length = draw.randint(1, 40)
        texts.append("".join(sources[draw.choice(kinds)]() for _ in range(length)))
    return texts


class Tokens(unittest.TestCase):
    maxDiff = None

    @classmethod
    def setUpClass(cls):
        cls.texts = MIXED + random_texts()

    def compare(self, path, values, pre, texts):
        ours_all = ours(path, texts)
        self.assertEqual(len(ours_all), len(texts))
        plain = reference(values, pre, special=False)
        expected = [e.ids for e in plain.encode_batch(texts, add_special_tokens=False)]
        wrong = [
            (text, tokens, ids)
            for text, (tokens, _, _), ids in zip(texts, ours_all, expected)
            if tokens != ids
        ]
        self.assertEqual(len(wrong), 0, (f"{len(wrong)} of {len(texts)}", wrong[:5]))
        return ours_all

    def test_vocabularies(self):
        for name in sorted(set(vocabularies) - NOT_COMPARED):
            path = vocabularies[name]
            values, _ = gguf.metadata(path.read_bytes())
            pre = values.get("tokenizer.ggml.pre")
            texts = self.texts
            if pre == "falcon":
                # Its digits are those of what bytes are written as.
                texts = [text for text in texts if not DIGIT_BYTES & set(text.encode())]
            is_gpt2 = values["tokenizer.ggml.model"] == "gpt2"
            tokens = set(values["tokenizer.ggml.tokens"])
            # A character that a vocabulary cannot write is lost: Falcon's has no U+0016.
            lost = {c for c in range(33) if is_gpt2 and chr(0x100 + c) not in tokens}
            changes = dict.fromkeys(lost) | ({} if is_gpt2 else {ord("▁"): " "})
            with self.subTest(vocabulary=name, pre=pre):
                results = self.compare(path, values, pre, texts)
                for text, (_, _, back) in zip(texts, results):
                    self.assertEqual(back, text.translate(changes))

    def test_control_tokens(self):
        draw = random.Random(2)
        for name in sorted(set(vocabularies) - NOT_COMPARED):
            path = vocabularies[name]
            values, _ = gguf.metadata(path.read_bytes())
            tokens, kinds = values["tokenizer.ggml.tokens"], values["tokenizer.ggml.token_type"]
            names = [t for t, kind in zip(tokens, kinds) if kind in {CONTROL, USER_DEFINED} and t]
            words = ["Hello", " world", "\n\n", " ", "123", "é", "中文", "<", "|>"]
            texts = [
                "".join(draw.choice(draw.choice([names, words])) for _ in range(draw.randint(1, 9)))
                for _ in range(500 if names else 0)
            ]
            pre = values.get("tokenizer.ggml.pre")
            with self.subTest(vocabulary=name, pre=pre):
                expected = reference(values, pre, special=True)
                expected = expected.encode_batch(texts, add_special_tokens=False)
                for text, (_, tokens, _), encoding in zip(texts, ours(path, texts), expected):
                    self.assertEqual(tokens, encoding.ids, text)

    def test_splitters(self):
        """Those of models whose vocabularies are not there, with the largest that is."""
        path = vocabularies["llama-bpe"]
        data = path.read_bytes()
        values, places = gguf.metadata(data)
        with TemporaryDirectory() as folder:
            # Falcon's digits are cut off from spaces, which only its own vocabulary does not
            # merge with them.
            for pre in sorted(set(SPLITTERS) - {"falcon"}):
                changed = Path(folder) / f"{pre}.gguf"
                changed.write_bytes(gguf.with_string(data, places, "tokenizer.ggml.pre", pre))
                with self.subTest(pre=pre):
                    self.compare(changed, values, pre, self.texts[:N_SPLIT])


if __name__ == "__main__":
    unittest.main()
