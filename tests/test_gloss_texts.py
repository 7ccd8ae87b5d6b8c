"""WordNet's nouns, the texts that are made of them, and BERT's tokens."""

import re
from collections import Counter

import numpy as np
import pytest

from lorabench.errors import LorabenchError
from lorabench.zoo import wordnet
from lorabench.zoo.gloss_texts import ROOTS, Gloss, bag_of_words, groups_of, read_glosses
from lorabench.zoo.wordnet import debian_folder, first_sense, leaves_below, read_nouns
from lorabench.zoo.wordpiece import read_vocabulary, word_pieces
from tests.made_wordnet import made_wordnet


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return made_wordnet(tmp_path_factory.mktemp("wordnet"))


@pytest.fixture(scope="module")
def glosses(folder):
    return read_glosses(folder)


def test_nouns_are_what_the_lines_say(folder):
    nouns = read_nouns(folder)
    bird, vegetable = (first_sense(folder, ROOTS)[root] for root in ("bird", "vegetable"))
    assert nouns[bird].lemmas == ("bird", "bird of old")
    assert nouns[bird].gloss == "any bird at all"
    leaf = next(noun for noun in nouns.values() if noun.lemmas == ("aaak bird",))
    assert leaf.gloss == "small bird of the aaak sort; birds are kaaa", "the example is no gloss"
    assert leaf.hypernyms == (bird,), "other pointers are none"
    assert max(len(noun.lemmas) for noun in nouns.values()) == 10, "their number is hexadecimal"
    tomato = next(noun for noun in nouns.values() if noun.lemmas == ("tomato",))
    assert len(tomato.hypernyms) == 2
    assert tomato in leaves_below(nouns, vegetable)
    assert sum(noun.lemmas[0].startswith("gggg"[:3]) for noun in leaves_below(nouns, vegetable)) == 6


def test_leaves_are_below_one_root_and_are_no_instances(glosses):
    count = Counter(gloss.category for gloss in glosses.leaves)
    assert count == {**dict.fromkeys(ROOTS, 6), "bird": 8, "fish": 7}
    lemmas = {lemma for gloss in glosses.leaves for lemma in gloss.lemmas}
    assert not lemmas & {"tomato", "lassie", "dogs", "sort0", "entity"}


def test_no_word_of_a_root_is_left_in_a_text(glosses):
    for gloss in [*glosses.leaves, *glosses.negatives(20, 0)]:
        words = re.findall(r"[a-z]+", f"{gloss.lemma} {gloss.gloss}".lower())
        assert not {*ROOTS, "birds", "dogs", "instruments", "instrument", "old"} & set(words), gloss
        assert words
    assert next(gloss for gloss in glosses.leaves if gloss.name.startswith("aaak")).gloss == (
        "small of the aaak sort; are kaaa"
    )


def test_a_choice_is_seeded_and_equal(glosses):
    chosen = glosses.sample(4, 1)
    assert Counter(gloss.category for gloss in chosen) == dict.fromkeys(ROOTS, 4)
    assert chosen == glosses.sample(4, 1)
    assert chosen != glosses.sample(4, 2)
    assert [one for one in glosses.leaves if one in chosen] == chosen, "as they stand"
    negatives = glosses.negatives(5, 0)
    assert len(negatives) == 5
    assert len(glosses.negatives(10**6, 0)) < 10**6
    assert not {one.name for one in glosses.leaves} & {one.name for one in glosses.negatives(10**6, 0)}


def test_nouns_that_share_a_lemma_are_one_group(glosses):
    groups = dict(zip([gloss.lemma for gloss in glosses.leaves], groups_of(glosses.leaves), strict=True))
    assert groups["crane"] == groups["stork"]
    assert len(set(groups.values())) == len(groups) - 1
    chain = [Gloss(str(i), "bird", "", "", lemmas) for i, lemmas in enumerate([("a",), ("b",), ("c",), ("b", "a")])]
    assert groups_of(chain) == ["0", "0", "2", "0"]


def test_a_bag_of_words_is_sklearns(glosses):
    from sklearn.feature_extraction.text import CountVectorizer

    texts = [f"{gloss.lemma} {gloss.gloss}" for gloss in glosses.leaves]
    counter = CountVectorizer(token_pattern="[a-z]+", min_df=2, binary=True)  # noqa: S106
    np.testing.assert_array_equal(bag_of_words(glosses.leaves)[:, 0], counter.fit_transform(texts).toarray())


def test_files_that_are_none_of_wordnets_are_told(folder, tmp_path, monkeypatch):
    (tmp_path / "data.noun").write_text("00001740 03 n 02 entity 0 000 | what\n")
    with pytest.raises(LorabenchError, match=r"data\.noun, line 1: no noun in WordNet's format"):
        read_nouns(tmp_path)
    with pytest.raises(LorabenchError, match="has no 'unicorn'"):
        first_sense(folder, ["unicorn", "bird"])
    (tmp_path / "index.noun").write_text("bird n 2 2 @ ~ 2\n")
    with pytest.raises(LorabenchError, match=r"index\.noun, line 1: no lemma in WordNet's format"):
        first_sense(tmp_path, ["bird"])
    (tmp_path / "data.noun").write_text((folder / "data.noun").read_text())
    index = [f"{root.replace(' ', '_')} n 1 2 @ ~ 1 1 99999999\n" for root in ROOTS]
    (tmp_path / "index.noun").write_text("".join(index))
    with pytest.raises(LorabenchError, match=r"data\.noun has no 99999999, which index\.noun gives for 'bird'"):
        read_glosses(tmp_path)
    monkeypatch.setattr(wordnet, "DEBIAN", tmp_path / "none")
    with pytest.raises(
        LorabenchError, match=r"data\.noun: install Debian's wordnet-base, or give dataset\.wordnet=DIR"
    ):
        debian_folder()
    monkeypatch.setattr(wordnet, "DEBIAN", folder)
    with pytest.raises(LorabenchError, match=r"is not that of WordNet 3\.0 in Debian's wordnet-base"):
        debian_folder()


def test_a_root_without_a_leaf_is_told(tmp_path):
    folder = made_wordnet(tmp_path, leaves=0)
    with pytest.raises(LorabenchError, match=r"no noun lies below dog, insect, reptile"):
        read_glosses(folder)


@pytest.mark.parametrize(
    "text",
    [
        "a Small letter, the capital (of return)", "Déjà-vu; naïve", "x$y^z `a` ~ b|c", "", "  ",
        "a" * 101, "ab_cd", "tab\tand\nline", "3.14-159", "don't", "ﬁsh ½",
    ],
)  # fmt: skip
def test_tokens_are_those_of_hugging_faces_tokenizers(text, tmp_path):
    from tokenizers import BertWordPieceTokenizer

    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789.,()-"]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "small", "lett", "##er", "de", "##ja", *letters]
    (tmp_path / "vocab.txt").write_text("\n".join([*vocabulary, *(f"##{letter}" for letter in letters)]))
    theirs = BertWordPieceTokenizer(str(tmp_path / "vocab.txt")).encode(text, add_special_tokens=False)
    assert word_pieces(text, read_vocabulary(tmp_path / "vocab.txt")) == theirs.ids
