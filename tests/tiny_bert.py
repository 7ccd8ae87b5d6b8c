"""A BERT of two layers, 16 wide, of random weights."""

from pathlib import Path


def write_tiny_bert(folder: Path) -> Path:
    """Into a folder, as transformers writes it; its tokens are letters."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789.,()-"]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "small", "letter", "capital", "return", "of"]
    vocabulary = [*words, *letters, *(f"##{letter}" for letter in letters)]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(vocabulary), max_position_embeddings=64, **shape)).save_pretrained(folder)
    BertTokenizer(vocab_file=str(folder / "vocab.txt")).save_pretrained(folder)
    return folder
