"""A byte-level BPE tokenizer trained on the documents, by the `tokenizers` library."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from tcomp.errors import UserError
from tcomp.runtime.cache import write_atomic
from tcomp.runtime.prepare.source import Part, documents

END = "<|endoftext|>"


def train_bpe(
    parts: list[Part], key: str, vocabulary: int, most_bytes: int, out: Path, advance: Callable[[int], None]
) -> None:
    """Train on the first parts, up to `most_bytes`, and write tokenizer.json. Its last token ends documents."""
    try:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    except ImportError as e:
        raise UserError("training a tokenizer takes the `tokenizers` library", "pip install 'tcomp[data]'") from e
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - 1, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )

    def texts() -> Iterator[str]:
        used = 0
        for part in parts:
            if used >= most_bytes:
                return
            for text, _ in documents(part, key):
                yield text
            used += part.size
            advance(part.size)

    tokenizer.train_from_iterator(texts(), trainer)
    tokenizer.add_special_tokens([END])
    text = tokenizer.to_str()
    write_atomic(out, lambda f: f.write(text.encode()))
