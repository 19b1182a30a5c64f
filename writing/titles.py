"""起个题目：从诗自己的词句里挑最能抬高这首诗概率的。

候选是诗里两到八个字的短句、词与常见的意象；不用训练过别的提示词，题目怎样提问，这里就怎样试。
抬高了多少按题目的字数平摊：抄一整行当题目，那一行当然就好猜了，却说明不了什么。
"""

from __future__ import annotations

import itertools
import re

from poems import chat_format, options, wording
from support.console import UserError
from writing import likelihood
from writing.poet import Poet

SHORTEST, LONGEST = 2, 8  # 题目几个字
TRIED = 28  # 至多试几个
READ = 96  # 只读诗的前多少个 token
_DULL = frozenset(
    "的了之是在我你他她它们这那和与就也都不没有还要又再着过到得地把被让给来去吗呢吧啊"
)


def suggest(poet: Poet, poem: str, n: int = 5) -> list:
    """给一首诗起题目：至多 n 个，最合适的在前，互不包含。"""
    n = options.check("n", n)
    body = options.check_poem(poem).strip()
    if not body:
        raise UserError("这首诗是空的，起不了题目")
    tokens = poet.tok.encode(body)[:READ]
    tried = candidates(poet, body)[:TRIED]
    gains = {title: _likelihood(poet, title, tokens) for title in tried}
    plain = _likelihood(poet, "", tokens)

    def gain(title: str) -> float:
        return (gains[title] - plain) / len(title)

    found = []
    for title in sorted(tried, key=gain, reverse=True):
        if not any(title in other or other in title for other in found):
            found.append(title)
    return found[:n]


def candidates(poet: Poet, body: str) -> list:
    """可以当题目的词句，先试哪个哪个在前，不重复；一个也没有时是诗的开头几个字。"""
    phrases = re.findall(r"[^\W_]+", body)
    short = [each for each in phrases if len(each) <= LONGEST and not _DULL & {each[0], each[-1]}]
    words = [word for each in phrases for word in _words(poet, each)]
    words.sort(key=lambda word: -body.count(word) * len(word))  # 稳定：一样的照诗里的次序
    images = wording.theme_words(body, most=8)
    mixed = itertools.chain.from_iterable(itertools.zip_longest(images, short, words))
    usable = [each for each in mixed if each and len(each) >= SHORTEST]
    return list(dict.fromkeys(usable)) or ["".join(body.split())[:LONGEST]]


def _words(poet: Poet, phrase: str) -> list:
    """分词器眼里的词：一个 token，或一样长的两个拼起来；里面有虚字的不要。"""
    parts = [poet.tok.token_bytes(t).decode("utf-8", "replace") for t in poet.tok.encode(phrase)]
    pairs = [one + two for one, two in zip(parts, parts[1:]) if len(one) == len(two) <= 2]
    return [
        word
        for word in (*parts, *pairs)
        if SHORTEST <= len(word) <= LONGEST
        and all(map(wording.is_chinese, word))
        and not _DULL & set(word)
    ]


def _likelihood(poet: Poet, title: str, tokens: list) -> float:
    """以 title 为题写出 tokens 的 ln p。"""
    limit = poet.config.max_seq_len
    prompt = chat_format.render(poet.tok, title, limit)
    room = limit // 2  # 题目至多占一半：各个题目才比得上同样的 token
    return float(likelihood.log_probs(poet, prompt, tokens[:room]).sum())
